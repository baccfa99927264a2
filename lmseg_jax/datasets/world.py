"""The demo worlds: differently annotated scenes of one renderer, rendered when they are asked for.

A world's card names its look (`options.style`) and says in words how the renderer's truth becomes
classes (`options.by`, `options.objects`, `options.stuff`), so that the scenes of one world can also
be annotated in the taxonomy of another one. `options.by` is an attribute or several of them, such
as "color shape"; the keys of `options.objects` are then their words, "red disc".
"""

from itertools import pairwise, product

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.datasets.world_scene import (
    COLORS,
    SHAPES,
    SMALLEST,
    STUFF,
    STYLES,
    TEXTURES,
    Scene,
    SceneObject,
    Style,
    render,
)
from lmseg_jax.errors import UserError

__all__ = [
    "STYLES",
    "Scene",
    "SceneObject",
    "Style",
    "WorldSource",
    "annotate",
    "render",
]

_WORDS = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES}


class WorldSource:
    """The scenes of one split of a world card; nothing is read from disk.

    Args:
      card: the world whose scenes are rendered; `options.first` gives the index of each split's
        first scene, so splits never share one.
      split: a key of the card's `splits`, which also gives the number of scenes.
      labels: another world's card; the same scenes are annotated in its taxonomy, and
        `Sample.dataset` is its name.

    Raises:
      UserError: the split or an option of a card is missing or wrong.
    """

    def __init__(self, card: DatasetCard, split: str, *, labels: DatasetCard | None = None):
        if split not in card.splits:
            raise UserError(f"{card.path}: no split {split!r}; use one of {', '.join(card.splits)}")
        self.card = card
        self.split = split
        self.labels = card if labels is None else labels
        self.style = _option(card, "style", str)
        if self.style not in STYLES:
            raise UserError(
                f"{card.path}: options.style is {self.style!r}; use one of {', '.join(STYLES)}"
            )
        self._first = _first_scenes(card)[split]
        _tables(self.labels)  # a wrong option shows now, not in a worker

    def __len__(self) -> int:
        return self.card.splits[self.split]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.card.name}/{self.split} has no image {index}")
        return annotate(
            render(self.style, self._first + index),
            self.labels,
            name=self.files(index)[0],
        )

    def files(self, index: int) -> tuple[str, ...]:
        """The name that messages give to one scene, as if it were a file."""
        return (f"{self.card.name}/{self.split}/{index:06d}",)


def annotate(scene: Scene, card: DatasetCard, *, name: str) -> Sample:
    """The truth of a scene in the taxonomy of a card.

    A thing gives one segment per object in a panoptic card; everything else gives one segment per
    class. Objects with fewer than 24 visible pixels and whatever the card does not name are void.

    Raises:
      UserError: an option of the card is missing or wrong.
    """
    by, object_class, stuff_class = _tables(card)
    objects = [
        object_class.get(" ".join(getattr(item, attribute) for attribute in by), VOID)
        if item.area >= SMALLEST
        else VOID
        for item in scene.objects
    ]
    # A pixel's kind: a stuff number first, then one number per object.
    kinds = np.where(scene.ids >= 0, scene.ids + len(STUFF), scene.stuff)
    area = np.bincount(kinds.ravel(), minlength=len(STUFF) + len(objects))
    classes, lookup, known = [], np.full(len(area), VOID, np.int32), {}
    for kind, class_index in enumerate([stuff_class.get(word, VOID) for word in STUFF] + objects):
        if class_index == VOID or not area[kind]:
            continue
        apart = card.task == "panoptic" and card.taxonomy.things[class_index]
        key = kind if apart else -1 - class_index
        if key not in known:
            known[key] = len(classes)
            classes.append(class_index)
        lookup[kind] = known[key]
    segments = lookup[kinds]
    return Sample(
        image=scene.image,
        segments=segments,
        classes=np.array(classes, np.int32),
        area=np.bincount(segments.ravel() + 1, minlength=len(classes) + 1)[1:].astype(np.int32),
        crowd=np.zeros(len(classes), bool),
        dataset=card.name,
        name=name,
    )


def _first_scenes(card: DatasetCard) -> dict[str, int]:
    """Index of the first scene of each split; the ranges of scenes do not meet."""
    first = _option(card, "first", dict)
    for split in card.splits:
        if not isinstance(first.get(split), int) or first[split] < 0:
            raise UserError(
                f"{card.path}: options.first.{split} is {first.get(split)!r}; "
                "give the index of the split's first scene, 0 or more"
            )
    order = sorted(card.splits, key=first.__getitem__)
    for one, other in pairwise(order):
        if first[one] + card.splits[one] > first[other]:
            raise UserError(
                f"{card.path}: options.first.{other} is {first[other]}, inside the scenes of "
                f"{one!r}; start at {first[one] + card.splits[one]} or later"
            )
    return first


def _tables(card: DatasetCard) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """The attributes that name objects, and the class index of each of their words and of stuff."""
    by = _option(card, "by", str)
    attributes = by.split()
    if not attributes or len(set(attributes)) < len(attributes) or set(attributes) - set(_WORDS):
        raise UserError(
            f"{card.path}: options.by is {by!r}; use one of {', '.join(_WORDS)},"
            " or several with spaces between them"
        )
    known = tuple(map(" ".join, product(*(_WORDS[attribute] for attribute in attributes))))
    return attributes, _table(card, "objects", known), _table(card, "stuff", STUFF)


def _table(card: DatasetCard, key: str, known: tuple[str, ...]) -> dict[str, int]:
    names = card.taxonomy.names
    for word, name in _option(card, key, dict).items():
        if word not in known:
            raise UserError(
                f"{card.path}: options.{key} has {word!r}; the renderer knows {', '.join(known)}"
            )
        if name not in names:
            raise UserError(
                f"{card.path}: options.{key}.{word} is {name!r}, which is none of the classes"
            )
    return {word: names.index(name) for word, name in card.options[key].items()}


def _option(card: DatasetCard, key: str, kind: type):
    if not isinstance(card.options.get(key), kind):
        found, expected = card.options.get(key), "a table" if kind is dict else "a word"
        raise UserError(f"{card.path}: options.{key} is {found!r}; a world card needs {expected}")
    return card.options[key]
