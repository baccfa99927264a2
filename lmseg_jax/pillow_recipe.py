"""The recipes of cards written with Pillow, as a measure for the loader: same draws, same crops.

Not for training: filters, and the rounding of HSV, differ a little from those of the pipeline.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import ExifTags, Image

from lmseg_jax.datasets import images
from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.pipeline import augmentation, transforms

ORIENTATION = ExifTags.Base.Orientation

Pair = tuple[Image.Image, Image.Image]  # (image, segments)


class PillowDecoder:
    """Lets sources decode their files by Pillow alone, as plainly as it can be written.

    Attributes:
      picture: the last image that was decoded. It stays Pillow's: the sample holds zeros for it.
    """

    def __init__(self):
        self.picture = None

    def __call__(self) -> AbstractContextManager:
        """Within it, ordinary files are decoded here."""
        return mock.patch.object(images, "_decode_quickly", self._decode)

    def _decode(self, path: str | Path, content, formats, *, modes) -> np.ndarray | None:
        with Image.open(path, formats=formats) as image:
            turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) != 1
            if content is not None or image.mode not in modes or turned:
                return None  # the reader goes on as for any file that is not ordinary
            image.load()
            plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
            if "JPEG" in formats:
                self.picture = plain
                return np.broadcast_to(np.uint8(0), (image.height, image.width, 3))
            return np.asarray(plain)


def pillow_pair(sample: Sample, decoder: PillowDecoder) -> Pair:
    """Image and segments of a sample that was read by `decoder`."""
    picture, decoder.picture = decoder.picture, None
    if picture is None:  # no file, or no ordinary one
        picture = Image.fromarray(sample.image)
    return picture, Image.fromarray(sample.segments)


def pillow_steps(recipe: Recipe) -> list[tuple[str, Callable]]:
    """As `augmentation.steps`, for `Pair`s."""
    return [(name, STEPS[name]) for name in recipe.order]


def _sized(image: Image.Image, segments: Image.Image, size: tuple[int, int]) -> Pair:
    size = (size[1], size[0])
    if image.size == size:
        return image, segments
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return resized, segments.resize(size, Image.Resampling.NEAREST)


def _cut(image: Image.Image, segments: Image.Image, window: tuple[slice, slice]) -> Pair:
    rows, columns = window
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return image.crop(box), segments.crop(box)


def _resize(image, segments, recipe, rng):
    return _sized(image, segments, augmentation.draw_size(_shape(image), recipe, rng))


def _crop(image, segments, recipe, rng):
    window = transforms.draw_window(_shape(image), crop=recipe.crop, rng=rng)
    return _cut(image, segments, window)


def _detr_crop(image, segments, recipe, rng):
    drawn = transforms.draw_detr_crop(_shape(image), rule=recipe.detr_crop, rng=rng)
    if drawn is None:
        return image, segments
    return _cut(*_sized(image, segments, drawn[0]), drawn[1])


def _flip(image, segments, recipe, rng):
    left_right, top_bottom = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
    if recipe.flip in ("horizontal", "both") and rng.random() < 0.5:
        image, segments = image.transpose(left_right), segments.transpose(left_right)
    if recipe.flip == "both" and rng.random() < 0.5:
        image, segments = image.transpose(top_bottom), segments.transpose(top_bottom)
    return image, segments


def _color(image, segments, recipe, rng):
    if not recipe.color:
        return image, segments
    for name, value in transforms.draw_jitter(rng=rng):
        if name in ("brightness", "contrast"):
            scale, shift = (1, value) if name == "brightness" else (value, 0)
            image = image.point(_clipped(scale, shift) * 3)
        else:
            hue, saturation, bright = image.convert("HSV").split()
            if name == "hue":  # 0..255 is the whole circle here, 0..179 in OpenCV
                shift = round(value * 256 / 180)
                hue = hue.point([(level + shift) % 256 for level in range(256)])
            else:
                saturation = saturation.point(_clipped(value, 0))
            image = Image.merge("HSV", (hue, saturation, bright)).convert("RGB")
    return image, segments


def _clipped(scale: float, shift: float) -> list[int]:
    return np.clip(np.arange(256) * scale + shift, 0, 255).astype(int).tolist()


def _shape(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width


STEPS = {
    "resize": _resize,
    "crop": _crop,
    "detr_crop": _detr_crop,
    "color": _color,
    "flip": _flip,
}
