"""What every source of samples is, and what readers of annotation formats have in common.

A source is random access to the samples of a split: `__len__`, `__getitem__ -> Sample` and
`files(index)`; it can be pickled.
"""

from typing import Protocol

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.sample import VOID, Sample, runs
from lmseg_jax.errors import UserError


class Source(Protocol):
    """Random access to the annotated images of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def files(self, index: int) -> tuple[str, ...]: ...


class UnmappedLabel(UserError):
    """A label file holds ids or colours that are neither a class nor void; `values` has them."""

    values: tuple = ()


class First:
    """The first samples of a source; see `first`."""

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


def first(source: Source, limit: int) -> Source:
    """The first `limit` samples of a source; all of them where it has no more, or with 0."""
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
    flat = classes.ravel()
    starts, lengths = runs(flat)
    first = flat[starts]
    count = np.bincount(first + 1, lengths, minlength=len(card.taxonomy) + 1)[1:]
    present = np.flatnonzero(count)
    lookup = np.full(len(card.taxonomy) + 1, VOID, np.int32)  # index -1 reads the last row
    lookup[present] = np.arange(len(present))
    return Sample(
        image=image,
        segments=np.repeat(lookup[first], lengths).reshape(classes.shape),
        classes=present.astype(np.int32),
        area=count[present].astype(np.int32),
        crowd=np.zeros(len(present), bool),
        dataset=card.name,
        name=name,
    )
