"""COCO's panoptic format: PNGs of segment ids, and one JSON file that lists the segments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmseg_jax.datasets.card import LARGEST_ID, DatasetCard
from lmseg_jax.datasets.file_source import UNMAPPED, FileSource, class_table, shortened, unmapped
from lmseg_jax.datasets.files import filled
from lmseg_jax.datasets.images import read_colors
from lmseg_jax.datasets.sample import VOID, Sample, runs
from lmseg_jax.errors import UserError

COLUMNS = ("id", "category_id", "area", "iscrowd")
LIMITS = (2**24 - 1, LARGEST_ID, 2**31 - 1, 1)  # largest value of each column


class Annotation(NamedTuple):
    """What the JSON file says of one image: its PNG, and int32 [N, 4] with COLUMNS.

    Of a prediction only the first columns are read.
    """

    file_name: str
    segments: np.ndarray


class PanopticPng(FileSource):
    """RGB PNGs of segment ids, R + 256 G + 65536 B, 0 = void; `files.segments` tells their classes.

    The JSON file lists the images of the split, too: its order is the order of the samples. A
    segment whose category is void in the card becomes void.

    Source: https://cocodataset.org/#format-data, panoptic segmentation.
    """

    task = "panoptic"
    needs = ("images", "labels", "segments")
    may_list = False

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        self._list = Path(root, filled(card, split, card.files.segments))
        super().__init__(card, split, root=root)
        self._table = class_table(card)

    def names(self) -> list[str]:
        annotations = read_annotations(self._list)
        self._segments = np.concatenate([entry.segments for entry in annotations])
        lengths = [0, *(len(entry.segments) for entry in annotations)]
        self._first = np.cumsum(lengths)  # row of each image's first segment
        pattern = filled(self.card, self.split, self.card.files.labels)
        names = {}
        for entry in annotations:
            name = _name(entry.file_name, pattern)
            if name is None:
                raise UserError(
                    f"{self._list}: file_name {entry.file_name!r} is not the name of a label file "
                    f"{pattern}; correct files.labels in {self.card.path}"
                )
            if name in names:
                raise UserError(f"{self._list}: lists {entry.file_name!r} twice; remove one")
            names[name] = entry.file_name
        return list(names)

    def annotate(self, index: int, image: np.ndarray, name: str, *paths: Path) -> Sample:
        rows = self._segments[self._first[index] : self._first[index + 1]]
        ids, categories, area, crowd = rows.T
        classes = self._table[categories]
        wrong = np.unique(categories[classes == UNMAPPED])
        if len(wrong):
            raise unmapped(self.card, paths[0], "category id", tuple(map(int, wrong)))
        kept = classes != VOID
        numbers = np.where(kept, np.cumsum(kept) - 1, VOID)
        return Sample(
            image=image,
            segments=read_segments(paths[0], ids, numbers, listed=self._list),
            classes=classes[kept],
            area=area[kept],
            crowd=crowd[kept] > 0,
            dataset=self.card.name,
            name=name,
        )


def read_segments(path: Path, ids: np.ndarray, values: np.ndarray, *, listed: Path) -> np.ndarray:
    """Reads a PNG of segment ids, R + 256 G + 65536 B, and looks each of them up.

    Args:
      path: of the PNG.
      ids: int [N], of the segments that must be in it, from 1, in any order.
      values: int [N], what stands for each of them.
      listed: the JSON file that has the ids, for messages.

    Returns:
      int32 [H, W], the value of each pixel's segment, -1 where the PNG has 0 (void).

    Raises:
      UserError: the PNG is broken, an id is listed twice, or one of PNG and list has an id that the
        other has not.
    """
    red, green, blue = np.moveaxis(read_colors(path), -1, 0)
    found = red | green.astype(np.int32) << 8 | blue.astype(np.int32) << 16
    starts, lengths = runs(found.ravel())
    order = np.argsort(ids)
    known = np.append(np.int32(0), ids[order])
    place = _places(found.ravel()[starts], known, path, listed)
    lookup = np.append(VOID, values[order]).astype(np.int32)
    return np.repeat(lookup[place], lengths).reshape(found.shape)


def _places(found: np.ndarray, known: np.ndarray, path: Path, listed: Path) -> np.ndarray:
    """Where each id of the PNG is in `known` (ascending), int [N]; none may be left over."""
    twice = known[1:][known[1:] == known[:-1]]
    if len(twice):
        raise UserError(
            f"{listed}: {path.name} has segment {shortened(twice.tolist())} twice; "
            "each id must be listed once"
        )
    place = np.minimum(np.searchsorted(known, found), len(known) - 1)
    wrong = known[place] != found
    if wrong.any():
        ids = np.unique(found[wrong])
        raise UserError(
            f"{path}: segment {shortened(ids.tolist())} is not listed in {listed}; add it "
            "there, or paint it 0 (void)"
        )
    absent = known[np.bincount(place, minlength=len(known)) == 0]
    absent = absent[absent > 0]
    if len(absent):
        raise UserError(
            f"{listed}: lists segment {shortened(absent.tolist())} of {path}, which has no "
            "such pixel; remove it there, or restore the PNG"
        )
    return place


def read_annotations(path: Path, *, columns: Sequence[str] = COLUMNS) -> list[Annotation]:
    """Reads a JSON file of COCO's panoptic format, and keeps nothing else of it.

    Each object becomes small as soon as it is read: dictionaries of as many segments as COCO has in
    training would take 2.5 times the memory.

    Args:
      path: of the file.
      columns: the first of COLUMNS, as many as are needed; predictions have no area.

    Raises:
      UserError: the file is missing, no JSON, or not of this format.
    """

    def shrink(value: dict) -> object:
        if "segments_info" in value:
            return Annotation(value.get("file_name"), _rows(value, path, columns))
        if "category_id" in value:
            return tuple(value.get(key) for key in columns)
        return {} if "file_name" in value else value  # nothing of an image is needed

    try:
        with open(path, encoding="utf-8-sig") as file:
            found = json.load(file, object_hook=shrink)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot read this list of segments: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}; restore it") from error
    annotations = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(a, Annotation) for a in annotations):
        raise UserError(
            f"{path}: not of COCO's panoptic format; expected annotations, each with file_name and "
            "segments_info"
        )
    if not annotations:
        raise UserError(f"{path}: annotations is empty; expected one for each image of the split")
    return annotations


def _rows(annotation: dict, path: Path, columns: Sequence[str]) -> np.ndarray:
    """The segments of one annotation, int32 [N, number of columns]."""
    name, segments = annotation.get("file_name"), annotation["segments_info"]
    if not isinstance(name, str):
        raise UserError(f"{path}: an annotation has file_name {name!r}; expected its PNG's name")
    if segments == []:
        return np.zeros((0, len(columns)), np.int32)
    try:
        rows = np.array(segments)
    except (ValueError, OverflowError):
        rows = np.zeros(0)
    if (
        rows.ndim != 2
        or rows.shape[1] != len(columns)
        or rows.dtype.kind != "i"
        or (rows < [1, 0, 0, 0][: len(columns)]).any()
        or (rows > LIMITS[: len(columns)]).any()
    ):
        last = ", iscrowd 0 or 1" if "iscrowd" in columns else ""
        raise UserError(
            f"{path}: the segments_info of {name!r} is wrong; expected {', '.join(columns)} for "
            f"each segment: whole numbers, id from 1 to {LIMITS[0]}{last}"
        )
    return rows.astype(np.int32)


def _name(file_name: str, pattern: str) -> str | None:
    """What stands for {name} in the pattern, None if the file does not fit it."""
    before, after = pattern.split("{name}")
    start = before.rpartition("/")[2]
    if len(file_name) <= len(start) + len(after):
        return None
    if not file_name.startswith(start) or not file_name.endswith(after):
        return None
    return file_name[len(start) : len(file_name) - len(after)]
