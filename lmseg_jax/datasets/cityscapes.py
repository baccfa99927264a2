"""Cityscapes' instanceIds: classes and instances in one PNG."""

from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.file_source import UNMAPPED, FileSource, class_table, unmapped
from lmseg_jax.datasets.images import read_indices
from lmseg_jax.datasets.sample import VOID, Sample

FIRST_INSTANCE = 1000  # an instance is its label id * 1000 + a number


class InstanceIds(FileSource):
    """PNGs of 16 bits whose values are label ids, or label id * 1000 + number of an instance.

    A value below 1000 is a whole region: of a thing class, a group of instances that are not told
    apart (crowd). Values of void labels become void. Segments are in the order of their values, and
    areas are the visible ones, as Cityscapes' own panoptic files have them.
    """

    task = "panoptic"

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        super().__init__(card, split, root=root)
        self._table = class_table(card)

    def annotate(self, index: int, image: np.ndarray, name: str, *paths: Path) -> Sample:
        values = read_indices(paths[0])
        count = np.bincount(values.ravel())
        present = np.flatnonzero(count)
        labels = np.where(present < FIRST_INSTANCE, present, present // FIRST_INSTANCE)
        classes = self._table[labels]
        wrong = np.unique(labels[classes == UNMAPPED])
        if len(wrong):
            raise unmapped(self.card, paths[0], "label id", tuple(map(int, wrong)))
        present, classes = present[classes != VOID], classes[classes != VOID]
        lookup = np.full(len(count), VOID, np.int32)
        lookup[present] = np.arange(len(present))
        return Sample(
            image=image,
            segments=lookup[values],
            classes=classes,
            area=count[present].astype(np.int32),
            crowd=(present < FIRST_INSTANCE) & self.card.taxonomy.things[classes],
            dataset=self.card.name,
            name=name,
        )
