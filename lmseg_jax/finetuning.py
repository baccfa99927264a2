"""Training that begins from a trained segmentation model: `pretrained.model` (docs/finetuning.md).

With head "text" no parameter depends on the classes, so all of it is taken. Other heads have a
column for each class: those of names that both models have are taken, the others drawn anew.
"""

import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import configuration, loading, state
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.errors import UserError
from lmseg_jax.loading import Stored
from lmseg_jax.taxonomy import plain
from lmseg_jax.tokenizer import BACKGROUND

# Keys of `config.model` that may differ from those of the stored model; which is told.
MAY_DIFFER = ("head", "dtype", "remat", "manual.restrict", "resnet.affine", "temperature")
MAY_DIFFER += ("temperature_learned", "text.prompt_std", "text.template")
MAY_DIFFER += ("decoder.order", "decoder.dropout", "decoder.padding")
# Beginnings of keys that do not count where one of the models reads no words ...
OF_TEXT = ("similarity", "query_mlp", "adapter_norm", "temperature", "text.")
OF_READING = ("adapter_norm", "text.")  # ... and where the parts that do were left out
TOWER = "text_encoder"


def begin(
    config: ConfigDict, cards: Sequence[DatasetCard], *, vocabulary: state.Vocabulary
) -> tuple[tuple[dict, dict], list[str]]:
    """What a run takes from `pretrained.model`.

    Args:
      config: of the run.
      cards: of its datasets, in the order of their numbers.
      vocabulary: of their names.

    Returns:
      Branches of `params` and `frozen`, as `assembly.initial_state` takes them, and lines that say
      what is taken, drawn anew and left out. Both are empty without `pretrained.model`.

    Raises:
      UserError: there is no such model, or it does not fit: names the keys and both values.
    """
    if not config.pretrained.model:
        return ({}, {}), []
    stored = loading.read(config.pretrained.model)
    _check_tower(config, stored)
    different = _differences(config, stored)
    whole = state.join(stored.params, stored.frozen)
    shapes = state.shapes(config.model, vocabulary)
    head = {key: leaf for key, leaf in whole.get("head", {}).items() if key != "classes"}
    taken = tuple(_common(half, whole | {"head": head}) for half in shapes)
    counted = []
    if config.model.head == stored.model.head != "text":
        taken[0]["head"]["classes"], counted = _classes(config, cards, stored, vocabulary)
    known, wanted = state.join(*taken), state.join(*shapes)
    parts = [part for part in sorted(known) if jax.tree.leaves(known[part])]
    if config.pretrained.text:
        known[TOWER] = wanted[TOWER]
        counted.append(f"{TOWER} is that of {config.pretrained.text}")
    lines = [
        f"begins from {config.pretrained.model}: {', '.join(parts)}",
        f"drawn anew: {_missing(wanted, known)}; left out: {_missing(whole, wanted)}",
    ]
    return taken, [*lines, *counted, *different]


def _check_tower(config: ConfigDict, stored: Stored) -> None:
    """Refuses a model that reads words without a text tower, and one with two."""
    if config.model.head != "text":
        return
    name, text = config.pretrained.model, config.pretrained.text
    if TOWER in stored.frozen and text:
        raise UserError(
            f"config.pretrained.text = {text!r}: config.pretrained.model = {name!r} has a text"
            " tower of its own, with which its other parts were trained; set"
            " --config.pretrained.text="
        )
    if TOWER not in stored.frozen and not text:
        free = stored.model.head == "text"
        what = "is an export without text" if free else f"has head {stored.model.head!r}"
        mend = "export it without --text-free, or " if free else ""
        raise UserError(
            f"config.pretrained.model = {name!r} {what}, and config.model.head = 'text' needs a"
            f" text tower; {mend}set --config.pretrained.text= to that of a CLIP"
            " (and --config.model.text.* to its sizes)"
        )


def _differences(config: ConfigDict, stored: Stored) -> list[str]:
    """One line for each key of the model that differs and may.

    Raises:
      UserError: a key differs that may not.
    """
    there, here = (configuration.flat(model) for model in (stored.model, config.model))
    skipped = OF_READING if TOWER not in stored.frozen else ()
    if {stored.model.head, config.model.head} != {"text"}:
        skipped = OF_TEXT
    words = {
        key: f"model.{key} is {there[key]!r} there and {here[key]!r} here"
        for key in here
        if there[key] != here[key] and not key.startswith(skipped)
    }
    # the attentions of a layer are numbered, and only that order has the text first
    swapped = "text-visual" in (there["decoder.order"], here["decoder.order"])
    wrong = [
        line
        for key, line in words.items()
        if key not in MAY_DIFFER or (key == "decoder.order" and swapped)
    ]
    if wrong:
        raise UserError(
            f"config.pretrained.model = {config.pretrained.model!r} is another model:"
            f" {'; '.join(wrong)}; set its values, which --config finetune:MODEL does"
        )
    return list(words.values())


def _classes(
    config: ConfigDict,
    cards: Sequence[DatasetCard],
    stored: Stored,
    vocabulary: state.Vocabulary,
) -> tuple[dict, list[str]]:
    """The classifier of a head without text, and a line for each of its layers.

    Columns of names that the stored layer has, too, are taken. Several layers belong together by
    the names of their datasets.
    """

    def draw():
        params, _ = state.weights(config.model, config.seed, vocabulary=vocabulary)
        return params["head"]["classes"]

    head = config.model.head
    drawn = jax.tree.map(np.array, jax.jit(draw)())
    new = _layers(drawn, {card.name: card.taxonomy.names for card in cards}, vocabulary, head=head)
    names = {name: space.taxonomy.names for name, space in stored.spaces.items()}
    old = _layers(stored.params["head"]["classes"], names, stored.vocabulary, head=head)
    lines = []
    for dataset, (layer, columns) in new.items():
        source, known = old.get(dataset, ({}, []))
        both = [(j, known.index(name)) for j, name in enumerate(columns) if name in known]
        for j, i in both:
            layer["kernel"][:, j], layer["bias"][j] = source["kernel"][:, i], source["bias"][i]
        anew = [name for name in columns if name not in known]
        gone = [name for name in known if name not in columns]
        lines.append(
            f"classes{dataset and f' of {dataset}'}: {len(both)} of {len(columns)} taken;"
            f" drawn anew: {', '.join(anew) or 'none'}; left out: {', '.join(gone) or 'none'}"
        )
    return drawn, lines


def _layers(
    tree: dict, names: dict[str, Sequence[str]], vocabulary: state.Vocabulary, *, head: str
) -> dict[str, tuple[dict, list[str]]]:
    """Kernel, bias and names of the columns of each linear layer; by dataset, "" if it is one."""
    rows = [[*map(plain, row), BACKGROUND] for row in names.values()]
    if head == "multi_head":
        return {name: (tree[i], rows[i]) for i, name in enumerate(names)}
    if head == "linear":
        return {"": (tree, rows[0])}
    numbered = zip(vocabulary["index"], rows, strict=True)
    union = {int(i): name for index, row in numbered for i, name in zip(index, row, strict=False)}
    order = sorted(union, key=lambda i: (union[i] == BACKGROUND, i))  # as in `ManualHead`
    return {"": (tree, [union[i] for i in order])}


def _common(tree: dict, other: dict) -> dict:
    """The leaves of another nested dict that one has a place for."""
    return {
        key: _common(value, other[key]) if isinstance(value, dict) else other[key]
        for key, value in tree.items()
        if key in other
    }


def _missing(tree: dict, known: dict) -> str:
    """Names of the largest branches of which another nested dict has nothing."""
    names = [re.sub(r"layers/\d+", "layers/*", name) for name in _branches(tree, known)]
    return ", ".join(dict.fromkeys(names)) or "nothing"


def _branches(tree: dict, known: dict, *, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        leaves = jax.tree.leaves(value)
        if not any(leaf.size for leaf in leaves):
            continue
        if not jax.tree.leaves(known.get(key, {})):
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _branches(value, known[key], prefix=f"{prefix}{key}/")
