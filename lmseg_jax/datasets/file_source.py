"""What every reader of image and label files shares: listing, checks, ids to classes."""

import abc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import LARGEST_ID, DatasetCard
from lmseg_jax.datasets.files import check_root, entries
from lmseg_jax.datasets.images import read_image, read_size
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.datasets.source import UnmappedLabel, semantic_sample
from lmseg_jax.errors import UserError

UNMAPPED = -3  # marks, in a table of classes, what is neither a class nor void
SHOWN = 5  # ids or colours that one message lists


class FileSource(abc.ABC):
    """Image files with their label files, as the card's [files] say.

    Listing happens here, once; samples are read when they are asked for, in any order and from any
    number of threads.

    Args:
      card: what is read.
      split: a key of the card's `splits`.
      root: folder that holds every dataset's tree.

    Raises:
      UserError: the card does not fit the format, the root or a folder is missing, the split is
        empty, or an image has no label.
    """

    task = "semantic"  # of the cards that the format serves
    needs: tuple[str, ...] = ("images", "labels")  # keys of [files]
    may_list = True  # whether `files.list` can name the images of a split

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        self._check_card(card)
        check_root(card, root)
        self.card = card
        self.split = split
        self.root = Path(root)
        self._entries = entries(card, split, root=root, names=self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def files(self, index: int) -> tuple[str, ...]:
        """Image and label files of one sample, relative to the root."""
        return self._entries[index][1:]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image, from its header."""
        return read_size(self.root / self.files(index)[0])

    def __getitem__(self, index: int) -> Sample:
        name, *paths = self._entries[index]
        image_path, label_path, *more = (self.root / path for path in paths)
        image = read_image(image_path)
        sample = self.annotate(index, image, name, label_path, *more)
        if image.shape[:2] != sample.segments.shape:
            sizes = ["{1}x{0}".format(*array.shape) for array in (image, sample.segments)]
            raise UserError(
                f"{image_path} is {sizes[0]}, but its label {label_path} is {sizes[1]}; "
                "image and label must have the same size"
            )
        return sample

    def names(self) -> list[str] | None:
        """The images of the split, where labels tell them; None = see `files.entries`."""
        return None

    @abc.abstractmethod
    def annotate(self, index: int, image: np.ndarray, name: str, *paths: Path) -> Sample:
        """The sample of an image, uint8 [H, W, 3], and of its label files."""

    def _check_card(self, card: DatasetCard) -> None:
        if card.task != self.task:
            holds = "no instances" if self.task == "semantic" else "the instances of things"
            raise UserError(
                f"{card.path}: task is {card.task!r}, but {card.format} files hold {holds}; "
                f'expected task = "{self.task}"'
            )
        if card.options:
            raise UserError(
                f"{card.path}: options.{next(iter(card.options))} is not read by {card.format}; "
                "remove it"
            )
        for key in ("images", "labels", "instances", "segments", "list"):
            given = bool(getattr(card.files, key))
            if key in self.needs and not given:
                raise UserError(f"{card.path}: files.{key} is missing; {card.format} needs it")
            if key not in self.needs and given and not (key == "list" and self.may_list):
                raise UserError(f"{card.path}: files.{key} is not read by {card.format}; remove it")


class SemanticFiles(FileSource):
    """One label file an image, with one class a pixel."""

    def annotate(self, index: int, image: np.ndarray, name: str, *paths: Path) -> Sample:
        return semantic_sample(image, self.read_classes(paths[0]), card=self.card, name=name)

    @abc.abstractmethod
    def read_classes(self, path: Path) -> np.ndarray:
        """Class index of each pixel of a label file, int32 [H, W], -1 where void."""


def class_table(card: DatasetCard) -> np.ndarray:
    """Id -> class index, int32 [LARGEST_ID + 1]: -1 where void, UNMAPPED where neither."""
    table = np.full(LARGEST_ID + 1, UNMAPPED, np.int32)
    table[[value for value in card.taxonomy.void if value >= 0]] = VOID
    table[card.taxonomy.ids] = np.arange(len(card.taxonomy))
    return table


def to_classes(ids: np.ndarray, table: np.ndarray, *, card: DatasetCard, path: Path) -> np.ndarray:
    """Class index of each pixel, int32 [H, W], -1 where void.

    Args:
      ids: [H, W], 0..LARGEST_ID.
      table: of `class_table`.
      card: for messages.
      path: of the label file, for messages.

    Raises:
      UnmappedLabel: an id is neither a class nor void.
    """
    classes = table.take(ids)
    if classes.min() == UNMAPPED:
        wrong = np.unique(ids[classes == UNMAPPED])
        raise unmapped(card, path, "label id", tuple(map(int, wrong)))
    return classes


def unmapped(card: DatasetCard, path: Path, what: str, values: tuple) -> UnmappedLabel:
    """The error to raise where a label file holds what the card does not know.

    Args:
      card: where it is missing.
      path: of the label file.
      what: "label id" | "label colour" | "category id".
      values: all of them.
    """
    key = "void_colors" if what == "label colour" else "void"
    error = UnmappedLabel(
        f"{path}: unmapped {what} {shortened(values)}: neither a class of {card.path} nor in its "
        f"{key}; add it to one of them"
    )
    error.values = values
    return error


def shortened(values: Sequence) -> str:
    """The first values of a list, and how many more there are."""
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(str(value) for value in values[:SHOWN]) + more
