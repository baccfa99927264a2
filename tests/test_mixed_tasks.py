"""Semantic and panoptic cards in one run: the batches of both, and the scores of each."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from lmseg_jax import scoring
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan

IMAGES = 60  # Grain shuffles very short lists slowly
ROAD, BUILDING = 3, 1  # of CamVid
PERSON, SKY = 0, 119  # of COCO: sky-other-merged


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """camvid: left half building, right half road. coco: two people left, sky right, a crowd."""
    root = tmp_path_factory.mktemp("data")
    labels = np.full((32, 64), BUILDING)
    labels[:, 32:] = ROAD
    ids = np.zeros((32, 64, 3))
    ids[:16, :32, 0], ids[16:, :32, 0], ids[:, 32:, 0], ids[:8, :8, 0] = 1, 2, 3, 4
    kinds = {1: (1, 0), 2: (1, 0), 3: (187, 0), 4: (1, 1)}  # category, iscrowd
    segments = [
        {"id": i, "category_id": kind, "area": int((ids[..., 0] == i).sum()), "iscrowd": crowd}
        for i, (kind, crowd) in kinds.items()
    ]
    annotations = []
    for i in range(IMAGES):
        write(root / f"camvid/train/{i:02}.png", np.full((32, 64, 3), 100))
        write(root / f"camvid/trainannot/{i:02}.png", labels)
        write(root / f"coco/train2017/{i:02}.jpg", np.full((32, 64, 3), 200))
        write(root / f"coco/panoptic_train2017/{i:02}.png", ids)
        annotations.append({"file_name": f"{i:02}.png", "segments_info": segments})
    (root / "coco/annotations").mkdir()
    path = root / "coco/annotations/panoptic_train2017.json"
    path.write_text(json.dumps({"annotations": annotations}), encoding="utf-8")
    cards = [load_card("camvid"), load_card("coco_panoptic")]
    cards = [replace(card, test=replace(card.test, short_side=32, max_side=64)) for card in cards]
    return [(card, open_source(card, "train", root=root)) for card in cards]


def test_one_update_has_valid_batches_of_both_tasks(sources):
    recipe = Recipe((), 0, (32, 64), False, "horizontal", ("flip",))
    feeds = [
        Feed(card.name, source, recipe, dataset) for dataset, (card, source) in enumerate(sources)
    ]
    plan = Plan([recipe.crop] * 2, (), batch=4, multiple=2)
    (update,) = Loader(feeds, plan, seed=3, max_targets=5).iterate(0, 1)
    assert len(update.buckets) == 2
    for bucket in update.buckets:
        (dataset,) = set(bucket["dataset"].tolist())
        expected = [[BUILDING, ROAD, -1, -1, -1], [PERSON, PERSON, SKY, -1, -1]][dataset]
        assert bucket["classes"].tolist() == [expected] * 2
        for segments in bucket["segments"]:
            counts = np.bincount(segments.ravel() + 1, minlength=4).tolist()
            assert counts == [[0, 1024, 1024, 0], [64, 448, 512, 1024]][dataset]  # void first


class Perfect:
    """Says of every image what the two datasets hold: left above, left below, right."""

    local = type("Mesh", (), {"size": 2})()
    classes = [(BUILDING, BUILDING, ROAD), (PERSON, PERSON, SKY)]

    def __call__(self, batch):
        images, height, width, _ = batch["image"].shape
        logits = np.full((images, 3, 134), -20.0, np.float32)
        for row, dataset in enumerate(batch["dataset"]):
            logits[row, range(3), self.classes[dataset]] = 20
        masks = np.full((images, 3, height // 4, width // 4), -20.0, np.float32)
        masks[:, 0, : height // 8, : width // 8] = 20
        masks[:, 1, height // 8 :, : width // 8] = 20
        masks[:, 2, :, width // 8 :] = 20
        return {"logits": logits, "masks": masks}


def score(sources):
    sets = [
        scoring.EvaluationSet([source[0]], card, dataset)
        for dataset, (card, source) in enumerate(sources)
    ]
    evaluation = {"batch": 1, "pictures": 1, "flip": False, "scales": ()}
    config = ConfigDict({"evaluation": evaluation, "data": {"threads": 1}})
    return scoring.evaluate_all(Perfect(), sets, config)


def test_each_card_is_scored_by_its_own_task(sources):
    scores, pictures = score(sources)
    assert scores["camvid"]["miou"] == scores["coco_panoptic"]["miou"] == 100
    assert "pq" not in scores["camvid"]
    assert scores["coco_panoptic"]["rq"] == 100  # the crowd's pixels are of a person
    assert pictures["camvid"][0].segments is None
    assert pictures["coco_panoptic"][0].segments is not None


def test_the_official_area_of_a_segment_reaches_its_score(sources):
    """A person with three times the area that the PNG shows: IoU 1/3, so it is missed."""
    camvid, (coco, source) = sources
    sample = source[0]
    area = sample.area * [1, 3, 1, 1]
    scores, _ = score([camvid, (coco, [replace(sample, area=area)])])
    found = scores["coco_panoptic"]["classes"]
    assert (found["person"]["tp"], found["person"]["fn"], found["person"]["fp"]) == (1, 1, 1)
    assert found["sky-other-merged"]["tp"] == 1
