"""ADE20K's scene parsing labels together with its instances."""

from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.file_source import FileSource, class_table, shortened, to_classes
from lmseg_jax.datasets.images import read_colors, read_indices
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.errors import UserError

CATEGORIES = 100  # that have instances: category j of a file is the j-th thing of the card


class Instances(FileSource):
    """Stuff of the scene parsing labels, and over it every instance.

    `labels` are the PNGs of the semantic task. `instances` are RGB PNGs: red is the category of an
    instance, 1..100, green its number, 1..255, 0 where there is none. Pixels of a thing without an
    instance are void. The area of stuff is what it covers before instances are painted over it,
    and stuff that they cover wholly stays a segment: so it is in the files that others score with.
    Nothing is a crowd. Stuff comes first, by class, then instances by number.
    """

    task = "panoptic"
    needs = ("images", "labels", "instances")

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        things = np.flatnonzero(card.taxonomy.things)
        if len(things) != CATEGORIES:
            raise UserError(
                f"{card.path}: {len(things)} classes are things; {card.format} needs the "
                f"{CATEGORIES} of ADE20K, in their order"
            )
        super().__init__(card, split, root=root)
        self._table = class_table(card)
        self._things = things.astype(np.int32)

    def annotate(self, index: int, image: np.ndarray, name: str, *paths: Path) -> Sample:
        classes = to_classes(read_indices(paths[0]), self._table, card=self.card, path=paths[0])
        pairs = read_colors(paths[1])
        if pairs.shape[:2] != classes.shape:
            sizes = ["{1}x{0}".format(*array.shape) for array in (classes, pairs)]
            raise UserError(
                f"{paths[0]} is {sizes[0]}, but its instances {paths[1]} are {sizes[1]}; they must "
                "have the same size"
            )
        numbers, categories = _instances(pairs, paths[1])
        instances = pairs[..., 1]
        areas = np.bincount(instances.ravel(), minlength=256)[numbers]

        covered = np.bincount(classes.ravel() + 1, minlength=len(self.card.taxonomy) + 1)[1:]
        stuff = np.flatnonzero((covered > 0) & ~self.card.taxonomy.things)
        of_class = np.full(len(self.card.taxonomy) + 1, VOID, np.int32)  # void reads the last row
        of_class[stuff] = np.arange(len(stuff))
        of_instance = np.full(256, VOID, np.int32)
        of_instance[numbers] = len(stuff) + np.arange(len(numbers))
        return Sample(
            image=image,
            segments=np.where(instances > 0, of_instance[instances], of_class[classes]),
            classes=np.concatenate([stuff, self._things[categories - 1]]).astype(np.int32),
            area=np.concatenate([covered[stuff], areas]).astype(np.int32),
            crowd=np.zeros(len(stuff) + len(numbers), bool),
            dataset=self.card.name,
            name=name,
        )


def _instances(pairs: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Number and category of each instance, int64 [N] each."""
    codes = pairs[..., 1].astype(np.int32) << 8 | pairs[..., 0]
    present = np.flatnonzero(np.bincount(codes.ravel()))
    numbers, categories = present >> 8, present & 255
    numbers, categories = numbers[numbers > 0], categories[numbers > 0]
    wrong = np.unique(categories[(categories < 1) | (categories > CATEGORIES)])
    if len(wrong):
        raise UserError(
            f"{path}: instances of category {shortened(wrong.tolist())}; expected 1 to "
            f"{CATEGORIES} in red where green is not 0, as in annotations_instance of ADE20K"
        )
    twice = np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
    if len(twice):
        raise UserError(
            f"{path}: instance {shortened(twice.tolist())} has pixels of several categories; "
            "expected one category (red) for each number (green); restore the file"
        )
    return numbers, categories
