"""COCO's panoptic format: PNGs of segment ids, and one JSON file that lists the segments."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmseg_jax.datasets.card import LARGEST_ID, DatasetCard
from lmseg_jax.datasets.file_source import UNMAPPED, FileSource, class_table, shortened, unmapped
from lmseg_jax.datasets.files import filled
from lmseg_jax.datasets.images import read_colors
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.errors import UserError

COLUMNS = ("id", "category_id", "area", "iscrowd")
LIMITS = (2**24 - 1, LARGEST_ID, 2**31 - 1, 1)  # largest value of each column


class Annotation(NamedTuple):
    """What the JSON file says of one image: its PNG, and int32 [N, 4] with COLUMNS."""

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
        red, green, blue = np.moveaxis(read_colors(paths[0]), -1, 0)
        found = red | green.astype(np.int32) << 8 | blue.astype(np.int32) << 16
        flat = found.ravel()
        starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # runs of one id are few
        order = np.argsort(ids)
        known = np.append(np.int32(0), ids[order])
        place = self._places(flat[starts], known, paths[0])

        classes = self._table[categories]
        wrong = np.unique(categories[classes == UNMAPPED])
        if len(wrong):
            raise unmapped(self.card, paths[0], "category id", tuple(map(int, wrong)))
        kept = classes != VOID
        lookup = np.full(len(known), VOID, np.int32)
        lookup[1:] = np.where(kept, np.cumsum(kept) - 1, VOID)[order]
        lengths = np.diff(starts, append=flat.size)
        return Sample(
            image=image,
            segments=np.repeat(lookup[place], lengths).reshape(found.shape),
            classes=classes[kept],
            area=area[kept],
            crowd=crowd[kept] > 0,
            dataset=self.card.name,
            name=name,
        )

    def _places(self, found: np.ndarray, known: np.ndarray, path: Path) -> np.ndarray:
        """Where each id of the PNG is in `known` (ascending), int [N]; none may be left over."""
        twice = known[1:][known[1:] == known[:-1]]
        if len(twice):
            raise UserError(
                f"{self._list}: {path.name} has segment {shortened(twice.tolist())} twice; "
                "each id must be listed once"
            )
        place = np.minimum(np.searchsorted(known, found), len(known) - 1)
        wrong = known[place] != found
        if wrong.any():
            ids = np.unique(found[wrong])
            raise UserError(
                f"{path}: segment {shortened(ids.tolist())} is not listed in {self._list}; add it "
                "there, or paint it 0 (void)"
            )
        absent = known[np.bincount(place, minlength=len(known)) == 0]
        absent = absent[absent > 0]
        if len(absent):
            raise UserError(
                f"{self._list}: lists segment {shortened(absent.tolist())} of {path}, which has no "
                "such pixel; remove it there, or restore the PNG"
            )
        return place


def read_annotations(path: Path) -> list[Annotation]:
    """Reads a JSON file of COCO's panoptic format, and keeps nothing else of it.

    Each object becomes small as soon as it is read: dictionaries of as many segments as COCO has in
    training would take 2.5 times the memory.

    Raises:
      UserError: the file is missing, no JSON, or not of this format.
    """

    def shrink(value: dict) -> object:
        if "segments_info" in value:
            return Annotation(value.get("file_name"), _rows(value, path))
        if "category_id" in value:
            return tuple(value.get(key) for key in COLUMNS)
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


def _rows(annotation: dict, path: Path) -> np.ndarray:
    """The segments of one annotation, int32 [N, 4]."""
    name, segments = annotation.get("file_name"), annotation["segments_info"]
    if not isinstance(name, str):
        raise UserError(f"{path}: an annotation has file_name {name!r}; expected its PNG's name")
    if segments == []:
        return np.zeros((0, len(COLUMNS)), np.int32)
    try:
        rows = np.array(segments)
    except (ValueError, OverflowError):
        rows = np.zeros(0)
    if (
        rows.ndim != 2
        or rows.shape[1] != len(COLUMNS)
        or rows.dtype.kind != "i"
        or (rows < [1, 0, 0, 0]).any()
        or (rows > LIMITS).any()
    ):
        raise UserError(
            f"{path}: the segments_info of {name!r} is wrong; expected {', '.join(COLUMNS)} for "
            f"each segment: whole numbers, id from 1 to {LIMITS[0]}, iscrowd 0 or 1"
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
