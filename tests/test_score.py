import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmseg_jax import cli
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.predictions import open_predictions
from lmseg_jax.score import Score, score_images
from tests.predictions import (
    official_tree,
    plant_prediction,
    run,
    save,
    score_road,
    write_panoptic,
    write_semantic,
)
from tests.roads import check_refused, edit
from tests.tiny_tree import write_tree

MEANS = ("miou", "miou_legacy", "fwiou", "macc", "pacc")


def check_perfect(scores, *, panoptic=False):
    keys = [*MEANS, *(["pq", "sq", "rq"] if panoptic else [])]
    assert [scores[key] for key in keys] == [100] * len(keys)


@pytest.fixture
def tree(tmp_path):
    return plant_prediction(tmp_path)


def test_the_scores_of_a_map_by_hand(tree, capsys):
    scores = score_road(tree, [[7, 7, 3], [7, 3, 3]])
    # road: 2 of 3 pixels found, one more predicted on person; person: 1 of 2, one more predicted
    assert scores["iou"] == {"road": pytest.approx(50), "person": pytest.approx(100 / 3)}
    assert scores["miou"] == scores["miou_legacy"] == pytest.approx(125 / 3)
    assert scores["fwiou"] == pytest.approx(0.6 * 50 + 0.4 * 100 / 3)
    assert scores["macc"] == pytest.approx((200 / 3 + 50) / 2)
    assert scores["pacc"] == pytest.approx(60)
    assert set(scores) == {*MEANS, "iou"}
    printed = capsys.readouterr().out
    assert "road            50.0" in printed and "41.67" in printed
    assert "roads/train: 1 images" in printed


@pytest.mark.parametrize("other", [255, 0, 9])
def test_void_and_unknown_ids_are_wrong_and_counted(tree, capsys, other):
    scores = score_road(tree, [[7, other, other], [7, 7, 3]])
    assert scores["iou"] == {"road": 100, "person": pytest.approx(50)}
    assert scores["pacc"] == pytest.approx(80)
    assert "20.0 % of the pixels hold no class of the card: wrong" in capsys.readouterr().out


def test_maps_of_16_bits_palettes_and_large_ids_are_read(tree):
    assert score_road(tree, [[7, 3, 0], [7, 7, 3]], np.uint16)["miou"] == 100
    assert score_road(tree, [[7, 60_000, 0], [7, 7, 3]], np.uint16)["pacc"] == pytest.approx(80)
    image = Image.fromarray(np.array([[7, 3, 0], [7, 7, 3]], np.uint8))
    image.putpalette(list(range(256)) * 3)
    image.save(tree / "found/a.png")
    assert score_road(tree)["miou"] == 100


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_truth_as_prediction_is_perfect_for_label_files(tmp_path, threads):
    path = write_tree(tmp_path)
    write_semantic(load_card(path), "train", root=tmp_path, folder=tmp_path / "found")
    more = ["--threads", threads]
    check_perfect(run(path, "train", root=tmp_path, folder=tmp_path / "found", more=more))


def test_only_the_first_images_are_asked_for_with_a_limit(tmp_path, capsys):
    path, found = write_tree(tmp_path), tmp_path / "found"
    write_semantic(load_card(path), "train", root=tmp_path, folder=found, limit=3)
    save(found / "stray.png", [[0]])
    check_perfect(run(path, "train", root=tmp_path, folder=found, more=["--limit", "3"]))
    printed = capsys.readouterr().out
    assert "tiny/train: 3 images" in printed
    assert "the card expects 8 images: this is a part of the split" in printed
    assert "1 predictions belong to no image of this split" in printed


CITY = "frankfurt/frankfurt_000000_000294"
STEM = "frankfurt_000000_000294_leftImg8bit"


@pytest.fixture
def city(tmp_path):
    """One image of Cityscapes' val: a road, two cars, a group of cars, sky and void."""
    instances = np.array([[7, 26_001, 26_000, 26, 26], [3, 29_000, 30, 23, 23]])
    labels = np.where(instances < 1000, instances, instances // 1000)
    save(tmp_path / f"cityscapes/leftImg8bit/val/{CITY}_leftImg8bit.png", np.zeros((2, 5, 3)))
    save(tmp_path / f"cityscapes/gtFine/val/{CITY}_gtFine_labelIds.png", labels)
    save(tmp_path / f"cityscapes/gtFine/val/{CITY}_gtFine_instanceIds.png", instances, np.uint16)
    return tmp_path


def test_the_truth_as_prediction_is_perfect_for_cityscapes(city):
    card, found = load_card("cityscapes"), city / "found"
    write_semantic(card, "val", root=city, folder=found / "frankfurt")  # folders do not matter
    assert (found / f"frankfurt/{STEM}.png").exists()
    check_perfect(run("cityscapes", "val", root=city, folder=found))


def test_the_truth_as_prediction_is_perfect_for_cityscapes_instances(city):
    found = city / "found"
    write_panoptic(load_card("cityscapes_panoptic"), "val", root=city, folder=found)
    scores = run("cityscapes_panoptic", "val", root=city, folder=found)
    check_perfect(scores, panoptic=True)
    car = {"pq": 100, "sq": 100, "rq": 100, "tp": 2, "fp": 0, "fn": 0}  # the crowd is left out
    assert scores["classes"]["car"] == car
    assert scores["pq_things"] == scores["sq_stuff"] == scores["rq_stuff"] == 100


def test_the_truth_as_prediction_is_perfect_for_ade20k_instances(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    # wall 1 is stuff, bed 8 and window 9 things, which no instance of another class overlaps
    labels = np.array([[1, 1, 8, 8], [1, 3, 8, 9], [0, 3, 9, 9]])
    categories = np.select([labels == 8, labels == 9], [1, 2])
    instances = np.stack([categories, 3 * categories, 0 * labels], axis=-1)
    save(folder / "images/validation/one.jpg", np.zeros((3, 4, 3)))
    save(folder / "annotations/validation/one.png", labels)
    save(folder / "annotations_instance/validation/one.png", instances)
    write_panoptic(load_card("ade20k_panoptic"), "val", root=tmp_path, folder=tmp_path / "found")
    scores = run("ade20k_panoptic", "val", root=tmp_path, folder=tmp_path / "found")
    check_perfect(scores, panoptic=True)
    write_semantic(load_card("ade20k"), "val", root=tmp_path, folder=tmp_path / "labels")
    check_perfect(run("ade20k", "val", root=tmp_path, folder=tmp_path / "labels"))


def test_the_truth_as_prediction_is_perfect_for_worlds(tmp_path):
    write_panoptic(load_card("world_colors"), "val", root="", folder=tmp_path, limit=3)
    more = ["--limit", "3"]
    scores = run("world_colors", "val", root="", folder=tmp_path, more=more)
    check_perfect(scores, panoptic=True)


@pytest.mark.parametrize("name", ["plain", "crowds", "empty images"])
def test_files_score_what_panopticapi_gives_them(tmp_path, name):
    card, found, expected = official_tree(tmp_path, name)
    scores = run(card, "val", root=tmp_path, folder=found)
    for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            assert scores[key + suffix] == pytest.approx(100 * expected[group][key], abs=1e-7)
    for category, row in expected["classes"].items():
        found_row = scores["classes"][category]
        assert [found_row[key] for key in ("tp", "fp", "fn")] == [
            row[k] for k in ("tp", "fp", "fn")
        ]


def test_scores_of_parts_add_up_to_that_of_all_images(tmp_path):
    path, found, _ = official_tree(tmp_path, "plain")
    card = load_card(path)
    source = open_source(card, "val", root=tmp_path)
    predictions = open_predictions(found, card, source, count=len(source))

    def part(*indices):
        return score_images(card, source, predictions, indices=indices)

    whole, parts = part(*range(8)), Score(card)
    for process in range(3):
        parts.merge(part(*range(process, 8, 3)))
    assert parts.compute() == whole.compute()


class Watched:
    """Gives out the samples of a source and knows how many of them are alive."""

    def __init__(self, source, count):
        self.source, self.count, self.given, self.most = source, count, [], 0

    def __getitem__(self, index):
        sample = self.source[index % self.count]
        self.given.append(weakref.ref(sample))
        self.most = max(self.most, self.alive())
        return sample

    def alive(self):
        return sum(given() is not None for given in self.given)


def test_images_and_predictions_are_not_kept(tmp_path):
    card = load_card(write_tree(tmp_path))
    write_semantic(card, "train", root=tmp_path, folder=tmp_path / "found")
    source = open_source(card, "train", root=tmp_path)
    truth = Watched(source, 8)
    found = Watched(open_predictions(tmp_path / "found", card, source, count=8), 8)
    score_images(card, truth, found, indices=range(60), threads=2)
    for watched in (truth, found):
        assert len(watched.given) == 60
        assert watched.most <= 3 and watched.alive() == 0


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--limit", "-1"], "--limit is -1; expected at least 0"),
        (["--threads", "0"], "--threads is 0; expected at least 1"),
        (["--predictions", "nowhere"], "--predictions nowhere: no such folder"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: no file can be written"),
        (["--split", "test"], "no split 'test'"),
    ],
)
def test_wrong_flags_are_refused(tree, more, word):
    save(tree / "found/a.png", [[7, 3, 0], [7, 7, 3]])
    check_refused(lambda: score_road(tree, more=more), word)


def test_the_command_is_one_of_lmseg(tree, capsys):
    edit(tree, 'name = "roads"', 'name = "streets"')
    save(tree / "found/a.png", [[7, 3, 0], [7, 7, 3]])
    arguments = ["--card", f"{tree}/roads.toml", "--split", "train", "--root", str(tree)]
    assert cli.main(["score", *arguments, "--predictions", str(tree / "found")]) == 0
    assert "streets/train: 1 images" in capsys.readouterr().out
    assert cli.main(["score", *arguments, "--predictions", "nowhere"]) == 2


def sample(name):
    found = Path(os.environ.get("LMSEG_DATA", "/nowhere"), name)
    if not found.is_dir():
        pytest.skip(f"LMSEG_DATA names no folder with {name}")
    return found


def test_real_label_files_score_a_hundred(tmp_path):
    root, more = sample("camvid").parent, ["--limit", "4"]
    write_semantic(load_card("camvid"), "val", root=root, folder=tmp_path, limit=4)
    check_perfect(run("camvid", "val", root=root, folder=tmp_path, more=more))


def test_real_files_of_ade20k_score_a_hundred(tmp_path):
    root = tmp_path / "root"
    shutil.copytree(sample("ade20k_sample"), root / "ADEChallengeData2016")
    write_semantic(load_card("ade20k"), "val", root=root, folder=tmp_path / "found")
    check_perfect(run("ade20k", "val", root=root, folder=tmp_path / "found"))


def test_real_files_of_coco_score_a_hundred(tmp_path):
    found = sample("coco_panoptic_sample")
    shutil.copytree(found / "input_images", tmp_path / "coco/val2017")
    shutil.copytree(found / "panoptic_examples", tmp_path / "coco/panoptic_val2017")
    (tmp_path / "coco/annotations").mkdir()
    listed = tmp_path / "coco/annotations/panoptic_val2017.json"
    shutil.copy(found / "panoptic_examples.json", listed)
    shutil.copytree(tmp_path / "coco/panoptic_val2017", tmp_path / "found")
    shutil.copy(listed, tmp_path / "found/predictions.json")  # the very files are a prediction
    scores = run("coco_panoptic", "val", root=tmp_path, folder=tmp_path / "found")
    check_perfect(scores, panoptic=True)
