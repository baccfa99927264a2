"""What the augmentation draws, over 2,000 draws: each test fails once in 10,000 seeds."""

import numpy as np
import pytest
from scipy import stats

from lmseg_jax.datasets.recipe import DetrCrop, Recipe
from lmseg_jax.pipeline import augmentation, transforms

DRAWS = 2_000
SIDES = tuple(range(480, 801, 32))
DETR = DetrCrop((400, 500, 600), (384, 600))


def assert_even(values, outcomes):
    """Chi-square test that every outcome is equally likely and there is no other one."""
    counts = np.array([values.count(outcome) for outcome in outcomes])
    assert counts.sum() == len(values), set(values) - set(outcomes)
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-4, counts


def assert_uniform(values, low, high):
    """The same for real numbers, by Kolmogorov and Smirnov."""
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4


def assert_half(happened):
    assert stats.binomtest(sum(happened), len(happened)).pvalue > 1e-4, sum(happened)


def draw(function, *arguments, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [function(*arguments, rng=rng, **settings) for _ in range(DRAWS)]


def test_short_sides_are_drawn_evenly():
    sizes = draw(transforms.draw_size, (480, 640), short_sides=SIDES, max_side=1333)
    assert_even([size[0] for size in sizes], SIDES)
    assert {size[1] for size in sizes} == {round(side * 640 / 480) for side in SIDES}


def test_every_position_of_a_crop_is_equally_likely():
    windows = draw(transforms.draw_window, (10, 14), crop=(8, 4))
    corners = [(rows.start, columns.start) for rows, columns in windows]
    assert_even(corners, [(top, left) for top in range(3) for left in range(11)])
    assert {
        (rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows
    } == {(8, 4)}


def test_a_crop_larger_than_the_image_takes_the_whole_axis():
    windows = draw(transforms.draw_window, (3, 9), crop=(5, 8))
    assert {rows.start for rows, _ in windows} == {0}
    assert {rows.stop for rows, _ in windows} == {3}
    assert_even([columns.start for _, columns in windows], [0, 1])


@pytest.mark.parametrize(
    ("flip", "corners"), [("none", [0]), ("horizontal", [0, 3]), ("both", [0, 3, 8, 11])]
)
def test_each_axis_is_mirrored_half_of_the_times_image_and_segments_alike(flip, corners):
    segments = np.arange(12, dtype=np.int16).reshape(3, 4)
    image = np.repeat(segments[..., None], 3, axis=-1).astype(np.uint8)
    mirrored = {
        0: segments,
        3: segments[:, ::-1],
        8: segments[::-1],
        11: segments[::-1, ::-1],
    }
    seen = []
    for flipped, labels in draw(transforms.random_flip, image, segments, flip=flip):
        seen.append(int(labels[0, 0]))
        np.testing.assert_array_equal(labels, mirrored[seen[-1]])
        np.testing.assert_array_equal(flipped[..., 2], labels)
    assert_even(seen, corners)


@pytest.fixture(scope="module")
def jitter():
    """The names and values of the colour operators of 2,000 jitters, in order."""
    return draw(transforms.draw_jitter)


def test_each_colour_step_happens_half_of_the_times_in_one_of_two_orders(jitter):
    names = [tuple(name for name, _ in call) for call in jitter]
    for step in ("brightness", "contrast", "saturation", "hue"):
        assert_half([step in call for call in names])
    orders = (
        ("brightness", "contrast", "saturation", "hue"),
        ("brightness", "saturation", "hue", "contrast"),
    )
    full = [call for call in names if len(call) == 4]
    assert_even(full, orders)
    for call in names:
        assert any(call == tuple(step for step in order if step in call) for order in orders)
    subsets = [tuple(sorted(call)) for call in names]
    assert_even(subsets, sorted(set(subsets)))  # independent: all sixteen subsets alike
    assert len(set(subsets)) == 16


def test_colour_values_are_drawn_evenly_from_their_ranges(jitter):
    values = {}
    for name, value in (step for call in jitter for step in call):
        values.setdefault(name, []).append(value)
    assert_uniform(values["brightness"], -32, 32)
    assert_uniform(values["contrast"], 0.5, 1.5)
    assert_uniform(values["saturation"], 0.5, 1.5)
    assert_even(values["hue"], range(-18, 19))


@pytest.mark.parametrize("size", [(480, 640), (640, 427)])
def test_the_crop_of_detr_happens_half_of_the_times(size):
    assert_half([found is None for found in draw(transforms.draw_detr_crop, size, rule=DETR)])


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (900, 300)])
def test_the_crop_of_detr_is_drawn_evenly_in_all_its_parts(size):
    draws = [found for found in draw(transforms.draw_detr_crop, size, rule=DETR, seed=1) if found]
    short = min(size)
    assert_even([min(resized) for resized, _ in draws], DETR.short_sides)
    for axis in (0, 1):
        for side in DETR.short_sides:
            long = int(size[axis] * side / short + 0.5)
            windows = [window[axis] for resized, window in draws if min(resized) == side]
            low, high = min(384, long), min(600, long)
            lengths = [window.stop - window.start for window in windows]
            # a whole number evenly from low..high, spread over its unit, is a uniform number
            spread = np.random.default_rng(axis).random(len(lengths))
            assert min(lengths) >= low and max(lengths) <= high
            assert_uniform(np.array(lengths) + spread, low, high + 1)
            places = [
                (window.start + part) / (long - length + 1)
                for window, length, part in zip(windows, lengths, spread, strict=True)
            ]
            assert min(window.start for window in windows) >= 0
            assert_uniform(places, 0, 1)


def test_a_recipe_with_the_crop_of_detr_ends_with_the_same_resize_in_both_branches():
    canvas = (2016, 2016)  # holds everything, so nothing is made smaller for it
    recipe = Recipe(SIDES, 1333, canvas, False, "horizontal", ("flip", "detr_crop", "resize"), DETR)
    sizes = draw(augmentation.draw_final_size, recipe, (480, 640))
    short = [min(size) for size in sizes if max(size) < 1333]
    assert_even(short, SIDES)
    assert max(map(max, sizes)) <= 1333
    whole = [size == (min(size), round(min(size) * 640 / 480)) for size in sizes]
    # the other half is cut, and hardly ever to the shape that the image had
    assert 0.5 - 0.05 < np.mean(whole) < 0.5 + 0.07
