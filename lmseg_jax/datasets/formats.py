"""One source for each annotation format.

A format is a function that returns a `Source`; FORMATS finds it by the name that a card gives.
Each reader lies in a module of its own, which is imported when a card asks for it.
"""

from collections.abc import Callable
from pathlib import Path

from lmseg_jax.datasets.card import NAMES_ONLY, DatasetCard
from lmseg_jax.datasets.source import Source, first
from lmseg_jax.errors import UserError


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
    return first(FORMATS[card.format](card, split, root=root), limit)
