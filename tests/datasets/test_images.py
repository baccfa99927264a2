import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets import images
from lmseg_jax.datasets.images import read_colors, read_image, read_indices, read_size
from lmseg_jax.errors import UserError


def write(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)


def png(chunks):
    """A PNG file of these chunks."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        parts.append(len(data).to_bytes(4, "big") + kind + data + check)
    return b"".join(parts)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_kind_of_png_becomes_rgb(tmp_path, mode):
    path = tmp_path / "image.png"
    write(path, np.full((2, 3, 3), 255, np.uint8), mode)
    assert read_image(path).tolist() == [[[255] * 3] * 3] * 2


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(path)
    np.testing.assert_allclose(read_image(path), np.full((8, 8, 3), 255), atol=2)


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    path = tmp_path / "image.png"
    write(path, np.array([[0, 0x1234, 0xFFFF]], np.uint16))
    assert read_image(path).tolist() == [[[0] * 3, [0x12] * 3, [0xFF] * 3]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying; turned by 90 degrees it stands
    path = tmp_path / "image.png"
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    write(path, pixels, exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(pixels, -1))


def test_a_gif_with_another_suffix_is_refused(tmp_path):
    path = tmp_path / "image.png"
    Image.new("L", (3, 2)).save(path, format="GIF")
    with pytest.raises(UserError, match=r"image\.png: not a JPEG or PNG file"):
        read_image(path)


def test_a_jpeg_is_no_label(tmp_path):
    path = tmp_path / "label.png"
    Image.new("L", (8, 8)).save(path, format="JPEG")
    with pytest.raises(UserError, match=r"label\.png: not a PNG file"):
        read_indices(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    write(path, noise)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=rf"image\.{suffix}: cannot be decoded"):
        read_image(path)


def test_an_image_over_the_pixel_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    write(path, np.zeros((20, 30), np.uint8))
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    with pytest.raises(UserError, match=r"image\.png: the image is 30x20; the limit is 500"):
        read_image(path)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_small_file_that_claims_to_be_huge_is_refused(tmp_path, side):
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    path = tmp_path / "image.png"
    path.write_bytes(png([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"image\.png: the image is .*the limit is 67108864"):
            read_image(path)


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 3), (4, 15)])
def test_small_grey_depths_are_not_stretched(tmp_path, bits, top):
    header = b"\x00\x00\x00\x02\x00\x00\x00\x01" + bytes([bits, 0, 0, 0, 0])
    row = bytes([0, top << (8 - bits)])  # no filter; the first pixel has the largest value
    path = tmp_path / "grey.png"
    path.write_bytes(png([(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]))
    assert read_indices(path).tolist() == [[top, 0]]


def smooth(height, width, seed=0):
    """A picture with gradients and noise, as photographs have."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    waves = np.stack([rows * 3, columns * 2, rows + columns], axis=-1) % 200
    return (waves + noise).astype(np.uint8)


@pytest.fixture
def no_pillow(monkeypatch):
    """Files that are not ordinary cannot be read."""

    def refuse(path, content, formats):
        raise AssertionError(f"{path}: left to Pillow")

    monkeypatch.setattr(images, "_decode", refuse)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0, "quality": 95},
        {"subsampling": 1},
        {"subsampling": 2, "quality": 40},
        {"progressive": True},
        {"optimize": True, "restart_marker_rows": 1},
    ],
)
def test_ordinary_jpegs_are_decoded_as_pillow_does(tmp_path, no_pillow, options):
    path = tmp_path / "image.jpg"
    for height, width in ((64, 80), (37, 53)):
        write(path, smooth(height, width), **options)
        np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_ordinary_pngs_are_decoded_as_pillow_does(tmp_path, no_pillow, mode):
    path = tmp_path / "image.png"
    pixels = smooth(21, 34)
    if mode == "RGBA":
        pixels = np.dstack([pixels, np.arange(21 * 34).reshape(21, 34).astype(np.uint8)])
    elif mode == "L":
        pixels = pixels[..., 0]
    write(path, pixels)
    if mode == "L":
        np.testing.assert_array_equal(read_indices(path), pixels)
    else:
        np.testing.assert_array_equal(read_image(path), pixels[..., :3])
        np.testing.assert_array_equal(read_colors(path), pixels[..., :3])


def test_what_is_not_ordinary_is_left_to_pillow(tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 3
    pixels = smooth(16, 24)
    kinds = {
        "turned.jpg": {"exif": turned},
        "turned.png": {"exif": turned},
        "grey.jpg": {"mode": "L"},
        "cmyk.jpg": {"mode": "CMYK"},
        "palette.png": {"mode": "P"},
        "cut.jpg": {},
        "cut.png": {},
    }
    seen = []
    decode = images._decode

    def note(path, content, formats):
        seen.append(path.name)
        return decode(path, content, formats)

    monkeypatch.setattr(images, "_decode", note)
    for name, options in kinds.items():
        path = tmp_path / name
        write(path, pixels, **options)
        if name.startswith("cut"):
            path.write_bytes(path.read_bytes()[:-40])
            with pytest.raises(UserError, match=name):
                read_image(path)
        else:
            assert read_image(path).shape == (16, 24, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), pixels[::-1, ::-1])
    assert seen == [*kinds, "turned.png"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_picture_is_that_of_its_array(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    write(path, smooth(16, 24), exif=exif)
    assert read_size(path) == read_image(path).shape[:2]


def test_the_size_of_what_is_no_picture_is_an_error(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_text("words")
    with pytest.raises(UserError, match=r"image\.jpg: not a JPEG or PNG file"):
        read_size(path)
