"""Our scores beside those of panopticapi, cityscapesscripts (goldens) and hotcoco (live)."""

import json
from pathlib import Path

import numpy as np
import pytest
from hotcoco import panoptic as hotcoco_panoptic
from hotcoco import semantic as hotcoco_semantic
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.metrics import PanopticMetric, SemanticMetric

GOLDEN = json.loads((Path(__file__).parent / "fixtures/metrics.json").read_text())
CATEGORIES = {int(key): thing for key, thing in GOLDEN["categories"].items()}
IDS = np.array(list(CATEGORIES))
PANOPTIC = {suite["name"]: suite for suite in GOLDEN["panoptic"]}
SEMANTIC = {suite["name"]: suite for suite in GOLDEN["semantic"]}
CITYSCAPES = load_card("cityscapes").taxonomy
GROUPS = {"all": "", "things": "_things", "stuff": "_stuff"}


def classes_of(ids, known):
    """Place of each id in `known`, -1 where it is not there."""
    found = np.full(np.shape(ids), -1)
    for k, value in enumerate(known):
        found[np.equal(ids, value)] = k
    return found


def panoptic_scores(images):
    metric = PanopticMetric([str(i) for i in IDS], np.array(list(CATEGORIES.values()), bool))
    for image in images:
        listed = image["truth_segments"]
        metric.update(
            np.array(image["prediction"]),
            [
                {"id": row["id"], "category": int(classes_of(row["category_id"], IDS))}
                for row in image["prediction_segments"]
            ],
            classes_of(image["truth"], [row["id"] for row in listed]),
            classes_of([row["category_id"] for row in listed], IDS),
            np.array([row["area"] for row in listed], np.int32),
            np.array([row["iscrowd"] for row in listed], bool),
        )
    return metric.compute()


def semantic_scores(images):
    metric = SemanticMetric(CITYSCAPES.names)
    for image in images:
        metric.update(*maps_of(image))
    return metric.compute()


def maps_of(image):
    """Class indices of prediction and truth; what is not evaluated is -1."""
    return [classes_of(image[key], CITYSCAPES.ids) for key in ("prediction", "truth")]


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_scores_equal_panopticapi(name):
    expected, scores = PANOPTIC[name]["scores"], panoptic_scores(PANOPTIC[name]["images"])
    for group, suffix in GROUPS.items():
        for key in ("pq", "sq", "rq"):
            if expected[group] is None:  # panopticapi divides by zero
                assert scores[key + suffix] is None
            else:
                assert scores[key + suffix] == pytest.approx(100 * expected[group][key], abs=1e-7)
    for category, row in expected["classes"].items():
        found = scores["classes"][category]
        assert [found[key] for key in ("tp", "fp", "fn")] == [row[k] for k in ("tp", "fp", "fn")]
        if row["tp"]:
            assert found["sq"] == pytest.approx(100 * row["iou"] / row["tp"], abs=1e-7)


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_scores_equal_cityscapesscripts(name):
    """Its average counts a class that is only predicted, as the legacy rule does."""
    expected, scores = SEMANTIC[name]["scores"], semantic_scores(SEMANTIC[name]["images"])
    truth = np.concatenate([maps_of(image)[1].ravel() for image in SEMANTIC[name]["images"]])
    present = []
    for k, category in enumerate(CITYSCAPES.categories):
        value = expected["iou"][str(category.id)]
        if np.any(truth == k):
            assert scores["iou"][category.name] == pytest.approx(100 * value)
            present.append(value)
        else:
            assert not value and scores["iou"][category.name] is None
    if expected["average"] is None:
        assert scores["miou"] is scores["miou_legacy"] is None
    else:
        assert scores["miou_legacy"] == pytest.approx(100 * expected["average"])
        assert scores["miou"] == pytest.approx(100 * np.mean(present))


@pytest.mark.parametrize("name", [name for name in SEMANTIC if "nothing" not in name])
def test_semantic_scores_equal_hotcoco(name):
    classes = len(CITYSCAPES)
    judge = hotcoco_semantic.SemanticEval(classes + 1)  # the last one stands for "nothing"
    for image in SEMANTIC[name]["images"]:
        prediction, truth = maps_of(image)
        judge.update(np.where(truth < 0, 255, truth), np.where(prediction < 0, classes, prediction))
    expected, scores = judge.results(), semantic_scores(SEMANTIC[name]["images"])
    for ours, theirs in (("fwiou", "fwIoU"), ("macc", "mAcc"), ("pacc", "aAcc")):
        assert scores[ours] == pytest.approx(100 * expected[theirs])
    rows = expected["per_class"][:classes]
    for category, row in zip(CITYSCAPES.names, rows, strict=True):
        if row["gt_area"]:
            assert scores["iou"][category] == pytest.approx(100 * row["IoU"])
    counted = [row["IoU"] for row in rows if row["IoU"] >= 0]
    assert scores["miou_legacy"] == pytest.approx(100 * np.mean(counted))
    if not judge.confusion()[:, classes].any():
        assert scores["miou_legacy"] == pytest.approx(100 * expected["mIoU"])


def paint(path, ids):
    ids = np.array(ids)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)


def write(folder, key, images):
    """COCO's panoptic files; returns the path of the JSON."""
    (folder / key).mkdir()
    annotations = []
    for i, image in enumerate(images):
        paint(folder / key / f"{i}.png", image[key])
        rows = image[f"{key}_segments"]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": rows})
    path = folder / f"{key}.json"
    categories = [
        {"id": i, "name": str(i), "isthing": thing, "color": [0, 0, 0]}
        for i, thing in CATEGORIES.items()
    ]
    listed = [{"id": i, "file_name": f"{i}.png"} for i in range(len(images))]
    whole = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(whole))
    return str(path)


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_scores_equal_hotcoco(name, tmp_path):
    images = PANOPTIC[name]["images"]
    expected = hotcoco_panoptic.pq_compute(
        write(tmp_path, "truth", images), write(tmp_path, "prediction", images)
    )
    scores = panoptic_scores(images)
    for group, suffix in GROUPS.items():
        for key in ("pq", "sq", "rq"):
            if expected[group.capitalize()]["n"]:
                value = pytest.approx(100 * expected[group.capitalize()][key], abs=1e-7)
                assert scores[key + suffix] == value
            else:
                assert scores[key + suffix] is None
    for category, row in expected["per_class"].items():
        found = scores["classes"][str(category)]
        assert [found[key] for key in ("tp", "fp", "fn")] == [row[k] for k in ("tp", "fp", "fn")]
