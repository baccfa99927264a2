"""Images as disks, downloads and mischief make them: read right, or refused in one clear line."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.pipeline.augmentation import augment
from tests.roads import CLASSES, IDS, PICTURE, check_refused, edit, plant, source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """A root with one image, one label and a card."""
    return plant(tmp_path)


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


def png(*chunks, size=(3, 2), bits=8, color=0):
    """A PNG file of these chunks behind the header of a grey image, closed by IEND."""
    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


PIXELS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in IDS))


def bomb(megabytes):
    """A zlib stream of zeros, without the checksum at its end."""
    packer = zlib.compressobj()
    first = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1) + packer.flush()[:-4]


BOMB = bomb(4)


def saved(array, tmp_path, format="PNG", mode=None, **options):
    """The bytes that Pillow writes."""
    path = tmp_path / "saved"
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, format=format, **options)
    return path.read_bytes()


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


GREY = np.array([[0, 90, 180], [30, 60, 255]], np.uint8)
ODD_IMAGES = {
    "grey": (GREY, {}, np.repeat(GREY[..., None], 3, -1)),
    "palette": (GREY, {"mode": "P"}, np.repeat(GREY[..., None], 3, -1)),
    "16 bits": (
        GREY.astype(np.uint16) * 256 + 77,
        {},
        np.repeat(GREY[..., None], 3, -1),
    ),
    "alpha": (np.dstack([PICTURE, GREY]), {}, PICTURE),
    "grey and alpha": (GREY, {"mode": "LA"}, np.repeat(GREY[..., None], 3, -1)),
    "animated": (
        PICTURE,
        {"save_all": True, "append_images": [Image.fromarray(PICTURE // 2)]},
        PICTURE,
    ),
    "rotated": (np.rot90(PICTURE), {"exif": orientation(6)}, PICTURE),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_odd_images_are_read_as_they_are_meant(tree, kind):
    array, options, expected = ODD_IMAGES[kind]
    (tree / "roads/train/a.png").write_bytes(saved(np.ascontiguousarray(array), tree, **options))
    sample = source(tree)[0]
    np.testing.assert_array_equal(sample.image, expected)
    assert semantic_map(sample).tolist() == CLASSES


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_jpegs_of_every_mode_are_read_whatever_the_suffix_says(tree, mode):
    image = np.full((2, 3, 3), 200, np.uint8)
    (tree / "roads/train/a.png").write_bytes(saved(image, tree, "JPEG", mode))
    np.testing.assert_allclose(source(tree)[0].image, image, atol=3)


def test_an_image_of_one_pixel_can_be_trained_on(tree):
    for folder, array in (("train", PICTURE), ("train_labels", IDS)):
        Image.fromarray(np.ascontiguousarray(array[:1, :1])).save(tree / f"roads/{folder}/a.png")
    sample = source(tree)[0]
    assert sample.segments.tolist() == [[0]]
    recipe = load_card(tree / "roads.toml").train
    crop = augment(sample, recipe, max_targets=2, rng=np.random.default_rng(0))
    assert crop.image.shape == (64, 64, 3)
    assert (crop.segments == 0).all()


def test_an_extremely_long_image_can_be_trained_on(tree):
    Image.fromarray(np.full((1, 5000, 3), 9, np.uint8)).save(tree / "roads/train/a.png")
    Image.fromarray(np.full((1, 5000), 7, np.uint8)).save(tree / "roads/train_labels/a.png")
    recipe = load_card(tree / "roads.toml").train
    crop = augment(source(tree)[0], recipe, max_targets=2, rng=np.random.default_rng(0))
    assert crop.segments.shape == (64, 64)
    assert (crop.segments >= 0).sum() == 64  # 1 x 128, cut to the crop's width


BAD = {  # kind -> (bytes, words of the message)
    "is empty": (b"", ["is empty", "restore"]),
    "is text": (b"<html>404</html>", ["not a", "file; restore"]),
    "is a program for a printer": (b"%!PS-Adobe-3.0 EPSF-3.0\n", ["not a", "file; restore"]),
    "is pickled": (b"\x80\x04cos\nsystem\n", ["not a", "file; restore"]),
    "is cut in the pixels": (
        png(chunk(b"IDAT", PIXELS))[:-30],
        ["cannot be decoded", "runcated", "restore"],
    ),
    "is cut in the header": (png()[:20], ["cannot be decoded", "restore"]),
    "has a wrong checksum": (
        png(chunk(b"IDAT", PIXELS, checksum=1)),
        ["cannot be decoded", "checksum", "IDAT"],
    ),
    "has a wrong checksum in the header": (
        png(chunk(b"IDAT", PIXELS)).replace(b"IHDR\0\0\0\3", b"IHDR\0\0\0\4"),
        ["its PNG header is broken"],
    ),
    "has no pixels": (png(), ["cannot be decoded", "restore"]),
    "has no size": (png(chunk(b"IDAT", PIXELS), size=(0, 0)), ["cannot be decoded"]),
    "claims to be huge": (
        png(chunk(b"IDAT", PIXELS), size=(20_000, 20_000)),
        ["the image is far too large; the limit is 67108864 pixels"],
    ),
    "is too large": (
        png(chunk(b"IDAT", PIXELS), size=(8193, 8192)),
        ["the image is 8193x8192; the limit is 67108864 pixels"],
    ),
    "has a bomb in a text": (
        png(chunk(b"zTXt", b"k\0\0" + BOMB), chunk(b"IDAT", PIXELS)),
        ["cannot be decoded: Decompressed data too large"],
    ),
    "has a bomb in its profile": (
        png(chunk(b"iCCP", b"k\0\0" + BOMB), chunk(b"IDAT", PIXELS)),
        ["cannot be decoded: Decompressed data too large"],
    ),
}


@pytest.mark.parametrize("folder", ["train", "train_labels"])
@pytest.mark.parametrize("kind", BAD)
def test_a_broken_file_is_named_with_what_is_wrong(tree, kind, folder):
    content, words = BAD[kind]
    path = tree / "roads" / folder / "a.png"
    path.write_bytes(content)
    check_refused(lambda: source(tree)[0], f"{path}: ", *words)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("GIF", "not a JPEG or PNG file but GIF; convert it"), ("BMP", "BMP"), ("TIFF", "TIFF")],
)
def test_another_format_named_png_says_what_it_is(tree, kind, words):
    path = tree / "roads/train/a.png"
    path.write_bytes(saved(PICTURE, tree, kind))
    check_refused(lambda: source(tree)[0], f"{path}: ", words)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.98])
def test_a_jpeg_that_was_cut_off_is_refused(tree, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tree / "roads/train/a.png"
    content = saved(noise, tree, "JPEG")
    path.write_bytes(content[: int(len(content) * keep)])
    check_refused(lambda: source(tree)[0], f"{path}: cannot be decoded", "truncated", "restore")


def test_a_label_that_is_jpeg_is_refused_because_its_values_are_not_the_ids(tree):
    path = tree / "roads/train_labels/a.png"
    path.write_bytes(saved(IDS, tree, "JPEG"))
    check_refused(
        lambda: source(tree)[0], f"{path}: not a PNG file but JPEG, which changes label values"
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [("RGB", "colours (RGB)"), ("RGBA", "colours (RGBA)"), ("LA", "transparency (LA)")],
)
def test_a_label_with_more_than_one_number_a_pixel_is_refused(tree, mode, words):
    path = tree / "roads/train_labels/a.png"
    path.write_bytes(saved(IDS, tree, mode=mode))
    check_refused(lambda: source(tree)[0], f"{path}: ", words)


@pytest.mark.parametrize("bit", range(0, 8 * len(PIXELS), 5))
def test_no_flipped_bit_in_a_label_is_overlooked(tree, bit):
    content = bytearray(png(chunk(b"IDAT", PIXELS)))
    content[content.index(PIXELS) + bit // 8] ^= 1 << bit % 8
    (tree / "roads/train_labels/a.png").write_bytes(content)
    check_refused(lambda: source(tree)[0], "train_labels/a.png: cannot be decoded")


def test_sizes_that_differ_name_both_files(tree):
    Image.fromarray(IDS.T.copy()).save(tree / "roads/train_labels/a.png")
    check_refused(
        lambda: source(tree)[0], "train/a.png is 3x2", "train_labels/a.png is 2x3", "same size"
    )


def test_an_id_that_the_card_does_not_know_is_named(tree):
    Image.fromarray(IDS + 1).save(tree / "roads/train_labels/a.png")
    check_refused(
        lambda: source(tree)[0],
        f"{tree}/roads/train_labels/a.png: unmapped label id 0, 4, 8",
        "roads.toml",
        "add it",
    )


# What could fill the memory is read in a process of its own.
READER = """
import json, sys
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.images import read_image, read_indices
from lmseg_jax.errors import UserError

folder = sys.argv[1]
found = {}
for name in sys.argv[2:]:
    try:
        if name.endswith(".toml"):
            open_source(load_card(f"{folder}/{name}"), "train", root=folder)
        else:
            for read in (read_indices, read_image):
                read(f"{folder}/{name}")
        found[name] = ""
    except UserError as error:
        found[name] = str(error)
lines = open("/proc/self/status").read().splitlines()
(high,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
peak = int(high) * 1024  # of this program alone; getrusage's begins at that of its parent
print(json.dumps({"peak": peak, "found": found}))
"""


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells its peak on Linux only")
def test_no_small_file_fills_the_memory(tree):
    huge = bomb(3000)
    files = {
        "header.png": png(chunk(b"IDAT", PIXELS), size=(20_000, 20_000)),
        "warned.png": png(chunk(b"IDAT", PIXELS), size=(10_000, 10_000)),
        "allowed.png": png(chunk(b"IDAT", PIXELS), size=(8192, 8192), bits=16, color=6),
        "text.png": png(chunk(b"zTXt", b"k\0\0" + huge), chunk(b"IDAT", PIXELS)),
        "words.png": png(chunk(b"iTXt", b"k\0\1\0\0\0" + huge), chunk(b"IDAT", PIXELS)),
        "late.png": png(chunk(b"IDAT", PIXELS), chunk(b"zTXt", b"k\0\0" + huge)),
        "profile.png": png(chunk(b"iCCP", b"k\0\0" + huge), chunk(b"IDAT", PIXELS)),
        "pixels.png": png(chunk(b"IDAT", huge), size=(4, 4)),
    }
    small = saved(PICTURE, tree, "JPEG")
    frame = small.index(b"\xff\xc0")  # height and width follow five bytes later
    files["header.jpg"] = (
        small[: frame + 5] + struct.pack(">HH", 20_000, 20_000) + small[frame + 9 :]
    )
    for name, content in files.items():
        (tree / name).write_bytes(content)
    sparse(tree / "zeros.png", 2**32)
    sparse(tree / "huge.toml", 2**32)
    edit(tree, 'folder = "roads"', 'folder = "roads"\nlist = "{split}.txt"')
    sparse(tree / "roads/train.txt", 2**32)
    names = [*files, "zeros.png", "huge.toml", "roads.toml"]
    command = [sys.executable, "-c", READER, str(tree), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["peak"] < 10**9
    expected = {name: f"{tree / name}: " for name in names}
    expected["roads.toml"] = f"{tree}/roads/train.txt: has 4294967296 bytes"
    expected["pixels.png"] = ""  # the first 16 of them are the image
    for name, start in expected.items():
        assert report["found"][name].startswith(start), name
    assert not report["found"]["pixels.png"]
