"""Finds a trained model wherever one is kept: workdir, export, converted model, shipped name."""

import importlib.resources
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import assembly, checkpoint, configuration, exported, label_space, report, state
from lmseg_jax.datasets.card import DatasetCard, parse_card
from lmseg_jax.datasets.recipe import TestRule
from lmseg_jax.errors import UserError
from lmseg_jax.label_space import LabelSpace
from lmseg_jax.pretrained import converted
from lmseg_jax.taxonomy import from_names
from lmseg_jax.tokenizer import number_names

SHIPPED = {"worlds": "assets/worlds"}  # package data


@dataclass(frozen=True)
class Stored:
    """A trained model on the host.

    Attributes:
      model: `config.model` of its run.
      params, frozen: nested dicts of arrays; a text-free export lacks the parts that read words.
      spaces: label spaces of training by name, in the order of the model's datasets.
      vocabulary: tokens, index and valid of their names; see `assembly.vocabulary_of`.
      text: f32 [M, K, D], embeddings of their names, or None.
      origin: where it comes from, as JSON: kind, and what is known of versions and scores.
    """

    model: ConfigDict
    params: dict
    frozen: dict
    spaces: dict[str, LabelSpace]
    vocabulary: dict[str, np.ndarray]
    text: np.ndarray | None = None
    origin: dict = field(default_factory=dict)


def read(path: str | Path) -> Stored:
    """The model of a workdir, an export, a converted checkpoint or a shipped name.

    Args:
      path: a key of `SHIPPED` as text, or a folder ("./worlds" if one is called like a key).

    Raises:
      UserError: there is none, it is broken, or it is no segmentation model.
    """
    if isinstance(path, str) and path in SHIPPED:
        return of_export(Path(str(importlib.resources.files("lmseg_jax").joinpath(SHIPPED[path]))))
    folder = Path(path).expanduser()
    if exported.is_one(folder):
        return of_export(folder)
    if converted.is_one(folder):
        return _of_converted(folder)
    if is_workdir(folder):
        return _of_workdir(folder)
    raise UserError(
        f"{path}: neither the workdir of a training run (run.json) nor an export or a converted"
        f" model ({converted.MANIFEST}), nor shipped ({', '.join(SHIPPED)}); name the folder that"
        " --workdir or --output named"
    )


def is_workdir(folder: Path) -> bool:
    """Whether a folder is the workdir of a run."""
    return (folder / "run.json").is_file()


def run_of(folder: Path) -> tuple[ConfigDict, list[DatasetCard], dict]:
    """Config and cards of a workdir, and its versions.

    Raises:
      UserError: run.json is broken, or the run was one of pre-training.
    """
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
        values, texts = run["config"], dict(run["cards"])
        mode, _ = values["mode"], values["optimizer"]["average"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: broken ({error}); start the run again to write it") from error
    if mode == "pretrain":
        raise UserError(f"{folder}: holds a CLIP from pre-training, no segmentation model")
    config = configuration.restored(values, where=str(path))
    cards = [parse_card(text, path=f"{path}, card {name}") for name, text in texts.items()]
    return config, cards, dict(run.get("versions", {}))


def _of_workdir(folder: Path) -> Stored:
    """From run.json and the newest checkpoint."""
    config, cards, versions = run_of(folder)
    vocabulary = assembly.vocabulary_of(config, cards)
    shapes = state.shapes(config.model, vocabulary)
    name = "average" if config.optimizer.average else "params"
    checkpoints = folder / assembly.CHECKPOINTS
    found = checkpoint.read_weights(
        checkpoints, names=(name, "frozen"), expected={name: shapes[0], "frozen": shapes[1]}
    )
    origin = {
        "kind": "run",
        "update": checkpoint.latest(checkpoints),
        "weights": "moving average" if config.optimizer.average else "last",
        "versions": versions,
        "config": {key: part for key, part in config.to_dict().items() if key != "model"},
    }
    return Stored(
        config.model,
        found[name],
        found["frozen"],
        {card.name: label_space.of_card(card) for card in cards},
        vocabulary,
        origin=origin | _scores(folder / "scores.json"),
    )


def _scores(path: Path) -> dict:
    """{"scores": {dataset: its numbers}} of a finished run; {} before its end."""
    if not path.is_file():
        return {}
    try:
        return {"scores": report.numbers(json.loads(path.read_text()))}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: broken ({error}); evaluate the run again") from error


def of_export(folder: Path, *, form: str | None = None) -> Stored:
    """From the manifest and arrays of an export.

    Args:
      folder: of the export.
      form: one of `exported.FORMS` that it holds; None = the first.

    Raises:
      UserError: see `exported.read`.
    """
    found = exported.read(folder, form=form)
    where = str(folder / exported.MANIFEST)
    model = configuration.restored({"model": found.model}, where=where).model
    names = [space.taxonomy.names for space in found.spaces.values()]
    _, index, valid = number_names(names)
    vocabulary = {"tokens": np.zeros((0, 1), np.int32), "index": index, "valid": valid}
    shapes = state.shapes(model, vocabulary)
    if found.text_free:
        shapes = tuple(state.without_text(half) for half in shapes)
    params, frozen = exported.filled(shapes, found, where=folder)
    if model.head == "text" and found.text.shape[:2] != valid.shape:
        raise UserError(
            f"{folder}: has embeddings of {found.text.shape[:2]} names, its taxonomies have"
            f" {valid.shape}; export again"
        )
    return Stored(model, params, frozen, found.spaces, vocabulary, found.text, found.origin)


def _of_converted(folder: Path) -> Stored:
    """From the manifest and weights of a converted model."""
    found = converted.read(folder)
    path = folder / converted.MANIFEST
    if "head" not in found.model:
        raise UserError(
            f"{folder}: holds pretrained towers, no segmentation model; train with"
            f" --config.pretrained.image={folder}"
        )
    model = configuration.restored({"model": found.model}, where=str(path)).model
    try:
        test = TestRule(**found.test) if found.test else None
        spaces = {
            name: LabelSpace(
                label_space.marked(
                    from_names(entry["names"], name=name),
                    entry["things"] or [True] * len(entry["names"]),  # unknown: all are things
                ),
                test,
            )
            for name, entry in found.taxonomies.items()
        }
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: broken ({error}); convert the weights again") from error
    names = [space.taxonomy.names for space in spaces.values()]
    vocabulary = assembly.vocabulary_of_names(model, names)
    shapes = state.shapes(model, vocabulary)
    checkpoint.compare(shapes, (found.params, found.frozen), where=folder)
    origin = {"kind": "converted", "source": found.source}
    return Stored(model, found.params, found.frozen, spaces, vocabulary, origin=origin)
