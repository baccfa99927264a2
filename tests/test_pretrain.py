"""Contrastive pre-training: its loss, its order, a few updates, and the weights it gave."""

import json

import numpy as np
import pytest

from lmseg_jax import configuration, pretrain, tokenizer
from lmseg_jax.pipeline.crops import Crops, facts, load_or_render, render_crops, statements
from lmseg_jax.pretrained import clip

OVERRIDES = {
    "pretrain.size": 32,
    "pretrain.crops": 12,
    "pretrain.unseen": 8,
    "pretrain.processes": 0,
    "batching.batch": 4,
    "model.resnet.depths": "1,1,1,1",
    "model.resnet.width": 2,
    "model.text.width": 8,
    "model.text.layers": 1,
    "model.text.heads": 2,
    "model.text.embedding": 8,
    "optimizer.steps": 3,
    "evaluation.every": 3,
    "log.every": 1,
    "mesh.data": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and workdir of a run of three updates."""
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    config = configuration.load("clip_worlds", overrides)
    configuration.check(config)
    workdir = tmp_path_factory.mktemp("pretrain")
    pretrain.run(config, workdir)
    return config, workdir


def test_a_short_run_writes_weights_that_its_config_can_load(finished):
    config, workdir = finished
    weights = clip.read_clip(str(workdir / pretrain.WEIGHTS))
    resnet, text = config.model.resnet, config.model.text
    clip.check_image(weights, depths=resnet.depths, width=resnet.width)
    keys = ("width", "layers", "heads", "embedding")
    clip.check_text(weights, **{key: text[key] for key in keys})


def test_a_short_run_writes_a_manifest_and_a_row_for_each_update(finished):
    _, workdir = finished
    manifest = json.loads((workdir / pretrain.MANIFEST).read_text())
    assert manifest["steps"] == 3 and manifest["images"] == 12
    assert set(pretrain.PROMPTS) <= set(manifest["accuracy"])
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_rows_of_unused_tokens_are_those_of_the_seed(finished):
    _, workdir = finished
    table = clip.read_clip(str(workdir / pretrain.WEIGHTS)).tensors["token_embedding.weight"]
    np.testing.assert_array_equal(table[30_000], clip.token_table(8, seed=0)[30_000])
    untrained = clip.token_table(8, seed=0)[tokenizer.END]
    assert np.abs(table[tokenizer.END] - untrained).max() > 2e-5


def test_captions_that_are_true_of_an_image_are_its_positives():
    logits = np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]], np.float32)
    stated = np.array([[0, -1], [-1, 1], [2, 0]])  # of two attributes, -1 = silent
    true = np.array([[0, 1], [0, 1], [2, 0]])  # both first captions fit both first images
    twice = -(2 - np.log(2 * np.exp(2) + 1))  # cross entropy with the target (1/2, 1/2, 0)
    once = -(3 - np.log(np.exp(3) + 2))
    loss = pretrain.contrastive_loss(logits, stated, true)
    np.testing.assert_allclose(loss, (2 * twice + once) / 3, rtol=1e-5)


def test_a_caption_is_positive_for_its_own_image_whatever_it_says():
    logits = np.zeros((2, 2), np.float32)
    stated, true = np.array([[0], [0]]), np.array([[0], [1]])  # the second caption is wrong
    rows, columns = np.log(2), np.log(2)  # equal logits: any target costs log 2
    loss = pretrain.contrastive_loss(logits, stated, true)
    np.testing.assert_allclose(loss, (rows + columns) / 2, rtol=1e-6)


def test_every_crop_comes_once_in_an_epoch():
    rows = [pretrain.draw(step, 4, total=12, seed=0)[0] for step in range(6)]
    assert sorted(np.concatenate(rows[:3])) == list(range(12))
    assert sorted(np.concatenate(rows[3:])) == list(range(12))
    assert np.concatenate(rows[:3]).tolist() != np.concatenate(rows[3:]).tolist()


def test_flips_mirror_columns_first_then_rows():
    image = np.arange(4).reshape(1, 2, 2, 1)
    images = np.repeat(image, 3, axis=0)
    flip = np.array([[False, False], [True, False], [False, True]])
    got = np.asarray(pretrain.flipped(images, flip))[..., 0]
    np.testing.assert_array_equal(got, [[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[2, 3], [0, 1]]])


def test_what_captions_say_and_what_is_true():
    captions = np.array(["a photo of a striped red round thing on ground", "water", "cross"])
    crops = Crops(
        images=np.zeros((3, 1, 1, 3), np.uint8),
        captions=captions,
        shapes=np.array(["ring", "", "cross"]),
        colors=np.array(["red", "", "green"]),
        textures=np.array(["striped", "", "dotted"]),
        stuff=np.array(["sand", "water", ""]),
    )
    # shape, color, texture, coarse, stuff, object, dry ground
    stated = [[-1, 0, 0, 0, -1, 1, 1], [-1, -1, -1, -1, 1, 0, -1], [5, -1, -1, -1, -1, 1, -1]]
    true = [[1, 0, 0, 0, 2, 1, 1], [-2, -2, -2, -2, 1, 0, 0], [5, 1, 2, -2, -2, 1, 1]]
    np.testing.assert_array_equal(statements(captions), stated)
    np.testing.assert_array_equal(facts(crops), true)


def test_rendering_does_not_depend_on_where_a_range_begins(tmp_path):
    many, one = render_crops(3, 3, size=32), render_crops(4, 1, size=32)
    np.testing.assert_array_equal(many.images[1], one.images[0])
    kept = load_or_render(tmp_path, 3, 3, size=32), load_or_render(tmp_path, 3, 3, size=32)
    np.testing.assert_array_equal(kept[0].images, kept[1].images)
    assert kept[1].captions.tolist() == many.captions.tolist()


def test_zero_shot_counts_only_crops_that_have_the_attribute():
    texts = np.eye(21, dtype=np.float32)  # shapes 0-5, colours 6-10, textures, coarse, stuff
    crops = Crops(
        images=np.zeros((3, 1, 1, 3), np.uint8),
        captions=np.array(["", "", ""]),
        shapes=np.array(["disc", "ring", ""]),
        colors=np.array(["red", "red", ""]),
        textures=np.array(["plain", "plain", ""]),
        stuff=np.array(["grass", "", "rock"]),
    )
    images = texts[[0, 0, 20]]  # like "a disc", like "a disc", like "rock"
    accuracy = pretrain.zero_shot(images, texts, crops)
    assert accuracy["shape"] == 50.0 and accuracy["stuff"] == 100.0
    assert accuracy["coarse"] == 100.0  # no text is closer: the first one, round, is right
