import json
import shutil

import numpy as np
import pytest

from lmseg_jax.datasets.card import load_card
from tests.predictions import (
    official_tree,
    plant_prediction,
    run,
    save,
    score_road,
    write_list,
    write_semantic,
)
from tests.roads import check_refused
from tests.tiny_tree import write_tree


@pytest.fixture
def tree(tmp_path):
    return plant_prediction(tmp_path)


def test_images_of_one_stem_are_told_apart_by_their_folders(tree):
    roads, ids = tree / "roads", np.array([[7, 3, 255], [7, 7, 3]])
    for folder in ("one", "two"):
        (roads / "train" / folder).mkdir()
        shutil.copy(roads / "train/a.png", roads / f"train/{folder}/b.png")
        save(roads / f"train_labels/{folder}/b.png", ids if folder == "one" else ids[:, ::-1])
        save(tree / f"found/{folder}/b.png", ids if folder == "one" else ids[:, ::-1])
    (roads / "train/a.png").unlink()
    assert score_road(tree)["miou"] == 100
    (tree / "found/two/b.png").rename(tree / "found/b.png")
    check_refused(lambda: score_road(tree), "1 of 2 images have no prediction", "two/b.png")


def test_missing_predictions_are_counted_and_the_first_is_named(tmp_path):
    path = write_tree(tmp_path)
    write_semantic(load_card(path), "train", root=tmp_path, folder=tmp_path / "found", limit=5)
    (tmp_path / "found/2.png").unlink()
    refused = "4 of 8 images have no prediction, the first is 2.png"
    check_refused(
        lambda: run(path, "train", root=tmp_path, folder=tmp_path / "found"),
        tmp_path / "found",
        refused,
    )


def test_two_predictions_of_one_image_are_refused(tree):
    save(tree / "found/more/a.PNG", [[7]])
    save(tree / "found/a.png", [[7]])
    check_refused(lambda: score_road(tree), "a.png", "a.PNG", "both the prediction", "remove one")


def test_wrong_semantic_predictions_are_refused(tree):
    check_refused(lambda: score_road(tree, [[7, 3]]), "a.png is 2x1", "is 3x2", "original image")
    check_refused(lambda: score_road(tree, np.zeros((2, 3, 3))), "a.png", "colours", "card's id")
    (tree / "found/a.png").write_bytes(b"\x89PNG no more")
    check_refused(lambda: score_road(tree), "a.png", "cannot be decoded")
    (tree / "found/a.png").unlink()
    write_list(tree / "found", [])
    check_refused(lambda: score_road(tree), "no prediction", "a panoptic card scores")


@pytest.fixture
def panoptic(tmp_path):
    """A perfect prediction of eight images, to be spoiled: (card, root, annotations)."""
    path, found, _ = official_tree(tmp_path, "plain")
    return path, tmp_path, json.loads((found / "predictions.json").read_text())["annotations"]


def check_bad(panoptic, change, *words):
    path, root, annotations = panoptic
    found = root / "found"
    changed = change(annotations, found)
    write_list(found, annotations if changed is None else changed)
    check_refused(lambda: run(path, "val", root=root, folder=found), *words)


def test_a_segment_that_the_list_lacks_is_refused(panoptic):
    def change(annotations, found):
        annotations[2]["segments_info"].pop()

    check_bad(panoptic, change, "000000000002.png: segment", "is not listed in", "predictions.json")


def test_a_segment_that_the_png_lacks_is_refused(panoptic):
    def change(annotations, found):
        annotations[2]["segments_info"].append({"id": 999, "category_id": 3})

    check_bad(panoptic, change, "predictions.json: lists segment 999", "which has no such pixel")


def test_a_segment_that_is_listed_twice_is_refused(panoptic):
    def change(annotations, found):
        annotations[2]["segments_info"].append(annotations[2]["segments_info"][0])

    check_bad(panoptic, change, "000000000002.png has segment", "twice")


def test_a_category_that_the_card_lacks_is_refused(panoptic):
    def change(annotations, found):
        annotations[3]["segments_info"][0]["category_id"] = 4

    check_bad(
        panoptic, change, "category_id 4", "is no class of", "000000000003.png", "the card's ids"
    )


def test_images_without_a_panoptic_prediction_are_counted(panoptic):
    def change(annotations, found):
        return annotations[:1] + annotations[3:]

    check_bad(panoptic, change, "2 of 8 images have no prediction, the first is 000000000001.png")


def test_a_png_that_is_only_listed_is_named(panoptic):
    def change(annotations, found):
        (found / "000000000004.png").unlink()

    check_bad(panoptic, change, "000000000004.png: no such file", "1 of 8 PNGs")


def test_two_annotations_of_one_image_are_refused(panoptic):
    def change(annotations, found):
        annotations.append(annotations[0])

    check_bad(panoptic, change, "are both the prediction of image '000000000000'")


def test_a_file_outside_the_folder_is_not_read(panoptic):
    def change(annotations, found):
        annotations[0]["file_name"] = "../000000000000.png"

    check_bad(panoptic, change, "'../000000000000.png' is not in the folder of the list")


def test_a_panoptic_map_of_another_size_is_refused(panoptic):
    def change(annotations, found):
        annotations[0]["segments_info"] = []
        save(found / "000000000000.png", np.zeros((3, 4, 3)))

    check_bad(panoptic, change, "000000000000.png is 4x3", "is 12x9")


def test_a_list_that_is_no_list_is_refused(panoptic):
    path, root, _ = panoptic
    for text, word in (("{", "not a JSON file"), ("[]", "not of COCO's panoptic format")):
        (root / "found/predictions.json").write_text(text)
        check_refused(lambda: run(path, "val", root=root, folder=root / "found"), word)
    rows = [{"id": "1", "category_id": 3}]
    write_list(root / "found", [{"file_name": "0.png", "segments_info": rows}])
    check_refused(
        lambda: run(path, "val", root=root, folder=root / "found"),
        "segments_info of '0.png' is wrong; expected id, category_id for each segment",
    )


def test_label_maps_for_a_panoptic_card_are_refused(panoptic):
    path, root, _ = panoptic
    (root / "found/predictions.json").unlink()
    check_refused(
        lambda: run(path, "val", root=root, folder=root / "found"),
        "predictions.json: no such file",
        "is a panoptic card",
    )
