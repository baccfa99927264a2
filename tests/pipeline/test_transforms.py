import cv2
import numpy as np
import pytest

from lmseg_jax.datasets import card
from lmseg_jax.pipeline import transforms


class Script:
    """A generator that returns what it is told, in turn."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)

    def uniform(self, low, high):
        assert low <= self.values[0] <= high
        return self.values.pop(0)

    def integers(self, low, high):
        assert low <= self.values[0] < high
        return self.values.pop(0)


def coordinates(height, width):
    """Image whose pixels say where they were, and segments that say it too."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return image, (rows * width + columns).astype(np.int16)


def gray(rows):
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("size", "short_side", "max_side", "expected"),
    [
        ((512, 683), 512, 2048, (512, 683)),
        ((640, 480), 800, 1333, (1067, 800)),  # 1066.67
        ((300, 900), 800, 1333, (444, 1333)),  # 800 x 2400, both times 1333 / 2400
        ((1024, 2048), 512, 4096, (512, 1024)),
        ((10, 4), 1, 100, (3, 1)),  # 2.5 goes up
        ((1000, 2), 1, 100, (100, 1)),  # 0.2 would be no pixel at all
    ],
)
def test_the_short_side_is_met_unless_the_long_one_is_too_long(
    size, short_side, max_side, expected
):
    found = transforms.short_edge_size(*size, short_side=short_side, max_side=max_side)
    assert found == expected


@pytest.mark.parametrize(("old", "new"), [(5, 2), (2, 5), (7, 7), (100, 40), (9, 4)])
def test_labels_are_sampled_at_pixel_centres(old, new):
    image, segments = coordinates(old, 1)
    _, resized = transforms.resize(image, segments, size=(new, 1))
    expected = [int((2 * i + 1) * old // (2 * new)) for i in range(new)]
    np.testing.assert_array_equal(resized[:, 0], expected)


def test_images_grow_linearly():
    image, segments = gray([[0, 100], [0, 100]]), np.zeros((2, 2), np.int16)
    resized, _ = transforms.resize(image, segments, size=(2, 4))
    np.testing.assert_array_equal(resized[0, :, 0], [0, 25, 75, 100])


def test_images_that_shrink_much_are_averaged_over_areas():
    image, segments = gray([[0, 0, 0, 100]] * 4), np.zeros((4, 4), np.int16)
    resized, _ = transforms.resize(image, segments, size=(1, 1))
    np.testing.assert_array_equal(resized[0, 0], [25, 25, 25])


def test_short_sides_are_drawn_evenly():
    rng = np.random.default_rng(0)
    image, segments = coordinates(2, 2)
    sides = [
        len(
            transforms.random_resize(image, segments, short_sides=(2, 3, 5), max_side=9, rng=rng)[0]
        )
        for _ in range(600)
    ]
    for side in (2, 3, 5):
        assert 160 < sides.count(side) < 240  # 200 +- 3.5 sigma


def test_every_position_of_a_crop_is_equally_likely():
    rng = np.random.default_rng(0)
    image, segments = coordinates(3, 4)
    corners = []
    for _ in range(600):
        cropped, labels = transforms.random_crop(image, segments, crop=(2, 2), rng=rng)
        assert labels.shape == (2, 2)
        np.testing.assert_array_equal(labels, 4 * cropped[..., 0].astype(int) + cropped[..., 1])
        corners.append(int(labels[0, 0]))
    for corner in (0, 1, 2, 4, 5, 6):
        assert 65 < corners.count(corner) < 135  # 100 +- 3.8 sigma


def test_a_crop_larger_than_the_image_takes_the_whole_axis():
    image, segments = coordinates(3, 4)
    cropped, labels = transforms.random_crop(
        image, segments, crop=(5, 2), rng=np.random.default_rng(0)
    )
    assert cropped.shape == (3, 2, 3)
    assert labels.shape == (3, 2)


@pytest.mark.parametrize(
    ("flip", "corners"), [("none", {0}), ("horizontal", {0, 3}), ("both", {0, 3, 8, 11})]
)
def test_flips_mirror_image_and_segments_alike(flip, corners):
    rng = np.random.default_rng(0)
    image, segments = coordinates(3, 4)
    seen = []
    for _ in range(400):
        flipped, labels = transforms.random_flip(image, segments, flip=flip, rng=rng)
        np.testing.assert_array_equal(labels, 4 * flipped[..., 0].astype(int) + flipped[..., 1])
        seen.append(int(labels[0, 0]))
    assert set(seen) == corners
    for corner in corners:
        assert abs(seen.count(corner) - 400 / len(corners)) < 40


def test_arithmetic_clips_and_truncates():
    image = np.array([[[0, 3, 250]]], np.uint8)
    shifted = transforms.scale_and_shift(image, shift=10.9)
    np.testing.assert_array_equal(shifted, [[[10, 13, 255]]])
    np.testing.assert_array_equal(transforms.scale_and_shift(image, shift=-4.0), [[[0, 0, 246]]])
    np.testing.assert_array_equal(transforms.scale_and_shift(image, scale=0.5), [[[0, 1, 125]]])


@pytest.mark.parametrize(("shift", "expected"), [(60, (0, 255, 0)), (-60, (0, 0, 255))])
def test_hue_turns_red_by_two_degrees_a_step(shift, expected):
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    np.testing.assert_array_equal(transforms.shift_hue(red, shift=shift)[0, 0], expected)


def test_saturation_fades_to_white_and_leaves_gray():
    image = np.array([[[255, 0, 0], [90, 90, 90]]], np.uint8)
    faded = transforms.scale_saturation(image, scale=0.0)
    np.testing.assert_array_equal(faded, [[[255, 255, 255], [90, 90, 90]]])


@pytest.mark.parametrize("contrast_first", [True, False])
def test_the_jitter_runs_its_steps_in_either_order(contrast_first):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)

    def contrast(pixels):
        return np.clip(pixels.astype(float) * 1.4, 0, 255).astype(np.uint8)

    def saturation(pixels):
        hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = np.clip(hsv[..., 1].astype(float) * 0.6, 0, 255).astype(np.uint8)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def hue(pixels):
        hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) - 11) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    pixels = np.clip(image[..., ::-1].astype(float) + 20.5, 0, 255).astype(np.uint8)  # BGR
    rest = [0.0, 0.6, 0.0, -11]  # saturation, hue; heads is below one half
    if contrast_first:
        steps, script = (contrast, saturation, hue), [0.0, 20.5, 0.0, 0.0, 1.4, *rest]
    else:
        steps, script = (saturation, hue, contrast), [0.0, 20.5, 0.9, *rest, 0.0, 1.4]
    for step in steps:
        pixels = step(pixels)
    script = Script(*script)
    np.testing.assert_array_equal(transforms.color_jitter(image, rng=script), pixels[..., ::-1])
    assert script.values == []


def test_the_jitter_leaves_one_image_in_sixteen_alone():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    same = sum(np.array_equal(transforms.color_jitter(image, rng=rng), image) for _ in range(1600))
    assert 65 < same < 145  # 100 +- 3.6 sigma, and a few draws that change nothing


def test_padding_is_128_and_minus_2_at_the_bottom_right():
    image, segments = coordinates(2, 3)
    padded, labels = transforms.pad(image, segments, size=(3, 5))
    assert padded.dtype == np.uint8
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(padded[:2, :3], image)
    np.testing.assert_array_equal(labels[:2, :3], segments)
    assert (padded[2:] == 128).all() and (padded[:, 3:] == 128).all()
    assert (labels[2:] == -2).all() and (labels[:, 3:] == -2).all()


def test_evaluation_averages_where_it_shrinks():
    image = gray([[0, 0, 0, 175]] * 4)
    resized = transforms.test_resize(image, card.TestRule(short_side=2, max_side=10))
    # triangle of half width 2 around the centres 1 and 3: weights 3, 3, 1 and 1, 3, 3 of 7
    np.testing.assert_array_equal(resized[..., 0], [[0, 75], [0, 75]])


def test_evaluation_keeps_an_image_of_the_right_size():
    image = coordinates(4, 6)[0]
    rule = card.TestRule(short_side=4, max_side=6)
    np.testing.assert_array_equal(transforms.test_resize(image, rule), image)
