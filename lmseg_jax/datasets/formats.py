"""One source for each annotation format: random access to the samples of a split.

A format is a function that returns a source; FORMATS finds it by the name that a card gives. A
source has `__len__`, `__getitem__ -> Sample` and `files(index)`, and can be pickled. Each reader
lies in a module of its own, which is imported when a card asks for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from lmseg_jax.datasets.card import NAMES_ONLY, DatasetCard
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


def open_label_png(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """Label PNGs that hold the card's ids."""
    from lmseg_jax.datasets.label_png import LabelPng

    return LabelPng(card, split, root=root)


def open_color_png(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """Label PNGs whose colours are those of the card's classes."""
    from lmseg_jax.datasets.label_png import ColorPng

    return ColorPng(card, split, root=root)


def open_panoptic_png(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """COCO's panoptic format: segment ids in PNGs, their classes in one JSON file."""
    from lmseg_jax.datasets.panoptic_png import PanopticPng

    return PanopticPng(card, split, root=root)


def open_cityscapes(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """Cityscapes' labelIds for a semantic card, its instanceIds for a panoptic one."""
    from lmseg_jax.datasets.cityscapes import InstanceIds
    from lmseg_jax.datasets.label_png import LabelPng

    kind = InstanceIds if card.task == "panoptic" else LabelPng
    return kind(card, split, root=root)


def open_ade20k_instances(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """ADE20K's scene parsing labels with its instances painted over them."""
    from lmseg_jax.datasets.ade20k import Instances

    return Instances(card, split, root=root)


def open_coco_stuff_mat(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """The .mat files of COCO-Stuff 10K, release v1.0 or v1.1."""
    from lmseg_jax.datasets.coco_stuff import StuffMat

    return StuffMat(card, split, root=root)


def open_tfds(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """A dataset that TFDS prepared as ArrayRecord."""
    from lmseg_jax.datasets.tfds_source import TfdsSource

    return TfdsSource(card, split, root=root)


def open_world(card: DatasetCard, split: str, *, root: str | Path) -> Source:
    """The rendered scenes of a world card; the root is not read."""
    from lmseg_jax.datasets.world import WorldSource

    return WorldSource(card, split)


FORMATS: dict[str, Callable[..., Source]] = {
    "label_png": open_label_png,
    "color_png": open_color_png,
    "panoptic_png": open_panoptic_png,
    "cityscapes": open_cityscapes,
    "ade20k_instances": open_ade20k_instances,
    "coco_stuff_mat": open_coco_stuff_mat,
    "tfds": open_tfds,
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
    if card.format == NAMES_ONLY:
        raise UserError(
            f"{card.path}: format is {NAMES_ONLY!r}: it has names and no images; it can be asked"
            " for (`lmseg predict --taxonomy`), not trained or scored"
        )
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
