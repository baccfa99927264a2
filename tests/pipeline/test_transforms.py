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


def test_padding_is_128_and_minus_2_at_the_bottom_right():
    image, segments = coordinates(2, 3)
    padded, labels = transforms.pad(image, segments, size=(3, 5))
    assert padded.dtype == np.uint8
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(padded[:2, :3], image)
    np.testing.assert_array_equal(labels[:2, :3], segments)
    assert (padded[2:] == 128).all() and (padded[:, 3:] == 128).all()
    assert (labels[2:] == -2).all() and (labels[:, 3:] == -2).all()


def linear(pixels, size):
    """Linear interpolation between pixel centres, borders repeated, as plain NumPy."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(place.astype(int), max(old - 2, 0))
        part = (place - low).reshape([-1 if axis == a else 1 for a in range(3)])
        high = np.minimum(low + 1, old - 1)
        pixels = pixels.take(low, axis) * (1 - part) + pixels.take(high, axis) * part
    return pixels


def area(pixels, size):
    """Mean over the rectangle that a new pixel covers, as plain NumPy."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        edges = np.arange(new + 1) * old / new
        left, right = edges[:-1, None], edges[1:, None]
        cover = np.clip(
            np.minimum(right, np.arange(old) + 1) - np.maximum(left, np.arange(old)), 0, 1
        )
        pixels = np.moveaxis(np.tensordot(cover * new / old, pixels, (1, axis)), 0, axis)
    return pixels


def triangle(pixels, size):
    """Triangle filter as wide as the shrinking asks, weights cut at the border, as plain NumPy."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        reach = max(1.0, old / new)
        centres = (np.arange(new) + 0.5) * old / new
        weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / reach)
        weights /= weights.sum(axis=1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


def to_hsv(rgb):
    """OpenCV's byte HSV by its formula: V the largest, S = 255 (V - min) / V, H in 2 degrees."""
    rgb = rgb.astype(float)
    value, spread = rgb.max(axis=-1), np.ptp(rgb, axis=-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.where(spread == 0, 1, spread)
    hue = np.select(
        [spread == 0, value == red, value == green],
        [0, (green - blue) / safe, 2 + (blue - red) / safe],
        4 + (red - green) / safe,
    )
    saturation = np.where(value == 0, 0, 255 * spread / np.where(value == 0, 1, value))
    return np.floor(30 * hue + 0.5) % 180, np.floor(saturation + 0.5), value


def to_rgb(hue, saturation, value):
    """The inverse: sector of 60 degrees, and the three levels in it."""
    sector, part = np.divmod(hue / 30, 1)
    down = value * (1 - saturation / 255)
    falling = value * (1 - saturation / 255 * part)
    rising = value * (1 - saturation / 255 * (1 - part))
    levels = {"v": value, "d": down, "f": falling, "r": rising}
    names = ("vrd", "fvd", "dvr", "dfv", "rdv", "vdf")
    return np.stack(
        [
            np.select([sector == i for i in range(6)], [levels[n[c]] for n in names])
            for c in range(3)
        ],
        axis=-1,
    )


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("size", [(20, 30), (33, 28), (13, 17), (23, 31), (12, 40)])
def test_resizing_interpolates_linearly_down_to_one_half(size):
    image = pixels(23, 31)
    found, _ = transforms.resize(image, np.zeros((23, 31), np.int16), size=size)
    np.testing.assert_allclose(found, linear(image.astype(float), size), atol=1)


@pytest.mark.parametrize("size", [(11, 31), (20, 15), (7, 9), (1, 1)])
def test_resizing_averages_over_areas_below_one_half(size):
    image = pixels(23, 31)
    found, _ = transforms.resize(image, np.zeros((23, 31), np.int16), size=size)
    np.testing.assert_allclose(found, area(image.astype(float), size), atol=1)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((60, 70), (5, 55), (3, 66)),  # most of the image: resized whole and cut
        ((200, 170), (150, 190), (0, 20)),  # a small part: only that is computed
        ((200, 170), (0, 30), (130, 170)),
        ((23, 31), (2, 9), (30, 31)),  # as it is
        ((11, 15), (2, 3), (4, 5)),  # averaged
    ],
)
def test_a_window_shows_what_the_whole_image_shows_there(size, rows, columns):
    image, segments = pixels(23, 31), coordinates(23, 31)[1]
    window = (slice(*rows), slice(*columns))
    whole, labels = transforms.resize(image, segments, size=size)
    part, part_labels = transforms.resize(image, segments, size=size, window=window)
    np.testing.assert_array_equal(part_labels, labels[window])
    np.testing.assert_allclose(part.astype(int), whole[window].astype(int), atol=1)


def test_a_window_of_an_image_with_a_very_long_side():
    image = np.repeat(pixels(4, 40_000)[:, :, :1], 3, axis=-1)
    window = (slice(0, 8), slice(79_000, 79_100))
    segments = np.zeros((4, 40_000), np.int16)
    part, _ = transforms.resize(image, segments, size=(8, 80_000), window=window)
    expected = linear(image[:, 39_400:].astype(float), (8, 1200))[:, 200:300]
    np.testing.assert_allclose(part, expected, atol=1)


def assert_within_rounding(found, expected):
    """OpenCV's fixed point rounds 2 % of the hues to the other side: one step is 8.5 at most."""
    error = np.abs(found - expected)
    assert error.max() < 8.5 + 2
    assert (error < 2).mean() > 0.98


def test_saturation_and_hue_are_those_of_byte_hsv():
    image = pixels(60, 50)
    hue, saturation, value = to_hsv(image)
    for scale in (0.5, 0.9, 1.5):
        changed = np.trunc(np.clip(saturation * scale, 0, 255))
        expected = to_rgb(hue, changed, value)
        assert_within_rounding(transforms.scale_saturation(image, scale=scale), expected)
    for shift in (-18, 7, 18):
        expected = to_rgb((hue + shift) % 180, saturation, value)
        assert_within_rounding(transforms.shift_hue(image, shift=shift), expected)


@pytest.mark.parametrize("shift", [-31.7, 0.0, 12.4])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.37])
def test_arithmetic_is_that_of_real_numbers_then_clipped_and_truncated(scale, shift):
    image = pixels(9, 8)
    expected = np.clip(image * scale + shift, 0, 255).astype(np.uint8)
    found = transforms.scale_and_shift(image, scale=scale, shift=shift)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "canvas", "expected"),
    [
        ((800, 1333), (800, 1344), (800, 1333)),
        ((1000, 800), (800, 1344), (800, 640)),
        ((700, 1400), (800, 1344), (672, 1344)),
        ((1333, 801), (1344, 800), (1331, 800)),  # 1331.3
    ],
)
def test_what_a_canvas_cannot_hold_is_made_smaller_in_its_shape(size, canvas, expected):
    assert transforms.fit(size, canvas) == expected


def test_evaluation_filters_with_a_triangle():
    image = pixels(23, 31)
    for rule in (card.TestRule(short_side=10, max_side=100), card.TestRule(40, 100)):
        found = transforms.test_resize(image, rule)
        expected = triangle(image.astype(float), found.shape[:2])
        np.testing.assert_allclose(found, expected, atol=1)


def test_evaluation_averages_where_it_shrinks():
    image = gray([[0, 0, 0, 175]] * 4)
    resized = transforms.test_resize(image, card.TestRule(short_side=2, max_side=10))
    # triangle of half width 2 around the centres 1 and 3: weights 3, 3, 1 and 1, 3, 3 of 7
    np.testing.assert_array_equal(resized[..., 0], [[0, 75], [0, 75]])


def test_evaluation_keeps_an_image_of_the_right_size():
    image = coordinates(4, 6)[0]
    rule = card.TestRule(short_side=4, max_side=6)
    np.testing.assert_array_equal(transforms.test_resize(image, rule), image)
