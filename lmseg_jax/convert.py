"""`lmseg convert`: foreign weights become a checkpoint in our own layout (docs/weights.md)."""

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from lmseg_jax import state
from lmseg_jax.errors import UserError
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.lmseg import BACKBONES, known
from lmseg_jax.models.text_encoder import TextEncoder
from lmseg_jax.pretrained import converted, sources, weights
from lmseg_jax.pretrained.converted import Converted

MODELS = {"maskformer_hf": "lmseg_jax.pretrained.maskformer:read_maskformer"}  # whole models
FORMATS = (*weights.FORMATS, *MODELS)


def main(argv: Sequence[str]) -> int:
    """Reads foreign weights, writes a checkpoint, and says what it read and left out."""
    parser = argparse.ArgumentParser(
        prog="lmseg convert",
        description="Foreign weights to a folder that pretrained.image, pretrained.text and"
        " lmseg_jax.load take. No pickle is opened; docs/weights.md says how to save one again.",
    )
    parser.add_argument("--from", dest="form", required=True, choices=FORMATS, help="the format")
    parser.add_argument(
        "--input",
        required=True,
        help=f"a .safetensors file, or one of {', '.join(sources.names())};"
        " maskformer_hf: a folder with model.safetensors and config.json",
    )
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint that is there")
    options = parser.parse_args(argv)
    if options.form in MODELS:
        found, lines = model(options.input, options.form)
    else:
        found, lines = towers(options.input, options.form)
    print("\n".join(lines), flush=True)
    converted.write(options.output, found, force=options.force)
    total = state.count((found.params, found.frozen))
    print(f"{options.output}: {total:,} values written, read back and found equal")
    print(_advice(found, options.output))
    return 0


def towers(source: str, form: str) -> tuple[Converted, list[str]]:
    """The pretrained towers of a file, and lines that say what was read.

    Args:
      source: name or path.
      form: key of `weights.FORMATS`.

    Raises:
      UserError: see `weights.read` and `mapping.fill`.
    """
    read = weights.read(source, form=form)
    lines = [f"{source}: {len(read.tensors)} tensors, {read.names.words}"]
    model, params, frozen = {}, {}, {}
    if read.image_config:
        sizes = read.image_config
        make = known(BACKBONES, read.backbone, "backbone")
        params["backbone"], frozen["backbone"] = _filled(
            lambda: make(**sizes, norm="frozen", rngs=Rngs(0)), weights.fill_image, read
        )
        model |= {"backbone": read.backbone, "resnet": sizes | {"norm": "frozen"}}
        lines.append(_told("image tower", sizes, (params["backbone"], frozen["backbone"])))
    if read.text_config:
        text = read.text_config
        params_of_text, rest = _filled(
            lambda: TextEncoder(**text, rngs=Rngs(0)), weights.fill_text, read
        )
        frozen["text_encoder"] = state.join(params_of_text, rest)  # it never trains
        model["text"] = dict(text)
        lines.append(_told("text tower", text, frozen["text_encoder"]))
    for reason, names in weights.left_out(read).items():
        count = sum(int(np.size(read.tensors[name])) for name in names)
        lines.append(
            f"left out {len(names)} tensors ({count:,} values), such as {names[0]}: {reason}"
        )
    origin = {"format": form, "input": _name(source)}
    return Converted(source=origin, model=_json(model), params=params, frozen=frozen), lines


def model(source: str, form: str) -> tuple[Converted, list[str]]:
    """A whole segmentation model, and lines that say what was read.

    Args:
      source: folder.
      form: key of `MODELS`.

    Raises:
      UserError: from the format's own reader, or there is no such folder.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"--input {source}: no such folder; {form} is a folder of several files")
    config, params, frozen, names = _reader(MODELS[form])(folder)
    lines = [_told("model", {"head": config.head, "queries": config.queries}, (params, frozen))]
    lines.append(f"{len(names)} classes: {', '.join(names[:4])}, ...")
    words = {form: {"names": list(names), "things": None}}
    origin = {"format": form, "input": _name(source)}
    test = size_rule(folder)
    lines.append(f"test size: {test or 'not stated'}")
    values = _json(config.to_dict())
    return Converted(origin, values, params, frozen, taxonomies=words, test=test), lines


def size_rule(folder: Path) -> dict[str, int] | None:
    """{"short_side", "max_side"} of a folder's preprocessor_config.json, None if it has no such.

    Newer files have a table `size`, older ones the numbers `size` and `max_size`.
    """
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        size = settings["size"]
        if isinstance(size, dict):
            rule = {"short_side": size["shortest_edge"], "max_side": size["longest_edge"]}
        else:
            rule = {"short_side": size, "max_side": settings["max_size"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rule if all(type(side) is int and side > 0 for side in rule.values()) else None


def _reader(place: str) -> Callable:
    """The function that "module:function" names; formats load only when asked for."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


def _filled(make: Callable, fill: Callable, read: weights.Weights) -> tuple[dict, dict]:
    """(parameters, the rest) of a module that holds the weights; it is never made itself."""
    _, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    trees = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    return state.split_like(trees, fill(read, state.join(*trees)))


def _told(what: str, sizes: dict, tree: object) -> str:
    listed = ", ".join(f"{key} {value}" for key, value in sizes.items())
    return f"{what}: {listed}; {state.count(tree):,} values, float32"


def _name(source: str) -> str:
    """A name as it is, of a path the last part only: folders say nothing about the weights."""
    return source if source in sources.names() else Path(source).name


def _json(values: dict) -> dict:
    """What JSON makes of it: lists for tuples."""
    return json.loads(json.dumps(values))


def _advice(found: Converted, output: Path) -> str:
    """What the folder is good for."""
    if "head" in found.model:
        return f"use it: lmseg_jax.load({str(output)!r})"
    keys = {"pretrained.image": "resnet", "pretrained.text": "text"}
    uses = [f"--config.{key}={output}" for key, part in keys.items() if part in found.model]
    if "backbone" in found.model:
        uses.append(f"--config.model.backbone={found.model['backbone']}")
    for part in ("resnet", "text"):
        for key, value in found.model.get(part, {}).items():
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            uses.append(f"--config.model.{part}.{key}={shown}")
    return "train with: " + " ".join(uses)


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("convert")
