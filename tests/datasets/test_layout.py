import os
from pathlib import Path

import pytest

from lmseg_jax.datasets.layout import find_layout
from lmseg_jax.errors import UserError


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def found(root, images, labels):
    return find_layout(f"{root}/{images}", f"{root}/{labels}")


def test_split_folders_below_both_folders_are_the_splits(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path, f"roads/images/{split}/a.jpg", f"roads/labels/{split}/a.png")
    touch(tmp_path, "roads/images/train/b.png", "roads/labels/train/b.png")
    layout = found(tmp_path, "roads/images", "roads/labels")
    assert (layout.root, layout.folder) == (tmp_path, "roads")
    assert layout.images == ("images/{split}/{name}.jpg", "images/{split}/{name}.png")
    assert layout.labels == "labels/{split}/{name}.png"
    assert layout.splits == {"train": 2, "val": 1}
    assert not layout.split_names and not layout.listed and not layout.lists
    assert len(layout.files) == 3


def test_other_names_of_split_folders_are_noted(tmp_path):
    for split in ("training", "test"):
        touch(tmp_path, f"x/{split}/images/a.jpg", f"x/{split}/labels/a.png")
    layout = found(tmp_path, "x/{split}/images", "x/{split}/labels")
    assert layout.images == ("{split}/images/{name}.jpg",)
    assert layout.split_names == {"train": "training", "val": "test"}


@pytest.mark.parametrize(
    ("image", "label", "expected"),
    [
        ("{}.jpg", "{}_mask.png", ("{name}.jpg", "{name}_mask.png")),
        ("{}.JPG", "{}.png", ("{name}.JPG", "{name}.png")),
        ("c/{}_left.png", "c/{}_labelIds.png", ("{name}_left.png", "{name}_labelIds.png")),
    ],
)
def test_suffixes_are_found_by_the_names(tmp_path, image, label, expected):
    for number in range(1, 13):  # 1 begins 10, 11 and 12 as well
        touch(tmp_path, f"d/i/{image.format(number)}", f"d/l/{label.format(number)}")
    layout = found(tmp_path, "d/i", "d/l")
    assert (*layout.images, layout.labels) == (f"i/{expected[0]}", f"l/{expected[1]}")
    assert sum(layout.splits.values()) == 12


def test_images_and_labels_may_lie_in_one_folder(tmp_path):
    for name in "ab":
        touch(tmp_path, f"d/{name}.png", f"d/{name}_mask.png")
    layout = found(tmp_path, "d", "d")
    assert (layout.images, layout.labels) == (("{name}.png",), "{name}_mask.png")
    assert (layout.root, layout.folder, layout.bare) == (tmp_path, "d", 0)


def test_the_label_that_is_called_like_the_image_is_its_label(tmp_path):
    for name in "ab":
        touch(tmp_path, f"d/i/{name}.jpg", f"d/l/{name}.png", f"d/l/{name}_color.png")
    assert found(tmp_path, "d/i", "d/l").labels == "l/{name}.png"


def test_several_labels_of_an_image_are_an_error_that_a_pattern_solves(tmp_path):
    for name in "ab":
        touch(tmp_path, f"d/i/{name}.jpg", f"d/l/{name}_id.png", f"d/l/{name}_color.png")
    with pytest.raises(UserError, match=r"several labels.*\{name\}_color.png, \{name\}_id.png"):
        found(tmp_path, "d/i", "d/l")
    assert found(tmp_path, "d/i", "d/l/{name}_id.png").labels == "l/{name}_id.png"


def test_names_that_begin_differently_need_patterns(tmp_path):
    for name in ("01", "02"):
        touch(tmp_path, f"d/i/photo_{name}.jpg", f"d/l/mask_{name}.png")
    with pytest.raises(UserError, match=r"no label is named like an image.*mask_\{name\}.png"):
        found(tmp_path, "d/i", "d/l")
    layout = found(tmp_path, "d/i/photo_{name}.jpg", "d/l/mask_{name}.png")
    assert (*layout.images, layout.labels) == ("i/photo_{name}.jpg", "l/mask_{name}.png")


def test_one_set_of_images_is_drawn_apart_the_same_way_each_time(tmp_path):
    for number in range(20):
        touch(tmp_path, f"d/i/{number}.jpg", f"d/l/{number}.png")
    touch(tmp_path, "d/i/bare.jpg")
    layout = found(tmp_path, "d/i", "d/l")
    train, val = layout.lists[tmp_path / "d/train.txt"], layout.lists[tmp_path / "d/val.txt"]
    assert (len(train), len(val), layout.bare) == (18, 2, 1)
    assert sorted([*train, *val]) == sorted(map(str, range(20)))
    assert layout.listed and layout.splits == {"train": 18, "val": 2}
    assert found(tmp_path, "d/i", "d/l").lists == layout.lists


def test_lists_that_are_there_are_used(tmp_path):
    touch(tmp_path, "d/i/a.jpg", "d/i/b.jpg", "d/l/a.png", "d/l/b.png")
    (tmp_path / "d/train.txt").write_text("a\n\n")
    with pytest.raises(UserError, match="train.txt is there, but no list of the other split"):
        found(tmp_path, "d/i", "d/l")
    (tmp_path / "d/val.txt").write_text("b\n")
    layout = found(tmp_path, "d/i", "d/l")
    assert layout.listed and not layout.lists
    assert layout.splits == {"train": 1, "val": 1}


def test_paths_may_be_relative(tmp_path, monkeypatch):
    touch(tmp_path, "i/a.jpg", "i/b.jpg", "l/a.png", "l/b.png")
    monkeypatch.chdir(tmp_path)
    layout = find_layout("i", "l")
    assert (layout.root, layout.folder) == (tmp_path.parent, tmp_path.name)
    assert (*layout.images, layout.labels) == ("i/{name}.jpg", "l/{name}.png")
    assert layout.files[0] == Path("l") / os.path.basename(layout.files[0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("nothing", "l", "--images .*nothing is no folder"),
        ("i", "tif", "--labels .*tif: no PNG file"),
        ("i/{stem}.jpg", "l", "expected a folder"),
        ("{split}", "{split}", "no folders for both splits"),
        ("bare", "bare_l", r"c.jpg has no label \(1 images have none\)"),
        ("one", "one", "1 image with a label; expected at least 2"),
    ],
)
def test_what_does_not_fit_together_is_an_error(tmp_path, images, labels, message):
    touch(tmp_path, "i/a.jpg", "l/a.png", "tif/a.tif", "one/a.jpg", "one/a.png")
    for split in ("train", "val"):
        touch(tmp_path, f"bare/{split}/a.jpg", f"bare_l/{split}/a.png")
    touch(tmp_path, "bare/val/c.jpg")
    with pytest.raises(UserError, match=message):
        found(tmp_path, images, labels)
