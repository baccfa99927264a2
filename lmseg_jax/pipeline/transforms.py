"""Resize, crop, colour, flip and pad: functions of arrays, all randomness from a NumPy Generator.

`image` is uint8 [H, W, 3], RGB; `segments` is int16 [H, W], -1 where void. Nothing is changed in
place. Numbers are those of MaskFormer's mappers, which the paper builds on (Sec. 4.1).
"""

import cv2
import numpy as np
from PIL import Image

from lmseg_jax.datasets.recipe import DetrCrop, TestRule
from lmseg_jax.datasets.sample import PADDING

PADDING_VALUE = 128  # of each channel, before normalisation
BRIGHTNESS = 32.0  # largest shift of the colour jitter, grey levels
CONTRAST = (0.5, 1.5)  # range of the factor on each channel
SATURATION = (0.5, 1.5)  # range of the factor on HSV's S
HUE = 18  # largest shift of HSV's H, in steps of two degrees
UNLIMITED = 2**31  # a long side that no image reaches

WINDOW_GAIN = 6  # resized pixels for each one that is kept, above which only these are computed

Pair = tuple[np.ndarray, np.ndarray]  # (image, segments)
Size = tuple[int, int]  # (height, width)
Window = tuple[slice, slice]  # (rows, columns)


def short_edge_size(height: int, width: int, *, short_side: int, max_side: int) -> tuple[int, int]:
    """Size with a short side of `short_side`, or less where the long side would pass its limit.

    Both sides are scaled by short_side / min(height, width); if the longer one is then above
    max_side, both once more by max_side / longer; last, x becomes int(x + 0.5).

    Returns:
      (height, width) in pixels, at least 1 each.

    Source: detectron2, ResizeShortestEdge.
    """
    scale = short_side / min(height, width)
    if height < width:
        rows, columns = short_side, scale * width
    else:
        rows, columns = scale * height, short_side
    longest = max(rows, columns)
    if longest > max_side:
        scale = max_side / longest
        rows, columns = rows * scale, columns * scale
    return max(1, int(rows + 0.5)), max(1, int(columns + 0.5))


def resize(
    image: np.ndarray, segments: np.ndarray, *, size: Size, window: Window | None = None
) -> Pair:
    """Image and segments at `size` = (height, width), or only a window of them.

    The image is interpolated linearly, or averaged over areas where it shrinks below one half.
    Segment pixel i shows source pixel floor((i + 1/2) * old / new): nearest, seen from its centre.
    Of a window that is a small part of an image that is not averaged, only the window is computed;
    its grey levels are those of the whole image within 1, its segments are always the same.

    Returns:
      (image, segments).
    """
    height, width = segments.shape
    rows, columns = window or (slice(0, size[0]), slice(0, size[1]))
    if (height, width) == tuple(size):
        return image[rows, columns], segments[rows, columns]
    kept = (rows.stop - rows.start) * (columns.stop - columns.start)
    if 2 * size[0] < height or 2 * size[1] < width:
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)[rows, columns]
    elif size[0] * size[1] > WINDOW_GAIN * kept:
        image = _interpolated(image, size, rows, columns)
    else:
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)[rows, columns]
    from_rows, from_columns = _centres(height, size[0])[rows], _centres(width, size[1])[columns]
    return image, segments.take(from_rows, axis=0).take(from_columns, axis=1)


def _interpolated(image: np.ndarray, size: Size, rows: slice, columns: slice) -> np.ndarray:
    """Linear interpolation of a window of the image at `size`, without the rest of it."""
    y, x = image.shape[0] / size[0], image.shape[1] / size[1]
    matrix = np.array(
        [[x, 0, (columns.start + 0.5) * x - 0.5], [0, y, (rows.start + 0.5) * y - 0.5]]
    )
    return cv2.warpAffine(
        image,
        matrix,
        (columns.stop - columns.start, rows.stop - rows.start),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _centres(old: int, new: int) -> np.ndarray:
    # OpenCV's INTER_NEAREST_EXACT takes the lower pixel at ties, so the rule is written out.
    return (2 * np.arange(new) + 1) * old // (2 * new)


def draw_size(
    size: Size, *, short_sides: tuple[int, ...], max_side: int, rng: np.random.Generator
) -> Size:
    """Size by `short_edge_size` with a short side drawn evenly from `short_sides`."""
    short_side = short_sides[rng.integers(len(short_sides))]
    return short_edge_size(*size, short_side=short_side, max_side=max_side)


def draw_window(size: Size, *, crop: Size, rng: np.random.Generator) -> Window:
    """A window of `crop`, or of the whole axis where the image is smaller.

    Every position inside the image is equally likely.
    """
    height, width = (min(c, n) for c, n in zip(crop, size, strict=True))
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def draw_detr_crop(
    size: Size, *, rule: DetrCrop, rng: np.random.Generator
) -> tuple[Size, Window] | None:
    """With probability 1/2 nothing; else a size by `rule.short_sides` and a window in it.

    With [low, high] = rule.sides, the window's height is drawn evenly from min(low, h)..min(high,
    h), where h is the resized image's height, its width likewise, and then its position evenly.

    Returns:
      (size to resize to, window to keep of it), or None.

    Source: DETR (Carion et al., 2020) as in MaskFormer's panoptic mapper for COCO.
    """
    if _heads(rng):
        return None
    size = draw_size(size, short_sides=rule.short_sides, max_side=UNLIMITED, rng=rng)
    low, high = rule.sides
    crop = tuple(int(rng.integers(min(low, side), min(high, side) + 1)) for side in size)
    return size, draw_window(size, crop=crop, rng=rng)


def fit(size: Size, canvas: Size) -> Size:
    """The size, or a smaller one of the same shape that a canvas can hold."""
    scale = min(c / s for c, s in zip(canvas, size, strict=True))
    if scale >= 1:
        return size
    return tuple(max(1, min(c, int(s * scale + 0.5))) for c, s in zip(canvas, size, strict=True))


def random_flip(
    image: np.ndarray, segments: np.ndarray, *, flip: str, rng: np.random.Generator
) -> Pair:
    """Mirrors the columns with probability 1/2 and, if `flip` is "both", the rows as well."""
    if flip in ("horizontal", "both") and rng.random() < 0.5:
        image, segments = cv2.flip(image, 1), cv2.flip(segments, 1)
    if flip == "both" and rng.random() < 0.5:
        image, segments = cv2.flip(image, 0), cv2.flip(segments, 0)
    return image, segments


def draw_jitter(*, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The steps of one `color_jitter`: names of operators and their values, in order."""

    def contrast():
        return [("contrast", rng.uniform(*CONTRAST))] if _heads(rng) else []

    def saturation():
        return [("saturation", rng.uniform(*SATURATION))] if _heads(rng) else []

    def hue():
        return [("hue", int(rng.integers(-HUE, HUE + 1)))] if _heads(rng) else []

    steps = [("brightness", rng.uniform(-BRIGHTNESS, BRIGHTNESS))] if _heads(rng) else []
    order = (contrast, saturation, hue) if _heads(rng) else (saturation, hue, contrast)
    for draw in order:
        steps += draw()
    return steps


def color_jitter(image: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness comes first. Then, with probability 1/2, contrast, saturation, hue; else saturation,
    hue, contrast. Every step is clipped to 0..255 and truncated to whole numbers, and saturation
    and hue go through OpenCV's byte HSV (H in 0..179) on their own.

    Args:
      image: uint8 [H, W, 3], RGB.

    Returns:
      uint8 [H, W, 3].

    Source: SSD (Liu et al., 2016) as in detectron2's ColorAugSSDTransform.
    """
    for name, value in draw_jitter(rng=rng):
        if name == "brightness":
            image = scale_and_shift(image, shift=value)
        elif name == "contrast":
            image = scale_and_shift(image, scale=value)
        elif name == "saturation":
            image = scale_saturation(image, scale=value)
        else:
            image = shift_hue(image, shift=value)
    return image


def scale_and_shift(image: np.ndarray, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Clips scale * image + shift to 0..255 and truncates it to uint8; any shape."""
    values = np.clip(np.arange(256) * scale + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(image, values)


def scale_saturation(image: np.ndarray, *, scale: float) -> np.ndarray:
    """Multiplies HSV's S by `scale`. image: uint8 [H, W, 3], RGB."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = scale_and_shift(np.ascontiguousarray(hsv[..., 1]), scale=scale)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def shift_hue(image: np.ndarray, *, shift: int) -> np.ndarray:
    """Adds `shift` to HSV's H, modulo 180. image: uint8 [H, W, 3], RGB."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    table = ((np.arange(256) + shift) % 180).astype(np.uint8)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _heads(rng: np.random.Generator) -> bool:
    return rng.random() < 0.5


def pad(image: np.ndarray, segments: np.ndarray, *, size: tuple[int, int]) -> Pair:
    """Fills up to `size` = (height, width) at the bottom and right.

    The image gets the value 128, segments get -2. The image must not be larger than `size`.

    Returns:
      (image, segments).
    """
    height, width = segments.shape
    if (height, width) == tuple(size):
        return image, segments
    canvas = np.full((*size, 3), PADDING_VALUE, np.uint8)
    canvas[:height, :width] = image
    labels = np.full(size, PADDING, segments.dtype)
    labels[:height, :width] = segments
    return canvas, labels


def test_resize(image: np.ndarray, rule: TestRule) -> np.ndarray:
    """Image at the size that its dataset is evaluated at.

    Pillow's bilinear filter on bytes, which averages where it shrinks, as in MaskFormer.

    Args:
      image: uint8 [H, W, 3], RGB.

    Returns:
      uint8 [h, w, 3], sizes by `short_edge_size`.
    """
    size = short_edge_size(*image.shape[:2], short_side=rule.short_side, max_side=rule.max_side)
    if size == image.shape[:2]:
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
