"""Reads JPEG and PNG files from anywhere: two decoders, a pixel limit, errors that name the file.

Arrays are as the file is meant to be seen: EXIF orientation is applied.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lmseg_jax.errors import UserError

MAX_PIXELS = 2**26  # 67 megapixels; a small file can claim to be much larger than memory

_STRETCHED = {2: 85, 4: 17}  # bits of a grey PNG -> factor by which Pillow stretches its values


def read_image(path: str | Path) -> np.ndarray:
    """A picture, uint8 [H, W, 3], RGB. Grey, palette, CMYK and 16-bit files become RGB.

    Alpha is dropped. 16-bit values lose their low byte.

    Raises:
      UserError: the file is missing, broken, too large, or neither JPEG nor PNG.
    """
    image = _open(path, ("JPEG", "PNG"))
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it
        grey = (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def read_indices(path: str | Path) -> np.ndarray:
    """A label PNG, one number a pixel: uint8 or int32 [H, W].

    Grey files (1 to 16 bits) give their grey value, palette files the index, never the colour.

    Raises:
      UserError: as `read_image`, or the file holds colours.
    """
    image = _open(path, ("PNG",))
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "L":
        return np.asarray(image) // np.uint8(_STRETCHED.get(_bits(path), 1))
    if image.mode == "P":
        return np.array(image)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.int32)
    raise UserError(
        f"{path}: a label file with colours ({image.mode}) where one number a pixel is needed; "
        'if its colours mean classes, the card\'s format is "color_png"'
    )


def read_colors(path: str | Path) -> np.ndarray:
    """A label PNG whose colours mean classes: uint8 [H, W, 3], RGB, without alpha.

    Raises:
      UserError: as `read_image`, or the file has no colours.
    """
    image = _open(path, ("PNG",))
    if image.mode not in ("RGB", "RGBA", "P"):
        raise UserError(
            f"{path}: a label file without colours ({image.mode}) where colours mean classes; "
            'if its grey values are ids, the card\'s format is "label_png"'
        )
    return np.array(image.convert("RGB"))


def _open(path: str | Path, formats: tuple[str, ...]) -> Image.Image:
    """Decodes with these decoders only and turns the picture upright."""
    try:
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width}x{image.height}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "far larger") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not a {' or '.join(formats)} file") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        raise UserError(
            f"{path}: cannot be decoded: {str(error) or type(error).__name__}"
        ) from error


def _too_large(path: str | Path, size: str) -> UserError:
    return UserError(f"{path}: the image is {size}; the limit is {MAX_PIXELS} pixels")


def _bits(path: str | Path) -> int:
    """Bit depth of a PNG: the byte after width and height in its first chunk."""
    with open(path, "rb") as file:
        return file.read(25)[24]
