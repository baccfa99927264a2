"""Datasets that TFDS prepared as ArrayRecord, read at random without TensorFlow.

TFDS hands over the encoded bytes of an example; they are decoded by the rules of `datasets.images`,
as if they lay in files.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard, check_inside
from lmseg_jax.datasets.file_source import class_table, to_classes
from lmseg_jax.datasets.files import check_root
from lmseg_jax.datasets.images import read_image, read_indices
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.datasets.source import semantic_sample
from lmseg_jax.datasets.table import Table
from lmseg_jax.errors import UserError

INFO, FEATURES = "dataset_info.json", "features.json"  # what TFDS writes beside the records
OWN = "tensorflow_datasets."  # where TFDS's own features live; other modules are never imported
PREPARE = 'prepare it with download_and_prepare(file_format="array_record")'


class TfdsSource:
    """One split of a prepared TFDS dataset, with one class a pixel.

    Opening reads two JSON files; records are read when they are asked for, by any number of threads
    and processes.

    Args:
      card: `options.dataset` is the folder of the prepared version, relative to the root;
        `options.image` and `options.label` name its features of encoded images, with "/" between
        nested names.
      split: a key of the card's `splits`; `files.split_names` may turn it into what TFDS calls it,
        or into a slice such as "train[:80%]".
      root: folder that holds every dataset's tree.

    Raises:
      UserError: an option, the folder, the split or a feature is missing or wrong, or only
        TensorFlow can read the files.
    """

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        if card.task != "semantic":
            raise UserError(
                f"{card.path}: task is {card.task!r}, but tfds holds one class a pixel here; "
                'expected task = "semantic"'
            )
        for key in ("folder", "images", "labels", "instances", "segments", "list"):
            if getattr(card.files, key):
                raise UserError(f"{card.path}: files.{key} is not read by tfds; remove it")
        options = Table(card.path, "options.", card.options)
        self._dataset = options.text("dataset")
        check_inside(options, "dataset", self._dataset)
        self._keys = options.text("image"), options.text("label")
        options.close()
        check_root(card, root)
        self.card = card
        self.split = split
        self._folder = Path(root, self._dataset)
        self._part = card.files.split_names.get(split, split)
        _check_folder(self._folder, root=root)
        self._records, self._features, self._decoders = _open(
            self._folder, self._part, keys=self._keys, card=card
        )
        self._table = class_table(card)

    def __len__(self) -> int:
        return len(self._records)

    def files(self, index: int) -> tuple[str, ...]:
        """The name that messages give to one example, as if it were a file."""
        return (f"{self._dataset}/{self._part}/{index:06d}",)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        where = f"{self._folder}: example {index} of {self._part}"
        names = [f"{where}, feature {key}" for key in self._keys]
        contents = self._read(index, where)
        image = read_image(names[0], content=contents[0])
        ids = read_indices(names[1], content=contents[1])
        if image.shape[:2] != ids.shape:
            sizes = ["{1}x{0}".format(*array.shape) for array in (image, ids)]
            raise UserError(
                f"{names[0]} is {sizes[0]}, but feature {self._keys[1]} is {sizes[1]}; "
                "image and label must have the same size"
            )
        classes = to_classes(ids, self._table, card=self.card, path=names[1])
        return semantic_sample(image, classes, card=self.card, name=f"{index:06d}")

    def _read(self, index: int, where: str) -> list[bytes]:
        """Encoded image and label of one example."""
        try:
            example = self._features.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
        except MemoryError:
            raise
        except Exception as error:  # readers and parsers raise anything on broken records
            raise UserError(f"{where}: cannot be read: {_line(error)}; {PREPARE}") from error
        found = []
        for key in self._keys:
            value = example
            for part in key.split("/"):
                value = value[part]
            if not isinstance(value, bytes) or not value:
                raise UserError(f"{where}, feature {key}: holds no image; {PREPARE}")
            found.append(value)
        return found


def _check_folder(folder: Path, *, root: str | Path) -> None:
    """Refuses, before TFDS looks at it, what is no prepared dataset or would import other code."""
    if not (folder / INFO).is_file():
        deeper = [*folder.glob(f"*/{INFO}"), *folder.glob(f"*/*/{INFO}")]
        known = sorted(path.parent.relative_to(root) for path in deeper)
        found = f"it has {', '.join(map(str, known[:5]))}" if known else PREPARE
        raise UserError(
            f"{folder}: no prepared TFDS dataset (no {INFO}); options.dataset is NAME/VERSION or "
            f"NAME/CONFIG/VERSION below the root; {found}"
        )
    info = _json(folder / INFO)
    more = info.get("alternativeFileFormats")
    formats = [info.get("fileFormat") or "tfrecord", *(more if isinstance(more, list) else [])]
    if "array_record" not in formats:
        raise UserError(
            f"{folder}: prepared as {', '.join(map(str, formats))}, which needs TensorFlow; "
            f"{PREPARE}"
        )

    def own(table: dict) -> dict:
        name = table.get("pythonClassName", table.get("python_class_name", OWN))
        if not str(name).startswith(OWN):
            raise UserError(
                f"{folder / FEATURES}: {str(name)[:100]!r} is none of TFDS's own features, and "
                "other code is not loaded; prepare the dataset with TFDS's own"
            )
        return table

    _json(folder / FEATURES, own)


def _json(path: Path, hook=None) -> dict:
    """The object in a JSON file; `hook` sees every object inside."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=hook)
    except UserError:
        raise
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise UserError(f"{path}: {problem}; prepare the dataset anew") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}; prepare the dataset anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; prepare the dataset anew")
    return found


def _open(folder: Path, part: str, *, keys: tuple[str, ...], card: DatasetCard) -> tuple:
    """(records of a split, features that are read, decoders that leave them encoded)."""
    import tensorflow_datasets as tfds  # more than a second to import

    try:
        builder = tfds.builder_from_directory(folder, file_format="array_record")
        known = sorted(builder.info.splits)
    except ImportError as error:
        raise UserError(
            f"{folder}: TFDS needs a library that is not installed: {_line(error)}; install it, or "
            "prepare the dataset without the features that need it"
        ) from error
    except Exception as error:  # whatever TFDS finds wrong with its files
        raise UserError(f"{folder}: TFDS cannot open it: {_line(error)}; {PREPARE}") from error
    where = f"{folder}: split {part!r}"
    advice = f"it has {', '.join(known)}: set files.split_names in {card.path}"
    if part.partition("[")[0] not in known:
        raise UserError(f"{where} is not there; {advice}")
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(part, deserialize_method=raw)
        shards = [Path(shard.filename) for shard in builder.info.splits[part].file_instructions]
    except Exception as error:  # a slice that TFDS cannot read, or that is empty
        raise UserError(f"{where} cannot be read: {_line(error)}; {advice}") from error
    for shard in shards:
        inside = shard.is_relative_to(folder) and ".." not in shard.relative_to(folder).parts
        if not inside or not shard.is_file():
            raise UserError(f"{shard}: no such file in {folder}; restore it")
    features = _chosen(builder.info.features, keys, folder=folder, card=card)
    decoders = {key: tfds.decode.SkipDecoding() for key in keys}
    return records, tfds.features.FeaturesDict(_nested(features)), _nested(decoders)


def _chosen(features, keys: Iterable[str], *, folder: Path, card: DatasetCard) -> dict[str, object]:
    """The features that are read, by key."""
    import tensorflow_datasets as tfds

    chosen = {}
    for key in keys:
        where = f"{folder}: feature {key!r}, which {card.path} names in [options],"
        feature = features
        for part in key.split("/"):
            known = sorted(feature) if isinstance(feature, tfds.features.FeaturesDict) else []
            if part not in known:
                found = f"known there: {', '.join(known)}" if known else f"nothing has {part!r}"
                raise UserError(f"{where} does not exist; {found}")
            feature = feature[part]
        kind = type(feature).__name__
        if isinstance(feature, tfds.features.Image):
            kind = f"{kind} of {np.dtype(feature.np_dtype)}"
        if kind.partition(" of ")[2] not in ("uint8", "uint16"):
            raise UserError(f"{where} is {kind}; expected an Image of uint8 or uint16")
        chosen[key] = feature
    return chosen


def _nested(leaves: dict[str, object]) -> dict:
    """{"a/b": leaf} -> {"a": {"b": leaf}}."""
    nested: dict = {}
    for key, leaf in leaves.items():
        *outer, last = key.split("/")
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = leaf
    return nested


def _line(error: Exception) -> str:
    """The first line of what a library says."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
