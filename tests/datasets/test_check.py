import dataclasses

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError

ROOT_FILES = ("a", "b", "c")


@pytest.fixture
def card():
    """CamVid's card for three small frames; 11 is void, 200 unmapped."""
    return dataclasses.replace(load_card("camvid"), path="camvid.toml", splits={"train": 3})


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(ROOT_FILES):
        write(tmp_path / f"camvid/train/{name}.png", np.full((2, 4, 3), number, np.uint8))
        label(tmp_path, name, [[0, 0, 0, 1], [11, 11, 3, 1]])
    return tmp_path


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def label(root, name, values):
    write(root / f"camvid/trainannot/{name}.png", values)


def test_a_good_split_is_counted(root, card):
    label(root, "c", [[0, 0, 0, 0], [0, 0, 0, 0]])
    seen = []
    report = check(
        card, "train", root=root, progress=lambda done, total: seen.append((done, total))
    )
    assert report.ok
    assert not report.problems
    assert (report.expected, report.found) == (3, 3)
    assert report.sizes == {"4x2": 3}
    assert report.classes["sky"] == {"images": 3, "segments": 3, "share": 100 * 14 / 24}
    assert report.classes["building"] == {"images": 2, "segments": 2, "share": 100 * 4 / 24}
    assert report.void == 100 * 4 / 24
    assert report.warnings == (
        "8 classes have no pixel: pole, pavement, tree, sign symbol, fence, car, pedestrian, "
        "bicyclist",
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_every_unmapped_id_is_listed_once_with_its_files(root, card):
    label(root, "a", [[0, 0, 0, 200], [0, 0, 0, 201]])
    label(root, "b", [[0, 0, 0, 200], [0, 0, 0, 0]])
    report = check(card, "train", root=root)
    assert not report.ok
    assert [problem.split(";")[-1] for problem in report.problems] == [
        " in 2 images: camvid/train/a.png, camvid/train/b.png",
        " in 1 images: camvid/train/a.png",
    ]
    assert "unmapped label 200" in report.problems[0]
    assert "camvid.toml" in report.problems[0]


def test_sizes_that_differ_and_files_that_cannot_be_decoded_are_problems(root, card):
    label(root, "a", [[0, 0], [0, 0]])
    (root / "camvid/train/b.png").write_bytes(b"no image")
    report = check(card, "train", root=root)
    assert len(report.problems) == 2
    assert "a.png is 4x2" in report.problems[0]
    assert "b.png: not a JPEG or PNG file" in report.problems[1]


def test_another_number_of_images_than_the_card_says_is_a_problem(root, card):
    report = check(dataclasses.replace(card, splits={"train": 5}), "train", root=root)
    assert "camvid/train has 3 images, but the card says 5" in report.problems[0]


def test_images_without_a_valid_pixel_are_a_warning_and_a_split_of_them_a_problem(root, card):
    label(root, "a", np.full((2, 4), 11))
    report = check(card, "train", root=root)
    assert report.ok
    assert report.warnings[0] == "1 images without a valid pixel: camvid/train/a.png"
    for name in ROOT_FILES:
        label(root, name, np.full((2, 4), 11))
    report = check(card, "train", root=root)
    assert "every pixel is void" in report.problems[0]


def test_many_broken_files_are_summed_up(root, card):
    for i in range(12):
        write(root / f"camvid/train/{i:02}.png", np.zeros((2, 4, 3), np.uint8))
        label(root, f"{i:02}", [[0]])
    report = check(dataclasses.replace(card, splits={"train": 15}), "train", root=root)
    assert len(report.problems) == 11
    assert report.problems[-1] == "2 more files cannot be read"


def test_a_missing_folder_is_a_problem_of_the_report(tmp_path, card):
    report = check(card, "train", root=tmp_path)
    assert not report.ok
    assert report.found == 0
    assert "camvid/trainannot: no such folder" in report.problems[0]


def test_a_missing_root_is_an_error(tmp_path, card):
    with pytest.raises(UserError, match=r"config\.data\.root"):
        check(card, "train", root=tmp_path / "nowhere")


def test_every_file_that_failed_is_listed_with_its_reason(root, card):
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(photo).save(root / "camvid/train/a.png", format="JPEG")
    whole = (root / "camvid/train/a.png").read_bytes()
    (root / "camvid/train/a.png").write_bytes(whole[: len(whole) // 2])
    label(root, "b", [[200, 0, 0, 0], [0, 0, 0, 0]])
    report = check(card, "train", root=root)
    assert list(report.failed) == ["camvid/train/a.png", "camvid/train/b.png"]
    assert "cannot be decoded" in report.failed["camvid/train/a.png"]
    assert "unmapped label id 200" in report.failed["camvid/train/b.png"]
    assert report.found == 3


def test_segments_of_an_image_are_compared_with_the_limit(root, card):
    label(root, "c", [[0, 1, 2, 3], [4, 5, 6, 7]])
    report = check(card, "train", root=root, max_targets=7)
    assert report.ok
    assert (report.segments, report.max_targets) == ({"p50": 3, "p99": 8, "max": 8}, 7)
    assert report.warnings[1] == (
        "1 images have more than data.max_targets = 7 segments: camvid/train/c.png (8); "
        "a crop that shows more loses the smallest of them"
    )
    quiet = check(card, "train", root=root, max_targets=8)
    assert not any("max_targets" in warning for warning in quiet.warnings)


def test_crowds_are_no_targets(root, card, monkeypatch):
    class Crowded:
        def __len__(self):
            return 3

        def files(self, index):
            return (f"{index}.png",)

        def __getitem__(self, index):
            return Sample(
                image=np.full((1, 4, 3), index, np.uint8),
                segments=np.array([[0, 1, 1, 2]], np.int32),
                classes=np.array([8, 8, 0], np.int32),
                area=np.array([1, 2, 1], np.int32),
                crowd=np.array([False, True, False]),
                dataset="x",
                name=str(index),
            )

    monkeypatch.setattr("lmseg_jax.datasets.check.open_source", lambda *a, **k: Crowded())
    report = check(card, "train", root=root)
    assert report.segments["max"] == 2
    assert report.classes["car"] == {"images": 3, "segments": 6, "share": 75.0}


def test_the_same_pixels_in_two_splits_or_twice_in_one_are_warnings(root, card):
    card = dataclasses.replace(card, splits={"train": 3, "val": 2})
    with Image.open(root / "camvid/train/b.png") as image:
        image.save(root / "camvid/train/b.bmp")  # not listed: neither .png nor .jpg
        (root / "camvid/val").mkdir()
        image.save(root / "camvid/val/p.png", compress_level=0)  # other bytes, the same pixels
        image.save(root / "camvid/val/q.png")
    for name in "pq":
        write(root / f"camvid/valannot/{name}.png", np.zeros((2, 4)))
    train = check(card, "train", root=root)
    assert not any("repeat" in warning for warning in train.warnings)
    val = check(card, "val", root=root, others=[train])
    assert val.ok
    assert val.warnings[-2:] == (
        "1 images are in train as well: camvid/val/p.png = camvid/train/b.png; "
        "scores on what was trained on say little",
        "1 images repeat another one of this split: camvid/val/q.png = camvid/val/p.png",
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (" ".join(["word"] * 68), "has 68 tokens; at most 67 fit"),
        ("Background", "stands for no object"),
    ],
)
def test_a_name_that_the_model_cannot_use_is_a_problem(root, card, name, problem):
    first, *rest = card.taxonomy.categories
    first = dataclasses.replace(first, name=name)
    taxonomy = dataclasses.replace(card.taxonomy, categories=(first, *rest))
    report = check(dataclasses.replace(card, taxonomy=taxonomy), "train", root=root)
    assert problem in report.problems[0]
