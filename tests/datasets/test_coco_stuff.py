import dataclasses
import pickle
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.errors import UserError

NAME = "COCO_train2014_000000000077"

# unlabelled, person, bicycle; toothbrush, banner, wood
V10 = np.array([[1, 2, 3], [81, 82, 172]])
V11 = np.array([[0, 1, 2], [90, 92, 182]])
CLASSES = [[-1, 0, 1], [79, 80, 170]]


@pytest.fixture
def card():
    return dataclasses.replace(load_card("coco_stuff"), path="stuff.toml", splits={"train": 1})


@pytest.fixture
def root(tmp_path):
    """One image of train, listed as in the download."""
    folder = tmp_path / "coco/coco_stuff_10k"
    for name in ("images", "annotations", "imageLists"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / f"images/{NAME}.jpg")
    (folder / "imageLists/train.txt").write_text(f"{NAME}\n")
    write(tmp_path, V10, names=172)
    return tmp_path


def write(root, labels, *, names=0, key="S", kind=np.uint16):
    """A file as MATLAB 7.3 writes it: arrays transposed, a cell array as references."""
    path = root / f"coco/coco_stuff_10k/annotations/{NAME}.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file[key] = np.asarray(labels, kind).T
        file["regionMapStuff"] = np.ones((3, 2))
        if names:
            file["names"] = np.full((1, names), file[key].ref, h5py.ref_dtype)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128))


def read(root, card):
    return semantic_map(open_source(card, "train", root=root)[0]).tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float64])
def test_labels_of_v10_are_those_of_the_card(root, card, kind):
    write(root, V10, names=172, kind=kind)
    assert read(root, card) == CLASSES
    report = check(card, "train", root=root)
    assert report.ok
    assert report.sizes == {"3x2": 1}  # the file has it transposed, the grey image not


@pytest.mark.parametrize("names", [182, 183])
def test_labels_of_v11_are_turned_into_those_of_the_card(root, card, names):
    write(root, V11, names=names)
    assert read(root, card) == CLASSES
    write(root, [[1, 2, 13], [1, 2, 1]], names=names)  # 13 = stop sign; nothing but names tells
    assert read(root, card) == [[0, 1, 11], [0, 1, 0]]


def test_without_names_the_labels_tell_the_release(root, card):
    write(root, V10)
    assert read(root, card) == CLASSES
    write(root, V11)
    assert read(root, card) == CLASSES
    write(root, [[1, 1, 1], [1, 1, 173]])  # stuff 173 of v1.1
    assert read(root, card)[0] == [0, 0, 0]
    write(root, [[1, 1, 1], [1, 0, 1]])
    assert read(root, card)[1] == [0, -1, 0]


def test_every_label_of_v11_finds_its_class(root, card):
    """As COCO counts: 90 things with ten gaps, 91 without a mask, then 91 stuff classes."""
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    labels = [label for label in range(1, 183) if label not in gaps]
    Image.fromarray(np.zeros((1, 171), np.uint8)).save(
        root / f"coco/coco_stuff_10k/images/{NAME}.jpg"
    )
    write(root, [labels], names=183)
    assert read(root, card) == [list(range(171))]


def test_a_zero_in_v10_is_void(root, card):
    write(root, [[0, 1, 2], [2, 2, 2]], names=172)
    assert read(root, card) == [[-1, -1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("names", "label", "words"),
    [
        (172, 173, r"unmapped label id 173: .*stuff\.toml"),
        (183, 12, r"label 12 is none of COCO-Stuff v1\.1"),
        (183, 183, r"label 183 is none of COCO-Stuff v1\.1"),
    ],
)
def test_a_label_that_its_release_lacks_is_unmapped(root, card, names, label, words):
    write(root, [[2, 2, 2], [2, 2, label]], names=names)
    with pytest.raises(UserError, match=rf"{NAME}\.mat: {words}"):
        read(root, card)
    assert check(card, "train", root=root).problems[0].startswith(f"unmapped label {label}:")


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (V10, {"key": "T"}, r"no label map S in this file, but T, regionMapStuff; expected"),
        (V10[None], {}, "no label map S"),
        (np.zeros((0, 3)), {}, "S is 3x0; expected 1 to"),
        (V10 + 0.5, {"kind": np.float64}, "S holds fractions"),
        (-V10, {"kind": np.int32}, "S holds no label ids"),
        (V10 * np.nan, {"kind": np.float64}, "S holds no label ids"),
        (V10, {"kind": "S4"}, "S holds no label ids"),
    ],
)
def test_a_file_without_a_label_map_is_named(root, card, labels, options, words):
    write(root, labels, **options)
    with pytest.raises(UserError, match=rf"{NAME}\.mat: {words}"):
        read(root, card)


def test_a_file_of_another_kind_is_named(root, card):
    path = root / f"coco/coco_stuff_10k/annotations/{NAME}.mat"
    whole = path.read_bytes()
    for content in (b"", b"MATLAB 5.0 MAT-file", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{NAME}\.mat: cannot be read as a MATLAB 7\.3"):
            read(root, card)


def test_a_transposed_map_that_does_not_fit_its_image_is_an_error(root, card):
    write(root, V10.T, names=172)
    with pytest.raises(UserError, match=rf"{NAME}\.jpg is 3x2.*{NAME}\.mat is 2x3"):
        read(root, card)


def test_a_source_survives_pickling(root, card):
    source = pickle.loads(pickle.dumps(open_source(card, "train", root=root)))
    assert semantic_map(source[0]).tolist() == CLASSES


def test_without_h5py_the_error_says_what_to_install(root, card, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        UserError, match=r"stuff\.toml: .*h5py; pip install 'lmseg_jax\[coco-stuff\]'"
    ):
        open_source(card, "train", root=root)
