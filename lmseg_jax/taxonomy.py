"""Label spaces: the classes a dataset names, and which of its ids mean nothing."""

import colorsys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Category:
    """One class of a dataset.

    Attributes:
      id: the value that stands for it in the dataset's own files.
      name: what it is called; the words that the text encoder reads.
      thing: True if instances are told apart, False for stuff.
      color: RGB, 0..255, for pictures and for `color_png` labels.
      synonyms: other words for the same class.
    """

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int]
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taxonomy:
    """An ordered list of categories; their position, 0..K-1, is the class index used everywhere."""

    name: str
    categories: tuple[Category, ...]
    void: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def whole_names(self) -> tuple[str, ...]:
        """Each name with its synonyms behind it: "road, route"."""
        return tuple(", ".join((category.name, *category.synonyms)) for category in self.categories)

    @cached_property
    def ids(self) -> np.ndarray:
        """int32 [K], the dataset's own id of each class."""
        return np.array([category.id for category in self.categories], np.int32)

    @cached_property
    def things(self) -> np.ndarray:
        """bool [K], which classes have instances."""
        return np.array([category.thing for category in self.categories], bool)

    @cached_property
    def colors(self) -> np.ndarray:
        """uint8 [K, 3], RGB."""
        return np.array([category.color for category in self.categories], np.uint8).reshape(-1, 3)


def plain(name: str) -> str:
    """The name as the text encoder reads it: case, spaces, underscores, composed letters aside."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").lower().split())


def from_names(names: Sequence[str], *, name: str = "words") -> Taxonomy:
    """A taxonomy of free words, ids 1..n in the order given, all stuff, with distinct colours."""
    golden = 0.618034  # of the circle: hues that follow each other lie far apart
    palette = [
        colorsys.hsv_to_rgb(i * golden % 1, 0.75, (0.95, 0.65, 0.8)[i % 3])
        for i in range(len(names))
    ]
    return Taxonomy(
        name,
        tuple(
            Category(i + 1, word, False, tuple(round(255 * c) for c in palette[i]))
            for i, word in enumerate(names)
        ),
        void=(0,),
    )
