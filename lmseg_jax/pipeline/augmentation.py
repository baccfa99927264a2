"""A_i: how the samples of each dataset become training crops of one shape (Sec. 3.5)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmseg_jax.datasets.card import DatasetCard, load_card
from lmseg_jax.datasets.recipe import Recipe
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
    """The recipe of a card under `data.augmentation`.

    Args:
      card: whose images are augmented.
      augmentation: "own": the card's; "fixed": `FIXED_RECIPE`; or a card, whose recipe all take.

    Raises:
      UserError: there is no such card, or it has no images and thus no recipe.
    """
    if augmentation == "fixed":
        return FIXED_RECIPE
    whose = card if augmentation == "own" else load_card(augmentation)
    if whose.train is None:
        raise UserError(f"{whose.path}: has names and no images, so it cannot be trained on")
    return whose.train


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
    for _, step in steps(recipe):
        image, segments = step(image, segments, recipe, rng)
    return finish(image, segments, sample=sample, recipe=recipe, max_targets=max_targets)


def steps(recipe: Recipe) -> list[tuple[str, Callable]]:
    """(name, step) in order; a step maps (image, segments, recipe, rng) to (image, segments).

    "resize" and a "crop" right after it are one step, "resize_crop".
    """
    names = []
    for name in recipe.order:
        if name == "crop" and names[-1:] == ["resize"]:
            names[-1] = "resize_crop"
        else:
            names.append(name)
    return [(name, STEPS[name]) for name in names]


def finish(
    image: np.ndarray, segments: np.ndarray, *, sample: Sample, recipe: Recipe, max_targets: int
) -> Crop:
    """Pads to `recipe.crop` and keeps the visible segments, at most `max_targets`; see `augment`.

    Raises:
      UserError: the image is larger than the crop.
    """
    height, width = segments.shape
    if height > recipe.crop[0] or width > recipe.crop[1]:
        raise UserError(
            f"{sample.dataset}: {sample.name} is {height}x{width} after augmentation, larger than "
            f'the crop {recipe.crop[0]}x{recipe.crop[1]}; add "crop" to the card\'s train.order'
        )
    image, segments = transforms.pad(image, segments, size=recipe.crop)
    return _keep_targets(image, segments, sample, max_targets)


def draw_final_size(recipe: Recipe, size: tuple[int, int], *, rng: np.random.Generator) -> tuple:
    """(height, width) of what the steps may leave of an image of this size, before it is padded."""
    for name in recipe.order:
        if name == "detr_crop":
            drawn = transforms.draw_detr_crop(size, rule=recipe.detr_crop, rng=rng)
            size = size if drawn is None else tuple(part.stop - part.start for part in drawn[1])
        elif name == "resize":
            size = draw_size(size, recipe, rng)
        elif name == "crop":
            size = tuple(min(pair) for pair in zip(size, recipe.crop, strict=True))
    return size


def draw_size(size: tuple[int, int], recipe: Recipe, rng: np.random.Generator) -> tuple[int, int]:
    """(height, width) that the step "resize" gives an image of this size."""
    size = transforms.draw_size(
        size, short_sides=recipe.short_sides, max_side=recipe.max_side, rng=rng
    )
    return size if recipe.detr_crop is None else transforms.fit(size, recipe.crop)


def _resize(image, segments, recipe, rng):
    size = draw_size(segments.shape, recipe, rng)
    return transforms.resize(image, segments, size=size)


def _crop(image, segments, recipe, rng):
    window = transforms.draw_window(segments.shape, crop=recipe.crop, rng=rng)
    return image[window], segments[window]


def _resize_crop(image, segments, recipe, rng):
    size = draw_size(segments.shape, recipe, rng)
    window = transforms.draw_window(size, crop=recipe.crop, rng=rng)
    return transforms.resize(image, segments, size=size, window=window)


def _detr_crop(image, segments, recipe, rng):
    drawn = transforms.draw_detr_crop(segments.shape, rule=recipe.detr_crop, rng=rng)
    if drawn is None:
        return image, segments
    return transforms.resize(image, segments, size=drawn[0], window=drawn[1])


def _color(image, segments, recipe, rng):
    return (transforms.color_jitter(image, rng=rng) if recipe.color else image), segments


def _flip(image, segments, recipe, rng):
    return transforms.random_flip(image, segments, flip=recipe.flip, rng=rng)


STEPS = {
    "resize": _resize,
    "crop": _crop,
    "resize_crop": _resize_crop,
    "detr_crop": _detr_crop,
    "color": _color,
    "flip": _flip,
}


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
    return Crop(np.ascontiguousarray(image), table.take(shifted), classes, dropped)
