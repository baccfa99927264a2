"""A_i: how the samples of each dataset become training crops of one shape (Sec. 3.5)."""

from dataclasses import dataclass

import numpy as np

from lmseg_jax.datasets.card import DatasetCard, Recipe
from lmseg_jax.datasets.sample import PADDING, VOID, Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline import transforms

# The ablation without dataset-aware augmentation: what the authors' release does to every dataset.
FIXED_RECIPE = Recipe(
    short_sides=tuple(512 * tenths // 10 for tenths in range(5, 21)),
    max_side=2048,
    crop=(512, 512),
    color=True,
    flip="horizontal",
    order=("resize", "crop", "color", "flip"),
)


@dataclass(frozen=True)
class Crop:
    """One training example.

    Attributes:
      image: uint8 [h, w, 3], RGB, 128 where padded; (h, w) is the recipe's crop.
      segments: int16 [h, w], index into `classes`, -1 void, -2 padding.
      classes: int32 [T], class index 0..K-1 of each target, -1 where unused.
      dropped: visible segments that were more than T and became void.
    """

    image: np.ndarray
    segments: np.ndarray
    classes: np.ndarray
    dropped: int


def choose_recipe(card: DatasetCard, augmentation: str) -> Recipe:
    """The recipe of a card under `data.augmentation`: "own" or "fixed".

    Raises:
      UserError: another word.
    """
    recipes = {"own": card.train, "fixed": FIXED_RECIPE}
    if augmentation not in recipes:
        known = ", ".join(recipes)
        raise UserError(f'data.augmentation = "{augmentation}" is unknown; use one of: {known}')
    return recipes[augmentation]


def augment(sample: Sample, recipe: Recipe, *, max_targets: int, rng: np.random.Generator) -> Crop:
    """Applies the steps of `recipe.order`, pads to `recipe.crop` and re-indexes what is visible.

    Crowd segments become void. Segments that the crop does not show are dropped and the others
    keep their order. Of more than `max_targets`, the largest by visible area stay, of equal ones
    those that come first in the sample; the pixels of the others become void.

    Args:
      max_targets: T, length of `classes`.
      rng: source of all randomness.

    Returns:
      The crop.

    Raises:
      UserError: the steps leave an image that is larger than the crop.
    """
    image, segments = sample.image, sample.segments.astype(np.int16)
    for step in recipe.order:
        image, segments = STEPS[step](image, segments, recipe, rng)
    height, width = segments.shape
    if height > recipe.crop[0] or width > recipe.crop[1]:
        raise UserError(
            f"{sample.dataset}: {sample.name} is {height}x{width} after augmentation, larger than "
            f'the crop {recipe.crop[0]}x{recipe.crop[1]}; add "crop" to the card\'s train.order'
        )
    image, segments = transforms.pad(image, segments, size=recipe.crop)
    return _keep_targets(image, segments, sample, max_targets)


def _resize(image, segments, recipe, rng):
    return transforms.random_resize(
        image, segments, short_sides=recipe.short_sides, max_side=recipe.max_side, rng=rng
    )


def _crop(image, segments, recipe, rng):
    return transforms.random_crop(image, segments, crop=recipe.crop, rng=rng)


def _color(image, segments, recipe, rng):
    return (transforms.color_jitter(image, rng=rng) if recipe.color else image), segments


def _flip(image, segments, recipe, rng):
    return transforms.random_flip(image, segments, flip=recipe.flip, rng=rng)


STEPS = {"resize": _resize, "crop": _crop, "color": _color, "flip": _flip}


def _keep_targets(
    image: np.ndarray, segments: np.ndarray, sample: Sample, max_targets: int
) -> Crop:
    """The crop whose segments are the visible ones, at most `max_targets`."""
    count = len(sample.classes)
    shifted = segments - np.int16(PADDING)  # 0 padding, 1 void, 2 and up the segments
    visible = np.bincount(shifted.ravel(), minlength=count + 2)[2:]
    visible[sample.crowd] = 0
    kept = np.flatnonzero(visible)
    dropped = max(0, len(kept) - max_targets)
    if dropped:
        largest = np.lexsort((kept, -visible[kept]))[:max_targets]
        kept = np.sort(kept[largest])
    table = np.full(count + 2, VOID, np.int16)
    table[0] = PADDING
    table[2 + kept] = np.arange(len(kept))
    classes = np.full(max_targets, -1, np.int32)
    classes[: len(kept)] = sample.classes[kept]
    return Crop(np.ascontiguousarray(image), table[shifted], classes, dropped)
