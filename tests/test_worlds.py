"""The checkpoint that is shipped, `lmseg_jax.load("worlds")`, on a scene it has not seen."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import lmseg_jax
from lmseg_jax import assembly, cli, loading, scoring, sharding, state
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map

FOLDER = Path(lmseg_jax.__file__).parent / loading.SHIPPED["worlds"]
CARD = "world_colors"


@pytest.fixture(scope="module")
def model():
    return lmseg_jax.load("worlds")


@pytest.fixture(scope="module")
def scene():
    return open_source(load_card(CARD), "val", root="", limit=1)[0]


@pytest.fixture(scope="module")
def evaluated(model, scene):
    """Evaluation's own picture of the scene: another program, and names that are embedded anew."""
    cards = [load_card(name) for name in model.spaces]
    vocabulary = assembly.vocabulary_of_names(model.model, [card.taxonomy.names for card in cards])
    graph = state.graph(model.model, vocabulary)
    network = scoring.Network(graph, vocabulary, sharding.make_mesh(1, 1, multiple=1))
    network.load(*jax.device_get((model.params, model.frozen)))
    data = scoring.EvaluationSet([scene], load_card(CARD), list(model.spaces).index(CARD))
    _, pictures = scoring.evaluate_set(network, data, batch=1, threads=1, pictures=1)
    return pictures[0]


def test_label_maps_are_those_of_evaluation(model, scene, evaluated):
    found = model.segment(scene.image, taxonomy=CARD)
    assert np.mean(found.labels == evaluated.prediction) > 0.999  # float16 moved the embeddings
    right = found.labels == semantic_map(scene)
    assert np.mean(right[semantic_map(scene) >= 0]) > 0.6


def test_segments_are_those_of_evaluation(model, scene, evaluated):
    found = model.segment(scene.image, taxonomy=CARD, task="panoptic", scores=True)
    assert np.mean(found.segments == evaluated.segments) > 0.999
    assert [row["id"] for row in found.segments_info] == list(range(1, found.segments.max() + 1))
    assert found.segments.max() == evaluated.segments.max() >= 3
    for row in found.segments_info:
        mask = found.segments == row["id"]
        assert row["area"] == mask.sum() and set(found.labels[mask]) == {row["category_id"]}
    np.testing.assert_array_equal(found.labels == -1, found.segments == 0)


def test_words_are_read_and_things_of_free_words_are_found(model, scene):
    words = ["red object", "green object", "blue object, violet object", "grass", "water", "größe"]
    found = model.segment(scene.image, words, task="panoptic")
    assert found.names == tuple(words)
    assert found.taxonomy.things.tolist() == [True, True, True, False, False, True]
    assert found.segments_info


def test_the_manifest_tells_scores_versions_and_no_place_on_a_machine(model):
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    compared = manifest["compared"]["safetensors"]
    assert manifest["half"] and compared["largest_difference"] <= compared["tolerance"] == 0.01
    assert set(manifest["scores"]) == set(manifest["origin"]["scores"]) == set(model.spaces)
    for name, scores in manifest["scores"].items():
        before = manifest["origin"]["scores"][name]
        assert abs(scores["miou"] - before["miou"]) < 0.1 and abs(scores["pq"] - before["pq"]) < 0.1
        assert scores["miou"] > 50
    assert {"jax", "flax", "lmseg_jax"} <= set(manifest["versions"])
    assert not [part for part in json.dumps(manifest).split('"') if part.startswith(("/", "~"))]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6


def test_predict_takes_the_shipped_name(scene, tmp_path, capsys):
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    out = tmp_path / "out"
    flags = ["--checkpoint", "worlds", "--input", str(tmp_path / "scene.png"), "--output", str(out)]
    assert cli.main(["predict", *flags, "--taxonomy", CARD]) == 0, capsys.readouterr().err
    ids = {category.id for category in load_card(CARD).taxonomy.categories}
    assert set(np.unique(np.asarray(Image.open(out / "labels/scene.png"))).tolist()) <= ids
    assert json.loads((out / "predict.json").read_text())["checkpoint"] == "worlds"
