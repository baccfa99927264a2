import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.data_command import main
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.errors import UserError

# wall 1 and sky 3 are stuff, bed 8 and window 9 things; instance category 1 is bed, 2 is window
LABELS = np.array([[1, 1, 8, 8], [1, 3, 8, 9], [0, 3, 9, 9]])
CATEGORIES = np.array([[0, 2, 1, 1], [0, 0, 1, 0], [0, 0, 2, 0]])
NUMBERS = np.array([[0, 2, 9, 9], [0, 0, 4, 0], [0, 0, 2, 0]])


@pytest.fixture
def root(tmp_path):
    """One image of val with its labels and its instances, as downloaded."""
    folder = tmp_path / "ADEChallengeData2016"
    write(folder / "images/validation/one.jpg", np.zeros((3, 4, 3)))
    write(folder / "annotations/validation/one.png", LABELS)
    write_instances(tmp_path, CATEGORIES, NUMBERS)
    return tmp_path


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def write_instances(root, categories, numbers):
    array = np.stack([categories, numbers, np.zeros_like(numbers)], axis=-1)
    write(root / "ADEChallengeData2016/annotations_instance/validation/one.png", array)


def card(name="ade20k_panoptic", **changes):
    return dataclasses.replace(load_card(name), path="card.toml", splits={"val": 1}, **changes)


def test_instances_are_painted_over_stuff_whose_area_was_recorded_before(root):
    sample = pickle.loads(pickle.dumps(open_source(card(), "val", root=root)))[0]
    assert sample.classes.tolist() == [0, 2, 8, 7, 7]  # wall, sky, window 2, bed 4, bed 9
    assert sample.segments.tolist() == [[0, 2, 4, 4], [0, 1, 3, -1], [-1, 1, 2, -1]]
    assert sample.area.tolist() == [3, 2, 2, 1, 2]  # one pixel of wall lies under window 2
    assert not sample.crowd.any()
    assert sample.segments.dtype == sample.classes.dtype == sample.area.dtype == np.int32
    assert check(card(), "val", root=root).ok


def test_stuff_that_instances_cover_wholly_stays_a_segment_without_pixels(root):
    write_instances(root, np.where(LABELS == 3, 100, 0), np.where(LABELS == 3, 7, 0))
    sample = open_source(card(), "val", root=root)[0]
    assert sample.classes.tolist() == [0, 2, 149]
    assert sample.area.tolist() == [3, 2, 2]
    assert 1 not in sample.segments


def test_an_image_may_have_no_instances(root):
    write_instances(root, np.zeros_like(LABELS), np.zeros_like(LABELS))
    sample = open_source(card(), "val", root=root)[0]
    assert sample.segments.tolist() == [[0, 0, -1, -1], [0, 1, -1, -1], [-1, 1, -1, -1]]


def test_every_instance_category_is_a_thing_of_the_same_place(root):
    """By name and place, from both ends and from the middle of ADE20K's list."""
    for category, name in ((1, "bed"), (2, "window"), (50, "bus"), (100, "flag")):
        write_instances(root, np.where(NUMBERS > 0, category, 0), np.where(NUMBERS > 0, 1, 0))
        sample = open_source(card(), "val", root=root)[0]
        assert load_card("ade20k_panoptic").taxonomy.names[sample.classes[-1]] == name


@pytest.mark.parametrize(
    ("categories", "numbers", "words"),
    [
        (101, 1, "instances of category 101; expected 1 to 100"),
        (0, 1, "instances of category 0; expected 1 to 100"),
        (CATEGORIES, 3, "instance 3 has pixels of several categories|instances of category 0"),
        (np.where(LABELS > 3, LABELS, 1), 3, "instance 3 has pixels of several categories"),
    ],
)
def test_instance_files_that_make_no_sense_are_named(root, categories, numbers, words):
    shape = np.ones_like(LABELS)
    write_instances(root, categories * shape, numbers * shape)
    with pytest.raises(UserError, match=rf"annotations_instance/validation/one\.png: ({words})"):
        open_source(card(), "val", root=root)[0]


def test_instance_files_of_another_size_or_without_colours_are_named(root):
    write_instances(root, CATEGORIES[:2], NUMBERS[:2])
    with pytest.raises(UserError, match=r"annotations/val.*is 4x3.*annotations_instance/.*are 4x2"):
        open_source(card(), "val", root=root)[0]
    write(root / "ADEChallengeData2016/annotations_instance/validation/one.png", NUMBERS)
    with pytest.raises(UserError, match="annotations_instance.*without colours"):
        open_source(card(), "val", root=root)[0]


def test_a_missing_instance_file_or_folder_is_named(root):
    path = root / "ADEChallengeData2016/annotations_instance/validation/one.png"
    path.unlink()
    with pytest.raises(UserError, match=r"one\.jpg has no label .*annotations_instance/.*one\.png"):
        open_source(card(), "val", root=root)
    path.parent.rmdir()
    report = check(card(), "val", root=root)
    assert "annotations_instance/validation: no such folder" in report.problems[0]


def test_the_card_must_have_the_things_that_the_files_count(root):
    taxonomy = load_card("cityscapes_panoptic").taxonomy
    with pytest.raises(UserError, match="8 classes are things; ade20k_instances needs the 100"):
        open_source(card(taxonomy=taxonomy), "val", root=root)


def test_the_semantic_card_has_no_use_for_instances(root):
    files = load_card("ade20k_panoptic").files
    with pytest.raises(UserError, match=r"files\.instances is not read by label_png"):
        open_source(card("ade20k", files=files), "val", root=root)


def test_label_ids_are_shifted_on_the_fly(root):
    sample = open_source(card("ade20k"), "val", root=root)[0]
    assert semantic_map(sample).tolist() == [[0, 0, 7, 7], [0, 2, 7, 8], [-1, 2, 8, 8]]


def test_prepared_label_files_are_refused_and_not_read_as_other_classes(root):
    prepared = np.where(LABELS == 0, 255, LABELS - 1)  # what a preparation script would write
    write(root / "ADEChallengeData2016/annotations/validation/one.png", prepared)
    with pytest.raises(UserError, match=r"one\.png: unmapped label id 255"):
        open_source(card("ade20k"), "val", root=root)[0]


@pytest.fixture
def sample_root(tmp_path):
    """The three sample images of ADE20K's scene parsing challenge, in its own tree."""
    found = Path(os.environ.get("LMSEG_DATA", "/nowhere"), "ade20k_sample")
    if not found.is_dir():
        pytest.skip("LMSEG_DATA names no folder with ade20k_sample")
    shutil.copytree(found, tmp_path / "ADEChallengeData2016")
    return tmp_path


def test_the_real_samples_are_read_as_their_files_say(sample_root):
    source = open_source(card("ade20k"), "val", root=sample_root)
    assert len(source) == 3
    for index in range(3):
        sample = source[index]
        with Image.open(sample_root / source.files(index)[1]) as file:
            np.testing.assert_array_equal(semantic_map(sample), np.array(file).astype(int) - 1)


def test_the_real_samples_pass_check_and_show(sample_root, capsys):
    text = Path(load_card("ade20k").path).read_text(encoding="utf-8")
    path = sample_root / "card.toml"
    path.write_text(text.replace("val = 2000", "val = 3"), encoding="utf-8")
    dataset = [str(path), "--root", str(sample_root), "--split", "val"]
    assert main(["check", *dataset]) == 0
    assert "ade20k/val: OK, 3 images" in capsys.readouterr().out
    assert main(["show", *dataset, "--output", str(sample_root / "sheet.png")]) == 0
