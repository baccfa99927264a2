import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.errors import UserError

NAME = "aachen/aachen_000000_000019"

# road, two cars, a group of cars, out of roi, a caravan, a group of trailers, sky
INSTANCE_IDS = np.array([[7, 26_001, 26_000, 26], [3, 29_000, 30, 23]])
LABEL_IDS = np.array([[7, 26, 26, 26], [3, 29, 30, 23]])


@pytest.fixture
def root(tmp_path):
    """One image of train, with every file of the download that shares its folder."""
    write(tmp_path / f"cityscapes/leftImg8bit/train/{NAME}_leftImg8bit.png", np.zeros((2, 4, 3)))
    start = tmp_path / f"cityscapes/gtFine/train/{NAME}_gtFine"
    write(start.with_name(f"{start.name}_labelIds.png"), LABEL_IDS)
    write(start.with_name(f"{start.name}_color.png"), np.zeros((2, 4, 3)))
    write(start.with_name(f"{start.name}_instanceIds.png"), INSTANCE_IDS, np.uint16)
    start.with_name(f"{start.name}_polygons.json").write_text("{}")
    return tmp_path


def write(path, array, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, kind)).save(path)


def card(name, **changes):
    return dataclasses.replace(load_card(name), path="card.toml", splits={"train": 1}, **changes)


def test_label_ids_become_the_classes_of_the_benchmark(root):
    source = open_source(card("cityscapes"), "train", root=root)
    assert len(source) == 1
    sample = source[0]
    assert sample.name == NAME
    assert semantic_map(sample).tolist() == [[0, 13, 13, 13], [-1, -1, -1, 10]]
    assert sample.classes.tolist() == [0, 10, 13]
    assert check(card("cityscapes"), "train", root=root).ok


def test_instance_ids_become_segments_and_groups_become_crowds(root):
    source = pickle.loads(
        pickle.dumps(open_source(card("cityscapes_panoptic"), "train", root=root))
    )
    assert len(source) == 1
    sample = source[0]
    assert sample.classes.tolist() == [0, 10, 13, 13, 13]  # road 7, sky 23, group 26, two cars
    assert sample.crowd.tolist() == [False, False, True, False, False]
    assert sample.area.tolist() == [1, 1, 1, 1, 1]
    assert sample.segments.tolist() == [[0, 4, 3, 2], [-1, -1, -1, 1]]
    assert sample.segments.dtype == sample.classes.dtype == sample.area.dtype == np.int32
    assert check(card("cityscapes_panoptic"), "train", root=root).ok


def test_an_unmapped_label_id_is_an_error_for_both_cards(root):
    start = root / f"cityscapes/gtFine/train/{NAME}_gtFine"
    write(start.with_name(f"{start.name}_labelIds.png"), np.where(LABEL_IDS == 23, 40, LABEL_IDS))
    changed = np.where(INSTANCE_IDS > 26_000, 41_000, np.where(INSTANCE_IDS == 23, 40, 7))
    write(start.with_name(f"{start.name}_instanceIds.png"), changed, np.uint16)
    with pytest.raises(UserError, match=r"labelIds\.png: unmapped label id 40: .*card\.toml"):
        open_source(card("cityscapes"), "train", root=root)[0]
    with pytest.raises(UserError, match=r"instanceIds\.png: unmapped label id 40, 41: "):
        open_source(card("cityscapes_panoptic"), "train", root=root)[0]
    report = check(card("cityscapes_panoptic"), "train", root=root)
    assert [problem.split(":")[0] for problem in report.problems] == [
        "unmapped label 40",
        "unmapped label 41",
    ]


def test_an_image_without_instance_ids_is_named(root):
    (root / f"cityscapes/gtFine/train/{NAME}_gtFine_instanceIds.png").unlink()
    with pytest.raises(UserError, match=r"_leftImg8bit\.png has no label .*_instanceIds\.png"):
        open_source(card("cityscapes_panoptic"), "train", root=root)
    assert len(open_source(card("cityscapes"), "train", root=root)) == 1
