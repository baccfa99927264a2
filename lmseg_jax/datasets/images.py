"""Reads JPEG and PNG files from anywhere: two decoders, a pixel limit, errors that name the file.

Arrays are as the file is meant to be seen: EXIF orientation is applied, and of an animated PNG the
first picture counts.
"""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from lmseg_jax.errors import UserError

MAX_PIXELS = 2**26  # 67 megapixels; a small file can claim to be much larger than memory

_STRETCHED = {2: 85, 4: 17}  # bits of a grey PNG -> factor by which Pillow stretches its values
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # last bytes of a whole file
_UNUSUAL = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif", b"acTL")  # turned or animated
_STARTS = {  # first bytes of a file -> what it is
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}


class ColoredLabels(UserError):
    """A label file holds colours where one number a pixel is needed."""


def read_image(path: str | Path, *, content: bytes | None = None) -> np.ndarray:
    """A picture, uint8 [H, W, 3], RGB. Grey, palette, CMYK and 16-bit files become RGB.

    Alpha is dropped. 16-bit values lose their low byte.

    Args:
      path: of the file; where `content` is given, only what messages call it.
      content: the file's bytes, if they do not lie in a file of their own.

    Raises:
      UserError: the file is missing, broken, too large, or neither JPEG nor PNG.
    """
    pixels = _decode_quickly(path, content, ("JPEG", "PNG"), modes=("RGB", "RGBA"))
    if pixels is not None:
        return pixels
    image = _decode(path, content, ("JPEG", "PNG"))
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)


def read_indices(path: str | Path, *, content: bytes | None = None) -> np.ndarray:
    """A label PNG, one number a pixel: uint8 or int32 [H, W].

    Grey files (1 to 16 bits) give their grey value, palette files the index, never the colour.

    Args:
      path, content: as for `read_image`.

    Raises:
      UserError: as `read_image`, or the file holds colours.
    """
    pixels = _decode_quickly(path, content, ("PNG",), modes=("L",))
    if pixels is not None:
        return pixels
    image = _decode(path, content, ("PNG",))
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "L":
        return np.asarray(image) // np.uint8(_STRETCHED.get(_bits(path, content), 1))
    if image.mode == "P":
        return np.array(image)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.int32)
    if image.mode == "LA":
        raise UserError(
            f"{path}: a label file with transparency (LA) where one number a pixel is needed; "
            "save it as plain grey or with a palette"
        )
    raise ColoredLabels(
        f"{path}: a label file with colours ({image.mode}) where one number a pixel is needed; "
        'if its colours mean classes, the card\'s format is "color_png"'
    )


def read_colors(path: str | Path) -> np.ndarray:
    """A label PNG whose colours mean classes: uint8 [H, W, 3], RGB, without alpha.

    Raises:
      UserError: as `read_image`, or the file has no colours.
    """
    pixels = _decode_quickly(path, None, ("PNG",), modes=("RGB", "RGBA"))
    if pixels is not None:
        return pixels
    image = _decode(path, None, ("PNG",))
    if image.mode not in ("RGB", "RGBA", "P"):
        raise UserError(
            f"{path}: a label file without colours ({image.mode}) where colours mean classes; "
            'if its grey values are ids, the card\'s format is "label_png"'
        )
    return np.array(image.convert("RGB"))


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the array that `read_image` gives; of a JPEG only the header is read.

    Raises:
      UserError: as `read_image`.
    """
    with _opened(path, None, ("JPEG", "PNG")) as (_, image):
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
        return (image.width, image.height) if turned else (image.height, image.width)


def _decode(path: str | Path, content: bytes | None, formats: tuple[str, ...]) -> Image.Image:
    """Decodes with these decoders only and turns the picture upright."""
    with _opened(path, content, formats) as (file, image):
        if image.format == "PNG":
            image.verify()  # checksums: the decoder itself overlooks some flipped bits
            file.seek(0)
            image = Image.open(file, formats=formats)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def _decode_quickly(
    path: str | Path, content: bytes | None, formats: tuple[str, ...], *, modes: tuple[str, ...]
) -> np.ndarray | None:
    """Decodes ordinary files by OpenCV: the same values, sooner, and no copy of them.

    Whatever is not ordinary is left to `_decode`: other modes, turned, animated or broken files.

    Args:
      path, content, formats: as for `_decode`.
      modes: of Pillow; ("L",) gives uint8 [H, W], others RGB, uint8 [H, W, 3].

    Returns:
      The pixels, or None.
    """
    with _opened(path, content, formats) as (file, image):
        if image.mode not in modes:
            return None
        file.seek(0)
        data = file.read(4 * image.width * image.height + 2**20)  # longer ones are cut and refused
        if not data.endswith(_ENDS[image.format]):
            return None
        if image.format == "JPEG":
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return None
        elif data[24] != 8 or any(word in data for word in _UNUSUAL):
            return None
        color = modes != ("L",)
        flag = cv2.IMREAD_COLOR_RGB if color else cv2.IMREAD_GRAYSCALE
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        expected = (image.height, image.width, 3)[: 3 if color else 2]
        return pixels if pixels is not None and pixels.shape == expected else None


@contextlib.contextmanager
def _opened(
    path: str | Path, content: bytes | None, formats: tuple[str, ...]
) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """The file and a picture of which the header was read; what a decoder raises names the file."""
    with _stream(path, content) as file:
        try:
            image = Image.open(file, formats=formats)
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width}x{image.height}")
            yield file, image
        except (UserError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(path, "far too large") from error
        except Image.UnidentifiedImageError as error:
            raise UserError(f"{path}: {_mistaken(file, formats)}") from error
        except Exception as error:  # a decoder may raise anything on a broken file
            problem = str(error) or type(error).__name__
            raise UserError(
                f"{path}: cannot be decoded: {problem}; restore or remove this file"
            ) from error


def _stream(path: str | Path, content: bytes | None) -> BinaryIO:
    """The bytes to decode. Opens ordinary files only: a pipe or device may never end."""
    if content is not None:
        return io.BytesIO(content)
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise UserError(f"{path}: {problem}; restore or remove it") from error
    raise UserError(f"{path}: a folder or device where an image file is needed; remove it")


def _mistaken(file: BinaryIO, formats: tuple[str, ...]) -> str:
    """What is wrong with a file that none of the decoders takes."""
    file.seek(0)
    start = file.read(4)
    if not start:
        return "is empty; restore or remove this file"
    found = next((name for sign, name in _STARTS.items() if start.startswith(sign)), "")
    if found in formats:
        return f"cannot be decoded: its {found} header is broken; restore or remove this file"
    wrong = f"not a {' or '.join(formats)} file"
    if found == "JPEG":
        return f"{wrong} but JPEG, which changes label values; save the label as PNG at its source"
    return f"{wrong} but {found}; convert it" if found else f"{wrong}; restore or remove it"


def _too_large(path: str | Path, size: str) -> UserError:
    limit = f"the limit is {MAX_PIXELS} pixels"
    return UserError(f"{path}: the image is {size}; {limit}; scale it down or remove it")


def _bits(path: str | Path, content: bytes | None) -> int:
    """Bit depth of a PNG: the byte after width and height in its first chunk."""
    with _stream(path, content) as file:
        return file.read(25)[24]
