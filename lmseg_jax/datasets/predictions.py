"""Saved predictions of any model: finds the one of each image and reads it (docs/scoring.md)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.file_source import class_table, shortened
from lmseg_jax.datasets.images import ColoredLabels, read_indices
from lmseg_jax.datasets.panoptic_png import COLUMNS, read_annotations, read_segments
from lmseg_jax.datasets.source import Source
from lmseg_jax.errors import UserError

LIST = "predictions.json"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
      path: of the PNG, for messages.
      labels: int32 [H, W], class 0..K-1, negative where no class of the card is predicted.
      segments: int32 [H, W], ids from 1, 0 = void; None where the card is semantic.
      info: one dict a segment, with `id` and `category` (class 0..K-1).
    """

    path: Path
    labels: np.ndarray
    segments: np.ndarray | None = None
    info: tuple[dict, ...] = ()


class SemanticPredictions:
    """Label PNGs anywhere below a folder, named by the image's stem, holding the card's ids.

    Args:
      folder: that was given.
      card: whose ids they hold.
      source: the images of the split.
      count: only the first ones need a prediction.

    Raises:
      UserError: no folder, an image without a prediction, or two files for one image.
    """

    def __init__(self, folder: Path, card: DatasetCard, source: Source, *, count: int):
        self.folder = folder
        self._table = class_table(card)
        keys = image_keys(source)
        files = {}
        for path in _pngs(folder):
            files.setdefault(_key(path, depth=len(keys[0])), []).append(folder / path)
        hint = ""
        if (folder / LIST).exists():
            hint = f"; {LIST} there holds segments, which a panoptic card scores"
        _check_found(keys[:count], files, folder=folder, hint=hint)
        self._paths = [files[key][0] for key in keys[:count]]
        self.strays = len(files.keys() - set(keys))

    def __getitem__(self, index: int) -> Prediction:
        path = self._paths[index]
        try:
            ids = read_indices(path)
        except ColoredLabels as error:
            raise UserError(
                f"{path}: holds colours; the prediction for a semantic card is a PNG with one "
                "number a pixel, the card's id of the class"
            ) from error
        return Prediction(path, self._table.take(ids))


class PanopticPredictions:
    """`predictions.json` in COCO's panoptic format, with its PNGs in the same folder.

    An annotation is that of the image whose stem its file_name has.

    Args:
      folder, card, source, count: as for SemanticPredictions.

    Raises:
      UserError: no such list, an image without a prediction or with two, or a category that the
        card does not have.
    """

    def __init__(self, folder: Path, card: DatasetCard, source: Source, *, count: int):
        self.folder, self.list = folder, folder / LIST
        if folder.is_dir() and not self.list.exists():
            raise UserError(
                f"{self.list}: no such file; {card.path} is a panoptic card, whose predictions are "
                f"a {LIST} in COCO's panoptic format with its PNGs; label PNGs need a semantic card"
            )
        keys = image_keys(source)
        found, files = {}, {}
        for entry in read_annotations(self.list, columns=COLUMNS[:2]):
            path = PurePosixPath(entry.file_name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{self.list}: file_name {entry.file_name!r} is not in the folder of the list"
                )
            key = _key(path, depth=len(keys[0]))
            found[key] = entry
            files.setdefault(key, []).append(folder / path)
        _check_found(keys[:count], files, folder=self.list)
        self._entries = [(files[key][0], found[key].segments) for key in keys[:count]]
        self.strays = len(files.keys() - set(keys))
        self._classes = {int(value): k for k, value in enumerate(card.taxonomy.ids)}
        lost = [path for path, _ in self._entries if not path.is_file()]
        if lost:
            raise UserError(
                f"{lost[0]}: no such file, but {self.list} lists it ({len(lost)} of "
                f"{len(self._entries)} PNGs are not there)"
            )
        categories = np.unique(np.concatenate([rows[:, 1] for _, rows in self._entries]))
        unknown = [int(value) for value in categories if int(value) not in self._classes]
        if unknown:
            first = next(p for p, rows in self._entries if np.isin(rows[:, 1], unknown).any())
            raise UserError(
                f"{self.list}: category_id {shortened(unknown)} is no class of {card.path} (first "
                f"of {first.name}); write the card's ids"
            )

    def __getitem__(self, index: int) -> Prediction:
        path, rows = self._entries[index]
        classes = np.array([self._classes[int(value)] for value in rows[:, 1]], np.int32)
        places = read_segments(path, rows[:, 0], np.arange(len(rows)), listed=self.list)
        info = tuple({"id": i + 1, "category": int(k)} for i, k in enumerate(classes))
        return Prediction(path, np.append(classes, -1)[places], places + 1, info)


def open_predictions(
    folder: str | Path, card: DatasetCard, source: Source, *, count: int
) -> SemanticPredictions | PanopticPredictions:
    """The predictions of a card's task, ready to be read in any order, from any thread.

    Args:
      folder: where they lie.
      card: of the truth.
      source: every image of the split.
      count: how many of them, from the first, are going to be read.

    Raises:
      UserError: the folder is missing, or see the classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--predictions {folder}: no such folder")
    kind = PanopticPredictions if card.task == "panoptic" else SemanticPredictions
    return kind(folder, card, source, count=count)


def image_keys(source: Source) -> list[tuple[str, ...]]:
    """What tells the images of a split apart: the stem, or the last folders and the stem.

    Folders are part of it only where two images have the same stem, and no more of them than it
    takes; all keys are of the same length.
    """
    return path_keys([PurePosixPath(source.files(index)[0]) for index in range(len(source))])


def path_keys(paths: Sequence[PurePosixPath]) -> list[tuple[str, ...]]:
    """`image_keys` of files that are no dataset.

    Raises:
      UserError: two files differ in their suffix only.
    """
    depth = 1
    while len({_key(path, depth=depth) for path in paths}) < len(paths):
        depth += 1
        if depth > max(len(path.parts) for path in paths):
            raise UserError(f"{paths[0]}: two images differ in their suffix only; rename one")
    return [_key(path, depth=depth) for path in paths]


def _key(path: PurePosixPath, *, depth: int) -> tuple[str, ...]:
    return (*path.parts[:-1], path.stem)[-depth:]


def _pngs(folder: Path) -> Iterator[PurePosixPath]:
    """Every PNG below a folder, relative to it, sorted."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(".png") and file[0] != ".":
                yield PurePosixPath(Path(base, file).relative_to(folder).as_posix())


def _check_found(
    keys: Sequence[tuple[str, ...]],
    files: Mapping[tuple[str, ...], list[Path]],
    *,
    folder: Path,
    hint: str = "",
) -> None:
    missing = ["/".join(key) for key in keys if key not in files]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(keys)} images have no prediction, the first is "
            f"{missing[0]}.png{hint}"
        )
    for key in keys:
        if len(files[key]) > 1:
            paths = " and ".join(map(str, files[key][:2]))
            raise UserError(f"{paths} are both the prediction of image {key[-1]!r}; remove one")
