"""Contrastive pre-training: its loss, its order, a few updates, and the weights it gave."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lmseg_jax import configuration, pretrain, pretrain_captions, tokenizer
from lmseg_jax.models.clip import Classifier, Clip
from lmseg_jax.pipeline.crops import WORDS, phrases, render_crops, zero_shot
from lmseg_jax.pretrain import SWITCHES
from lmseg_jax.pretrained import clip
from lmseg_jax.pretrained import weights as pretrained

ASSETS = Path(pretrain.__file__).parent / "assets"
FLOORS = {"shape": 80, "color": 85, "texture": 90, "coarse": 88, "stuff": 95}  # percent
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


def run(name, workdir):
    """The config of a shipped name after its run of three updates."""
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    config = configuration.load(name, overrides)
    configuration.check(config)
    pretrain.run(config, workdir)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and workdir of a run of three updates."""
    workdir = tmp_path_factory.mktemp("pretrain")
    return run("clip_worlds", workdir), workdir


@pytest.mark.slow
def test_a_short_run_writes_weights_that_its_config_can_load(finished):
    config, workdir = finished
    weights = pretrained.read(str(workdir / "worlds_clip.safetensors"))
    resnet, text = config.model.resnet, config.model.text
    pretrained.check_image(
        weights, backbone="clip_resnet", depths=resnet.depths, width=resnet.width
    )
    keys = ("width", "layers", "heads", "embedding")
    pretrained.check_text(weights, **{key: text[key] for key in keys})


@pytest.mark.slow
def test_a_short_run_writes_a_manifest_and_a_row_for_each_update(finished):
    _, workdir = finished
    manifest = json.loads((workdir / "worlds_clip.json").read_text())
    assert manifest["steps"] == 3 and manifest["images"] == 12
    assert set(WORDS) <= set(manifest["accuracy"])
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.mark.slow
def test_rows_of_unused_tokens_are_those_of_the_seed(finished):
    _, workdir = finished
    table = pretrained.read(str(workdir / "worlds_clip.safetensors")).tensors[
        "token_embedding.weight"
    ]
    np.testing.assert_array_equal(table[30_000], clip.token_table(8, seed=0)[30_000])
    untrained = clip.token_table(8, seed=0)[tokenizer.END]
    assert np.abs(table[tokenizer.END] - untrained).max() > 2e-5


@pytest.mark.slow
def test_a_classifier_writes_an_image_tower_that_its_config_can_load(tmp_path):
    resnet = run("clip_worlds:classifier", tmp_path).model.resnet
    weights = pretrained.read(str(tmp_path / "worlds_classifier.safetensors"))
    pretrained.check_image(
        weights, backbone="clip_resnet", depths=resnet.depths, width=resnet.width
    )
    assert not weights.text_config
    manifest = json.loads((tmp_path / "worlds_classifier.json").read_text())
    assert set(manifest["accuracy"]) == set(WORDS)
    assert manifest["command"].endswith("--config.pretrain.objective=classifier")


def test_a_written_image_tower_is_read_as_it_was(tmp_path):
    resnet = {"depths": (1, 1, 1, 1), "width": 2}
    shapes = nnx.eval_shape(lambda: Classifier(21, **resnet, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float16).astype(np.float32),
        nnx.to_pure_dict(nnx.state(shapes))["image"],
    )
    clip.write_image(tmp_path / "tower.safetensors", tree)
    weights = pretrained.read(str(tmp_path / "tower.safetensors"))
    assert weights.image_config == resnet and weights.backbone == "clip_resnet"
    jax.tree.map(np.testing.assert_array_equal, pretrained.fill_image(weights, tree), tree)


def test_a_shuffled_crop_is_told_what_is_true_of_another():
    others = pretrain.strangers(50, seed=0)
    assert sorted(others) == list(range(50))
    assert (others != np.arange(50)).all()
    assert others.tolist() == pretrain.strangers(50, seed=0).tolist()


def test_each_variant_switches_what_its_name_says():
    switched = {
        name: {key: configuration.load(f"clip_worlds:{name}").pretrain[key] for key in SWITCHES}
        for name in ("classifier", "shuffled", "unnamed")
    }
    pairs = ("red disc", "green ring", "blue square", "yellow triangle", "purple star", "red cross")
    assert switched == {
        "classifier": {"objective": "classifier", "shuffled": False, "unnamed": ()},
        "shuffled": {"objective": "captions", "shuffled": True, "unnamed": ()},
        "unnamed": {"objective": "captions", "shuffled": False, "unnamed": pairs},
    }


def test_captions_that_are_true_of_an_image_are_its_positives():
    logits = np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]], np.float32)
    stated = np.array([[0, -1], [-1, 1], [2, 0]])  # of two attributes, -1 = silent
    true = np.array([[0, 1], [0, 1], [2, 0]])  # both first captions fit both first images
    twice = -(2 - np.log(2 * np.exp(2) + 1))  # cross entropy with the target (1/2, 1/2, 0)
    once = -(3 - np.log(np.exp(3) + 2))
    loss = pretrain_captions.contrastive_loss(logits, stated, true)
    np.testing.assert_allclose(loss, (2 * twice + once) / 3, rtol=1e-5)


def test_a_caption_is_positive_for_its_own_image_whatever_it_says():
    logits = np.zeros((2, 2), np.float32)
    stated, true = np.array([[0], [0]]), np.array([[0], [1]])  # the second caption is wrong
    rows, columns = np.log(2), np.log(2)  # equal logits: any target costs log 2
    loss = pretrain_captions.contrastive_loss(logits, stated, true)
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
    got = np.asarray(pretrain_captions.flipped(images, flip))[..., 0]
    np.testing.assert_array_equal(got, [[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[2, 3], [0, 1]]])


def test_naming_compares_a_crop_with_the_words_of_one_kind_only():
    logits = np.zeros((2, 21), np.float32)
    logits[0, 0] = 2.0  # the first crop is like a disc, which it is
    logits[1, 6:11] = 7.0  # the second like every colour alike; it is red
    words = np.array([[0, -1, -1, -1, -1], [-1, 0, -1, -1, -1]])
    shape = np.log(np.exp(2) + 5) - 2
    expected = (shape + np.log(5)) / 5  # three kinds are asked of no crop
    np.testing.assert_allclose(pretrain_captions.naming_loss(logits, words), expected, rtol=1e-5)


def test_the_shipped_weights_name_unseen_crops():
    weights = pretrained.read("worlds-clip")
    crops = render_crops(20_000_000, 240, size=64)  # neither trained on nor in the manifest
    graphdef, state = nnx.split(
        nnx.eval_shape(
            lambda: Clip(64, **weights.image_config, text=weights.text_config, rngs=nnx.Rngs(0))
        )
    )
    tree = nnx.to_pure_dict(state)
    tree = {
        "image": pretrained.fill_image(weights, tree["image"]),
        "pool": clip.fill_pool(weights.tensors, tree["pool"]),
        "text": pretrained.fill_text(weights, tree["text"]),
        "logit_scale": weights.tensors["logit_scale"],
    }

    @jax.jit
    def encode(tree, images, tokens):
        model = nnx.merge(graphdef, tree)
        return model.encode_image(pretrain_captions.prepare(images)), model.encode_text(tokens)

    tokens = tokenizer.tokenize_full(phrases("a"), length=12)
    images, texts = encode(tree, crops.images, tokens)
    accuracy = zero_shot(np.asarray(images), np.asarray(texts), crops)
    for kind, floor in FLOORS.items():
        assert accuracy[kind] >= floor, f"{kind}: {accuracy}"


def test_the_shipped_manifest_keeps_the_floors_and_the_file_is_small():
    manifest = json.loads((ASSETS / "worlds_clip.json").read_text(encoding="utf-8"))
    for kind, floor in FLOORS.items():
        assert manifest["accuracy"][kind] >= floor
    assert (ASSETS / "worlds_clip.safetensors").stat().st_size <= 4 * 2**20
