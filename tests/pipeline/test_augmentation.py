import dataclasses

import numpy as np
import pytest

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.augmentation import FIXED_RECIPE, augment, choose_recipe


def recipe(crop, *order, short_sides=(8,), flip="both", color=False):
    return Recipe(short_sides, 100, crop, color, flip, order)


def sample(segments, classes, crowd=()):
    """A sample whose image shows 10 + class in every channel, 0 where void."""
    segments = np.array(segments, np.int32)
    classes = np.array(classes, np.int32)
    shown = np.append(classes + 10, 0)[segments].astype(np.uint8)
    area = np.array([(segments == s).sum() for s in range(len(classes))], np.int32)
    return Sample(
        image=np.repeat(shown[..., None], 3, axis=-1),
        segments=segments,
        classes=classes,
        area=area,
        crowd=np.isin(np.arange(len(classes)), crowd),
        dataset="toy",
        name="one",
    )


def run(item, recipe, max_targets=4, seed=0):
    return augment(item, recipe, max_targets=max_targets, rng=np.random.default_rng(seed))


def test_a_crop_has_the_shape_and_types_of_a_batch_row():
    crop = run(sample([[0, 0], [1, -1]], [5, 3]), recipe((4, 3), "flip"))
    assert crop.image.shape == (4, 3, 3) and crop.image.dtype == np.uint8
    assert crop.segments.shape == (4, 3) and crop.segments.dtype == np.int16
    assert crop.classes.dtype == np.int32
    np.testing.assert_array_equal(crop.classes, [5, 3, -1, -1])
    assert crop.dropped == 0


def test_padding_and_void_stay_apart():
    crop = run(sample([[0, -1]], [5]), recipe((2, 3)))
    np.testing.assert_array_equal(crop.segments, [[0, -1, -2], [-2, -2, -2]])
    np.testing.assert_array_equal(crop.image[..., 0], [[15, 0, 128], [128, 128, 128]])


def test_segments_that_a_crop_does_not_show_are_dropped():
    item = sample([[0, 1, 2, 3]], [7, 6, 5, 4])
    for seed in range(20):
        crop = run(item, recipe((1, 2), "crop"), seed=seed)
        first = int(crop.image[0, 0, 0]) - 10
        np.testing.assert_array_equal(crop.segments, [[0, 1]])
        np.testing.assert_array_equal(crop.classes, [first, first - 1, -1, -1])
        assert crop.dropped == 0


def test_crowd_becomes_void_and_no_target():
    crop = run(sample([[0, 1, 2, -1]], [7, 6, 5], crowd=[1]), recipe((1, 4)))
    np.testing.assert_array_equal(crop.segments, [[0, -1, 1, -1]])
    np.testing.assert_array_equal(crop.classes, [7, 5, -1, -1])
    assert crop.dropped == 0


def test_the_largest_targets_stay_and_of_equal_ones_the_first():
    # areas: 1, 3, 2, 2, 3; the crowd of 4 does not count
    segments = [[0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5]]
    item = sample(segments, [9, 8, 7, 6, 5, 4], crowd=[5])
    crop = run(item, recipe((1, 15)), max_targets=3)
    void = -1
    np.testing.assert_array_equal(
        crop.segments, [[void, 0, 0, 0, 1, 1, void, void, 2, 2, 2, void, void, void, void]]
    )
    np.testing.assert_array_equal(crop.classes, [8, 7, 5])
    assert crop.dropped == 2


def test_area_is_counted_in_the_crop_not_in_the_image():
    item = sample([[0, 0, 0, 0, 0, 1, 1, 2]], [9, 8, 7])
    kept = set()
    for seed in range(30):
        crop = run(item, recipe((1, 4), "crop"), max_targets=1, seed=seed)
        shown = np.bincount(crop.image[0, :, 0], minlength=20)
        assert shown[crop.classes[0] + 10] == shown.max()
        kept.add(int(crop.classes[0]))
    assert kept == {9, 8}


def test_an_image_without_segments_is_all_void():
    crop = run(sample([[-1, -1]], []), recipe((1, 2), "flip"))
    np.testing.assert_array_equal(crop.segments, [[-1, -1]])
    np.testing.assert_array_equal(crop.classes, [-1, -1, -1, -1])


def test_targets_still_name_the_pixels_they_named():
    rng = np.random.default_rng(0)
    item = sample(np.kron(rng.integers(-1, 6, (4, 5)), np.ones((6, 6), int)), rng.permutation(6))
    for seed in range(20):
        crop = run(item, recipe((20, 20), "crop", "flip"), max_targets=6, seed=seed)
        names = np.append(crop.classes + 10, [128, 0])  # index -2 padding, -1 void
        np.testing.assert_array_equal(crop.image[..., 0], names[crop.segments])


def test_resize_comes_before_the_crop():
    item = sample(np.zeros((4, 4)), [2])
    crop = run(item, recipe((6, 6), "resize", "crop", short_sides=(8,)))
    np.testing.assert_array_equal(crop.segments, np.zeros((6, 6)))  # no padding was needed


@pytest.mark.parametrize("color", [False, True])
def test_colour_changes_only_where_the_recipe_says(color):
    item = sample([[0, 1], [0, 1]], [50, 90])
    crops = [run(item, recipe((2, 2), "color", color=color), seed=seed) for seed in range(8)]
    changed = [not np.array_equal(crop.image, item.image) for crop in crops]
    assert any(changed) == color


def test_an_image_larger_than_its_crop_is_the_cards_mistake():
    with pytest.raises(UserError, match=r"toy: one is 3x4 .* crop 3x3; add \"crop\""):
        run(sample(np.zeros((3, 4)), [1]), recipe((3, 3), "flip"))


def test_the_same_draws_give_the_same_crop():
    item = sample(np.arange(20).reshape(4, 5), np.arange(20))
    steps = recipe((3, 3), "resize", "crop", "color", "flip", short_sides=(3, 4, 5), color=True)
    first, second = (run(item, steps, max_targets=20, seed=3) for _ in range(2))
    for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_sample_is_not_changed():
    item = sample(np.arange(20).reshape(4, 5), np.arange(20))
    image, segments = item.image.copy(), item.segments.copy()
    steps = recipe((4, 5), "crop", "color", "flip", color=True)
    for seed in range(8):
        run(item, steps, seed=seed)
    np.testing.assert_array_equal(item.image, image)
    np.testing.assert_array_equal(item.segments, segments)


def test_the_fixed_recipe_has_the_short_sides_of_ade20k():
    assert FIXED_RECIPE.short_sides == (
        *(256, 307, 358, 409, 460, 512, 563, 614),
        *(665, 716, 768, 819, 870, 921, 972, 1024),
    )


def test_an_augmentation_is_the_cards_own_or_one_for_all():
    class Card:
        train = recipe((2, 2), "flip")

    assert choose_recipe(Card, "own") is Card.train
    assert choose_recipe(Card, "fixed") is FIXED_RECIPE
    assert choose_recipe(Card, "cityscapes") == load_card("cityscapes").train
    with pytest.raises(UserError, match="other"):
        choose_recipe(Card, "other")
