"""Unseen names: the references that they are compared with, by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from lmseg_jax import configuration, words
from lmseg_jax.datasets.card import load_card
from lmseg_jax.scoring import EvaluationSet
from lmseg_jax.words import Names

PAIRS = (("red", "disc"), ("red", "ring"), ("blue", "disc"), ("blue", "ring"))
NAMES = Names(("color", "shape"), (0, 1, 2, 3), PAIRS, (True, False, False, False))


def counts(rows):
    """Confusion matrix of the four pairs, of grass and of pixels without an answer."""
    matrix = np.zeros((6, 5), int)
    for (answer, truth), pixels in rows.items():
        matrix[answer, truth] = pixels
    return matrix


@pytest.fixture(scope="module")
def found():
    # of 100 red discs: 40 right, 30 called red ring, 20 blue disc, 10 grass; the rest is right
    rows = {(0, 0): 40, (1, 0): 30, (2, 0): 20, (4, 0): 10}
    rows |= {(1, 1): 100, (2, 2): 100, (3, 3): 100, (4, 4): 500}
    return words.compare(counts(rows), NAMES)


def test_the_score_of_names_is_their_mean_iou(found):
    assert found["unseen"]["miou"] == pytest.approx(40.0)  # 40 / (100 + 40 - 40)
    ring, disc = 100 * 100 / 130, 100 * 100 / 120
    assert found["seen"]["miou"] == pytest.approx((ring + disc + 100) / 3)
    assert found["names"]["red ring"] == {
        "unseen": False,
        "iou": pytest.approx(ring),
        "chance": pytest.approx(ring / 4),  # no other answer meets a red ring
        "known": {"color": pytest.approx(ring / 2), "shape": pytest.approx(ring / 2)},
    }


def test_chance_is_the_mean_over_all_answers_and_knowledge_over_those_that_share_a_word(found):
    disc, red_ring, blue_disc, blue_ring = 40.0, 100 * 30 / 200, 100 * 20 / 200, 0.0
    unseen = found["unseen"]
    assert unseen["chance"] == pytest.approx((disc + red_ring + blue_disc + blue_ring) / 4)
    assert unseen["known"]["color"] == pytest.approx((disc + red_ring) / 2)
    assert unseen["known"]["shape"] == pytest.approx((disc + blue_disc) / 2)


def test_chance_is_what_exchanged_names_get_on_average():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 50, (6, 5))
    scores = []
    for order in itertools.permutations(range(4)):
        renamed = np.concatenate([matrix[list(order)], matrix[4:]])
        scores.append(words.compare(renamed, NAMES)["unseen"]["miou"])
    chance = words.compare(matrix, NAMES)["unseen"]["chance"]
    assert chance == pytest.approx(np.mean(scores))


def test_wrong_answers_are_told_apart_by_the_word_that_is_right(found):
    assert found["unseen"]["answers"] == pytest.approx(
        {"right": 40, "only color": 30, "only shape": 20, "other": 0, "no thing": 10}
    )
    assert found["seen"]["answers"]["right"] == 100


def test_a_name_without_true_pixels_has_no_part_in_a_mean():
    matrix = counts({(0, 0): 10, (3, 1): 10, (3, 3): 10})  # no blue disc
    found = words.compare(matrix, NAMES)
    assert found["names"]["blue disc"]["iou"] is None
    assert found["seen"]["miou"] == pytest.approx((0 + 50) / 2)


def test_the_table_names_groups_and_unseen_names(found):
    for group in ("seen", "unseen"):
        found[group]["pq"] = None
    entries = {name: entry | {"pq": 12.5} for name, entry in found["names"].items()}
    lines = words.table("world", found | {"names": entries, "images": 3}).splitlines()
    assert lines[0] == "world, 3 images: mean IoU over names, and by name"
    assert lines[1].split() == ["IoU", "chance", "color", "known", "shape", "known", "PQ"]
    assert lines[3].split() == ["1", "unseen", "40.0", "16.2", "27.5", "25.0", "-"]
    assert lines[4].split() == ["red", "disc", "40.0", "16.2", "27.5", "25.0", "12.5"]
    assert "unseen names by answer: right 40.0, only color 30.0" in lines[-1]


def test_unseen_are_the_things_that_no_training_world_names():
    card = load_card("world_words_unseen")
    seen = set(load_card("world_words").taxonomy.names)
    names = words.names_of(EvaluationSet([], card, 0), seen)
    assert names.attributes == ("color", "shape") and len(names.words) == 30
    unseen = [" ".join(pair) for pair, new in zip(names.words, names.unseen, strict=True) if new]
    assert tuple(sorted(unseen)) == tuple(
        sorted(configuration.load("clip_worlds:unnamed").pretrain.unnamed)
    )


def test_each_colour_and_each_shape_is_named_in_several_pairs_of_training():
    pairs = [name.split() for name in load_card("world_words").taxonomy.names if " " in name]
    colors, shapes = zip(*pairs, strict=True)
    assert {colors.count(color) for color in colors} == {4, 5}
    assert {shapes.count(shape) for shape in shapes} == {4}


def test_no_training_world_names_an_unseen_pair():
    config = configuration.load("worlds_words")
    configuration.check(config)
    unnamed = set(configuration.load("clip_worlds:unnamed").pretrain.unnamed)
    for name in config.data.train:
        assert not unnamed & set(load_card(name).taxonomy.names)
    assert unnamed <= set(load_card(config.data.evaluate[-1]).taxonomy.names)


def test_names_of_another_form_are_left_out():
    card = load_card("world_patterns")  # "striped object", by texture alone
    assert words.names_of(EvaluationSet([], card, 0), set()).words == ()
    card = dataclasses.replace(card, options={})
    assert words.names_of(EvaluationSet([], card, 0), set()).words == ()
