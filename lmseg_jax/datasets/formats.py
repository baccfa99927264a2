"""One source for each annotation format: random access to the samples of a split.

A format is a class, or a function that returns a source; FORMATS finds it by the name that a card
gives. A source has `__len__`, `__getitem__ -> Sample` and `files(index)`, and can be pickled.
"""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from lmseg_jax.datasets.card import LARGEST_ID, DatasetCard
from lmseg_jax.datasets.files import entries
from lmseg_jax.datasets.images import read_colors, read_image, read_indices
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.errors import UserError

UNMAPPED = -3  # marks, in a lookup table, what is neither a class nor void
SHOWN = 5  # ids or colours that one message lists


class Source(Protocol):
    """Random access to the annotated images of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def files(self, index: int) -> tuple[str, ...]: ...


class UnmappedLabel(UserError):
    """A label file holds ids or colours that are neither a class nor void; `values` has them."""

    values: tuple = ()


class FileSource(abc.ABC):
    """Pairs of an image file and a label file, as the card's [files] say.

    Listing happens here, once; samples are read when they are asked for.

    Args:
      card: what is read; its `files` need `images` and `labels`.
      split: a key of the card's `splits`.
      root: folder that holds every dataset's tree.

    Raises:
      UserError: the root or a folder is missing, the split is empty, or an image has no label.
    """

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        if card.task != "semantic":
            raise UserError(
                f"{card.path}: task is {card.task!r}, but {card.format} files hold no instances; "
                'expected task = "semantic"'
            )
        if card.options:
            raise UserError(
                f"{card.path}: options.{next(iter(card.options))} is not read by {card.format}; "
                "remove it"
            )
        if not card.files.images or not card.files.labels:
            raise UserError(
                f"{card.path}: files.images and files.labels are needed by {card.format}"
            )
        self.card = card
        self.split = split
        self.root = Path(root)
        self._entries = entries(card, split, root=root)

    def __len__(self) -> int:
        return len(self._entries)

    def files(self, index: int) -> tuple[str, ...]:
        """Image and label of one sample, relative to the root."""
        return self._entries[index][1:]

    def __getitem__(self, index: int) -> Sample:
        name, *paths = self._entries[index]
        image_path, label_path = (self.root / path for path in paths)
        image, classes = read_image(image_path), self.read_classes(label_path)
        if image.shape[:2] != classes.shape:
            sizes = ["{1}x{0}".format(*array.shape) for array in (image, classes)]
            raise UserError(
                f"{image_path} is {sizes[0]}, but its label {label_path} is {sizes[1]}; "
                "image and label must have the same size"
            )
        return semantic_sample(image, classes, card=self.card, name=name)

    @abc.abstractmethod
    def read_classes(self, path: Path) -> np.ndarray:
        """Class index of each pixel of a label file, int32 [H, W], -1 where void."""


class LabelPng(FileSource):
    """Label PNGs that hold the card's ids: grey values or palette indices."""

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        super().__init__(card, split, root=root)
        self._table = np.full(LARGEST_ID + 1, UNMAPPED, np.int32)
        self._table[[value for value in card.taxonomy.void if value >= 0]] = VOID
        self._table[card.taxonomy.ids] = np.arange(len(card.taxonomy))

    def read_classes(self, path: Path) -> np.ndarray:
        ids = read_indices(path)
        present = np.flatnonzero(np.bincount(ids.ravel()))
        unmapped = present[self._table[present] == UNMAPPED]
        if len(unmapped):
            raise _unmapped(self.card, path, "label id", tuple(map(int, unmapped)))
        return self._table[ids]


class ColorPng(FileSource):
    """Label PNGs whose colours are those of the card's classes."""

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        super().__init__(card, split, root=root)
        colors = np.array([*card.taxonomy.colors.tolist(), *card.void_colors])
        classes = np.array([*range(len(card.taxonomy)), *[VOID] * len(card.void_colors)], np.int32)
        codes = _codes(colors)
        order = np.argsort(codes)
        self._known, self._classes = codes[order], classes[order]

    def read_classes(self, path: Path) -> np.ndarray:
        codes = _codes(read_colors(path))
        place = np.minimum(np.searchsorted(self._known, codes), len(self._known) - 1)
        wrong = self._known[place] != codes
        if wrong.any():
            found = [
                (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in np.unique(codes[wrong])
            ]
            raise _unmapped(self.card, path, "label colour", tuple(found))
        return self._classes[place]


class First:
    """The first `count` samples of a source."""

    def __init__(self, source: Source, count: int):
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.source[self._inside(index)]

    def files(self, index: int) -> tuple[str, ...]:
        """File names of one sample."""
        return self.source.files(self._inside(index))

    def _inside(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} of {self.count} samples")
        return index


def open_world(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """The rendered scenes of a world card; the root is not read."""
    from lmseg_jax.datasets.world import WorldSource

    return WorldSource(card, split)


FORMATS: dict[str, Callable[..., Source]] = {
    "label_png": LabelPng,
    "color_png": ColorPng,
    "world": open_world,
}


def open_source(card: DatasetCard, split: str, *, root: str | Path, limit: int = 0) -> Source:
    """The samples of one split, ready to be read at random.

    Args:
      card: the dataset.
      split: a key of its `splits`.
      root: folder that holds every dataset's tree; not read for worlds.
      limit: only the first n samples; 0 = all.

    Raises:
      UserError: unknown format or split, missing root or files, empty split.
    """
    if card.format not in FORMATS:
        raise UserError(
            f"{card.path}: format is {card.format!r}; this version reads {', '.join(FORMATS)}"
        )
    if split not in card.splits:
        raise UserError(f"{card.path}: no split {split!r}; the card has {', '.join(card.splits)}")
    source = FORMATS[card.format](card, split, root=root)
    return First(source, limit) if 0 < limit < len(source) else source


def semantic_sample(
    image: np.ndarray, classes: np.ndarray, *, card: DatasetCard, name: str
) -> Sample:
    """A sample with one segment for each class that occurs, in the order of the classes.

    Args:
      image: uint8 [H, W, 3].
      classes: int32 [H, W], class index, -1 where void.
      card: gives the number of classes and the dataset's name.
      name: stem of the image.
    """
    count = np.bincount(classes.ravel() + 1, minlength=len(card.taxonomy) + 1)[1:]
    present = np.flatnonzero(count)
    lookup = np.full(len(card.taxonomy) + 1, VOID, np.int32)  # index -1 reads the last row
    lookup[present] = np.arange(len(present))
    return Sample(
        image=image,
        segments=lookup[classes],
        classes=present.astype(np.int32),
        area=count[present].astype(np.int32),
        crowd=np.zeros(len(present), bool),
        dataset=card.name,
        name=name,
    )


def _unmapped(card: DatasetCard, path: Path, what: str, values: tuple) -> UnmappedLabel:
    listed = ", ".join(str(value) for value in values[:SHOWN])
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    key = "void" if what == "label id" else "void_colors"
    error = UnmappedLabel(
        f"{path}: unmapped {what} {listed}{more}: neither a class of {card.path} nor in its {key}; "
        "add it to one of them"
    )
    error.values = values
    return error


def _codes(colors: np.ndarray) -> np.ndarray:
    """RGB [..., 3] -> int32 [...], one number a colour."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue
