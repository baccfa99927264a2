import dataclasses
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.data_command import main
from lmseg_jax.datasets.card import Files, load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.errors import UserError

# Ids above 255 and above 65535 use the green and the blue channel; the JSON's order is not theirs.
A, B, C, D = 70_000, 300, 5, 16_777_215
IDS = np.array([[A, A, B, B], [0, C, C, D]])
SEGMENTS = [
    {"id": A, "category_id": 1, "area": 2, "iscrowd": 0, "bbox": [0, 0, 2, 1]},  # person
    {"id": C, "category_id": 200, "area": 9, "iscrowd": 0, "bbox": []},  # rug-merged
    {"id": D, "category_id": 1, "area": 1, "iscrowd": 1, "bbox": []},
    {"id": B, "category_id": 17, "area": 2, "iscrowd": 0, "bbox": []},  # cat
]


def paint(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)


def picture(path, size=(2, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def annotation(name, segments=SEGMENTS):
    return {"segments_info": segments, "file_name": f"{name}.png", "image_id": int(name)}


def write_list(root, annotations, **more):
    """The JSON file of val, with all that COCO's has."""
    path = root / "coco/annotations/panoptic_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 7, "file_name": "0007.jpg", "height": 2, "width": 4, "license": 1}]
    categories = [{"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]}]
    info = {"description": "COCO 2018 Panoptic Dataset"}
    whole = {"info": info, "images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(whole | more), encoding="utf-8")
    return path


@pytest.fixture
def card():
    card = load_card("coco_panoptic")
    return dataclasses.replace(card, path="coco.toml", splits={"train": 2, "val": 2})


@pytest.fixture
def root(tmp_path):
    """Val of COCO as downloaded, with two images; the list names 0007 first."""
    for name in ("0007", "0003"):
        picture(tmp_path / f"coco/val2017/{name}.jpg")
        paint(tmp_path / f"coco/panoptic_val2017/{name}.png", IDS)
    write_list(tmp_path, [annotation("0007"), annotation("0003")])
    return tmp_path


def test_segments_come_in_the_order_of_the_list_with_its_areas_and_crowds(root, card):
    source = open_source(card, "val", root=root)
    sample = source[0]
    assert sample.classes.tolist() == [0, 132, 0, 15]
    assert sample.area.tolist() == [2, 9, 1, 2]  # 9 is what the list says
    assert sample.crowd.tolist() == [False, False, True, False]
    assert sample.segments.tolist() == [[0, 0, 3, 3], [-1, 1, 1, 2]]
    assert semantic_map(sample).tolist() == [[0, 0, 15, 15], [-1, 132, 132, 0]]
    assert (sample.dataset, sample.name) == ("coco_panoptic", "0007")
    kinds = [array.dtype.name for array in (sample.segments, sample.classes, sample.area)]
    assert kinds == ["int32"] * 3


def test_the_list_gives_the_samples_and_their_order(root, card):
    picture(root / "coco/val2017/0001.jpg")  # in the folder, but not in the list
    source = open_source(card, "val", root=root)
    assert [source[i].name for i in range(len(source))] == ["0007", "0003"]
    assert source.files(1) == ("coco/val2017/0003.jpg", "coco/panoptic_val2017/0003.png")


def test_samples_are_the_same_at_random_from_threads_and_after_pickling(root, card):
    paint(root / "coco/panoptic_val2017/0003.png", np.full((2, 4), C))
    write_list(root, [annotation("0007"), annotation("0003", [SEGMENTS[1]])])
    source = pickle.loads(pickle.dumps(open_source(card, "val", root=root)))
    with ThreadPoolExecutor(4) as pool:
        samples = list(pool.map(source.__getitem__, [1, 0] * 8))
    assert [sample.segments.sum() for sample in samples] == [0, 9] * 8


def test_an_image_may_have_no_segment(root, card):
    paint(root / "coco/panoptic_val2017/0003.png", np.zeros((2, 4)))
    write_list(root, [annotation("0007"), annotation("0003", [])])
    sample = open_source(card, "val", root=root)[1]
    assert sample.segments.tolist() == [[-1] * 4] * 2
    assert sample.classes.shape == sample.area.shape == sample.crowd.shape == (0,)


def test_a_segment_of_a_void_category_is_void(root, card):
    taxonomy = dataclasses.replace(card.taxonomy, void=(0, 201))
    write_list(root, [annotation("0007", [SEGMENTS[0] | {"category_id": 201}, *SEGMENTS[1:]])])
    sample = open_source(dataclasses.replace(card, taxonomy=taxonomy), "val", root=root)[0]
    assert sample.classes.tolist() == [132, 0, 15]
    assert sample.segments.tolist() == [[-1, -1, 2, 2], [-1, 0, 0, 1]]


def test_own_data_may_have_other_names_and_folders(tmp_path, card):
    files = Files(
        folder="mine",
        images=("pictures/{name}.jpg",),
        labels="masks/{split}/m_{name}_pan.png",
        segments="{split}.json",
    )
    picture(tmp_path / "mine/pictures/a/0007.jpg")
    paint(tmp_path / "mine/masks/val/m_a/0007_pan.png", IDS)
    entry = annotation("0007") | {"file_name": "m_a/0007_pan.png"}
    write_list(tmp_path, [entry]).rename(tmp_path / "mine/val.json")
    source = open_source(dataclasses.replace(card, files=files), "val", root=tmp_path)
    assert source[0].name == "a/0007"
    assert source[0].segments.tolist() == [[0, 0, 3, 3], [-1, 1, 1, 2]]


def test_segments_that_only_the_png_has_name_it_and_the_list(root, card):
    write_list(root, [annotation("0007", SEGMENTS[:2])])
    with pytest.raises(
        UserError, match=r"0007\.png: segment 300, 16777215 is not listed in .*val2017\.json"
    ):
        open_source(card, "val", root=root)[0]


def test_segments_that_only_the_list_has_name_it_and_the_png(root, card):
    write_list(root, [annotation("0007", [*SEGMENTS, SEGMENTS[0] | {"id": 9}])])
    with pytest.raises(UserError, match=r"val2017\.json: lists segment 9 of .*0007\.png"):
        open_source(card, "val", root=root)[0]


def test_a_segment_that_is_listed_twice_is_an_error(root, card):
    write_list(root, [annotation("0007", [*SEGMENTS, SEGMENTS[0]])])
    with pytest.raises(UserError, match=r"0007\.png has segment 70000 twice"):
        open_source(card, "val", root=root)[0]


def test_an_unmapped_category_is_listed_by_the_check_with_its_image(root, card):
    write_list(
        root,
        [
            annotation("0007"),
            annotation("0003", [SEGMENTS[0] | {"category_id": 12}, *SEGMENTS[1:]]),
        ],
    )
    source = open_source(card, "val", root=root)
    assert len(source[0].classes) == 4
    with pytest.raises(UserError, match=r"0003\.png: unmapped category id 12: .*coco\.toml.*void;"):
        source[1]
    report = check(card, "val", root=root)
    assert [p for p in report.problems if "12" in p][0].endswith("1 images: coco/val2017/0003.jpg")


def test_the_check_lists_segments_that_do_not_fit(root, card):
    write_list(root, [annotation("0007", SEGMENTS[:3]), annotation("0003")])
    report = check(card, "val", root=root)
    (problem,) = report.problems
    assert "0007.png: segment 300 is not listed" in problem
    assert report.classes["cat"]["segments"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 0}, "id from 1"),
        ({"id": 2**24}, "id from 1 to 16777215"),
        ({"area": None}, "whole numbers"),
        ({"area": 2.5}, "whole numbers"),
        ({"area": 10**30}, "whole numbers"),
        ({"iscrowd": 2}, "iscrowd 0 or 1"),
        ({"category_id": "cat"}, "whole numbers"),
        ({"category_id": -1}, "whole numbers"),
    ],
)
def test_a_segment_with_wrong_values_names_its_image(root, card, change, words):
    write_list(root, [annotation("0007", [SEGMENTS[0] | change, *SEGMENTS[1:]])])
    with pytest.raises(UserError, match=rf"json: the segments_info of '0007\.png'.*{words}"):
        open_source(card, "val", root=root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a JSON file"),
        ('{"annotations": [{"file_na', "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("\ufeff", "not a JSON file"),
        ("[]", "not of COCO's panoptic format"),
        ('{"images": []}', "not of COCO's panoptic format"),
        ('{"annotations": {}}', "not of COCO's panoptic format"),
        (
            '{"annotations": [{"id": 1, "image_id": 7, "category_id": 18}]}',
            "not of COCO's panoptic",
        ),
        ('{"annotations": [{"segments_info": []}]}', "file_name None"),
        (
            '{"annotations": [{"segments_info": 5, "file_name": "a.png"}]}',
            "segments_info of 'a.png'",
        ),
        ('{"annotations": [{"segments_info": [[]], "file_name": "a.png"}]}', "of 'a.png' is wrong"),
        ('{"annotations": []}', "annotations is empty"),
    ],
)
def test_a_list_that_is_broken_or_something_else_is_named(root, card, text, words):
    path = root / "coco/annotations/panoptic_val2017.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        open_source(card, "val", root=root)
    assert str(caught.value).startswith(str(path))
    assert words in check(card, "val", root=root).problems[0]


def test_a_list_that_is_not_there_is_named(root, card):
    with pytest.raises(UserError, match=r"panoptic_train2017\.json: cannot read"):
        open_source(card, "train", root=root)


def test_an_image_that_only_the_list_has_is_named(root, card):
    write_list(root, [annotation("0007"), annotation("0008"), annotation("0009")])
    with pytest.raises(
        UserError, match=r"val2017\.json: lists '0008', but no file .*\(2 of 3 images"
    ):
        open_source(card, "val", root=root)


def test_a_listed_image_without_a_png_is_named(root, card):
    (root / "coco/panoptic_val2017/0003.png").unlink()
    with pytest.raises(UserError, match=r"0003\.jpg has no label .*0003\.png \(1 of 2"):
        open_source(card, "val", root=root)


@pytest.mark.parametrize("name", ["0007.jpg", "../0007", ".png"])
def test_a_file_name_that_does_not_fit_the_card_is_an_error(root, card, name):
    write_list(root, [annotation("0007") | {"file_name": name}])
    with pytest.raises(UserError, match=r"file_name '.*' is not the name of a label file .*\.png"):
        open_source(card, "val", root=root)


def test_a_file_name_cannot_lead_out_of_the_tree(root, card):
    picture(root / "coco/outside.jpg")
    paint(root / "coco/outside.png", IDS)
    write_list(root, [annotation("0007") | {"file_name": "../outside.png"}])
    with pytest.raises(UserError, match=r"lists '\.\./outside', but no file"):
        open_source(card, "val", root=root)


def test_an_image_that_is_listed_twice_is_an_error(root, card):
    write_list(root, [annotation("0007"), annotation("0007")])
    with pytest.raises(UserError, match=r"lists '0007\.png' twice"):
        open_source(card, "val", root=root)


def test_image_and_png_of_other_sizes_are_both_named(root, card):
    picture(root / "coco/val2017/0007.jpg", size=(3, 3))
    with pytest.raises(UserError, match=r"0007\.jpg is 3x3.*0007\.png is 4x2"):
        open_source(card, "val", root=root)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segments": ""}, r"files\.segments is missing; panoptic_png needs it"),
        ({"instances": "i/{name}.png"}, r"files\.instances is not read by panoptic_png"),
        ({"list": "{split}.txt"}, r"files\.list is not read by panoptic_png"),
    ],
)
def test_files_that_do_not_fit_the_format_are_named(root, card, changes, words):
    files = dataclasses.replace(card.files, **changes)
    with pytest.raises(UserError, match=words):
        open_source(dataclasses.replace(card, files=files), "val", root=root)


def test_a_semantic_card_cannot_have_instances(root, card):
    with pytest.raises(UserError, match="task is 'semantic'.*instances.*task = \"panoptic\""):
        open_source(dataclasses.replace(card, task="semantic"), "val", root=root)


@pytest.fixture
def sample_root(tmp_path):
    """The two sample images of COCO's panopticapi, as COCO's own tree has them."""
    found = Path(os.environ.get("LMSEG_DATA", "/nowhere"), "coco_panoptic_sample")
    if not found.is_dir():
        pytest.skip("LMSEG_DATA names no folder with coco_panoptic_sample")
    shutil.copytree(found / "input_images", tmp_path / "coco/val2017")
    shutil.copytree(found / "panoptic_examples", tmp_path / "coco/panoptic_val2017")
    (tmp_path / "coco/annotations").mkdir()
    shutil.copy(
        found / "panoptic_examples.json", tmp_path / "coco/annotations/panoptic_val2017.json"
    )
    return tmp_path


def test_the_real_samples_are_read_as_their_files_say(sample_root, card):
    text = (sample_root / "coco/annotations/panoptic_val2017.json").read_text(encoding="utf-8")
    annotations = json.loads(text)["annotations"]
    source = open_source(card, "val", root=sample_root)
    assert len(source) == len(annotations) == 2
    for index, entry in enumerate(annotations):
        sample, rows = source[index], entry["segments_info"]
        with Image.open(sample_root / "coco/panoptic_val2017" / entry["file_name"]) as file:
            ids = np.array(file.convert("RGB")).astype(int) @ [1, 256, 65536]
        assert card.taxonomy.ids[sample.classes].tolist() == [row["category_id"] for row in rows]
        assert sample.area.tolist() == [row["area"] for row in rows]
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(sample.segments == place, ids == row["id"])
        np.testing.assert_array_equal(sample.segments == -1, ids == 0)


def test_the_real_samples_pass_check_and_show(sample_root, capsys):
    text = Path(load_card("coco_panoptic").path).read_text(encoding="utf-8")
    path = sample_root / "card.toml"
    path.write_text(text.replace("val = 5000", "val = 2"), encoding="utf-8")
    dataset = [str(path), "--root", str(sample_root), "--split", "val"]
    assert main(["check", *dataset]) == 0
    assert "coco_panoptic/val: OK, 2 images" in capsys.readouterr().out
    assert main(["show", *dataset, "--output", str(sample_root / "sheet.png")]) == 0
