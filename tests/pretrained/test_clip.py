"""Towers filled with foreign CLIP weights against the original's outputs; worlds-clip files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from lmseg_jax import tokenizer
from lmseg_jax.errors import UserError
from lmseg_jax.models.resnet import AttentionPool, ClipResNet
from lmseg_jax.models.text_encoder import TextEncoder
from lmseg_jax.pretrained import clip
from lmseg_jax.pretrained import weights as pretrained

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def weights():
    return pretrained.read(str(FIXTURES / "clip_rn_tiny.safetensors"))


@pytest.fixture(scope="module")
def golden():
    """Made with OpenAI's torch code from the same random weights."""
    return dict(np.load(FIXTURES / "clip_rn_tiny.npz"))


def filled(make, fill, weights):
    graphdef, state = nnx.split(nnx.eval_shape(make))
    arrays = jax.tree.map(jnp.asarray, fill(weights, nnx.to_pure_dict(state)))
    return nnx.merge(graphdef, arrays)


def trunk(**sizes):
    return lambda: ClipResNet(**({"depths": (2, 1, 2, 1), "width": 16} | sizes), rngs=nnx.Rngs(0))


def text_tower():
    return TextEncoder(width=16, layers=3, heads=2, embedding=32, rngs=nnx.Rngs(0))


def test_trunk_equals_the_original(weights, golden):
    model = filled(trunk(), pretrained.fill_image, weights)
    images = golden["image"].transpose(0, 2, 3, 1)
    outputs = jax.jit(lambda images: {"stem": model.embed(images)} | model(images))(images)
    for name, features in outputs.items():
        expected = golden[name].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_pooled_image_features_equal_the_original(weights, golden):
    model = filled(trunk(norm="batch"), pretrained.fill_image, weights)
    pool = filled(
        lambda: AttentionPool(2, 512, heads=8, output=32, rngs=nnx.Rngs(0)),
        clip.fill_pool,
        weights.tensors,
    )
    images = golden["image_square"].transpose(0, 2, 3, 1)
    features = jax.jit(lambda images: pool(model(images)["res5"]))(images)
    np.testing.assert_allclose(features, golden["image_features"], rtol=1e-4, atol=1e-4)


def test_text_features_equal_the_original(text_model, golden):
    features = jax.jit(text_model.encode)(golden["tokens"].astype(np.int32))
    np.testing.assert_allclose(features, golden["text_features"], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def text_model(weights):
    return filled(text_tower, pretrained.fill_text, weights)


def test_text_behind_a_prompt_equals_the_original(text_model, golden):
    """The prompt is what the original reads first: "a photo of a", then comes "cat"."""
    tokens = golden["tokens"][0].astype(np.int32)
    assert tokens[:7].tolist() == [tokenizer.START, 320, 1125, 539, 320, 2368, tokenizer.END]
    prompt = text_model.tokens[...][tokens[1:5]]
    name = np.concatenate([tokens[5:7], [tokenizer.END] * 3])[None]  # our padding is EOT, not 0
    features = jax.jit(text_model.encode_prompted)(prompt, name)
    np.testing.assert_allclose(features[0], golden["text_features"][0], rtol=1e-4, atol=1e-4)


def test_names_that_datasets_share_get_the_plain_towers_embeddings(text_model):
    """Each name once behind a prompt, against whole sequences of 77 for every name."""
    datasets = (("road", "traffic sign", "sky"), ("Sky", "hair drier"))
    words = tokenizer.vocabulary(datasets)
    assert len(words.tokens) == 5  # sky and background are shared
    ids = [320, 1125, 539, 320, 1759, 5994, 893, 264]
    prompt = text_model.tokens[...][np.array(ids)]
    got = jax.jit(text_model.encode_prompted)(prompt, words.tokens)[words.index]
    for m, names in enumerate(datasets):
        whole = tokenizer.tokenize_full([*names, "background"])
        whole = np.concatenate([whole[:, :1], np.tile(ids, (len(whole), 1)), whole[:, 1:-8]], 1)
        expected = jax.jit(text_model.encode)(whole.astype(np.int32))
        assert (whole[:, 9:] == tokenizer.END).any(axis=1).all()
        np.testing.assert_allclose(got[m, : len(whole)], expected, rtol=1e-5, atol=1e-5)


def test_written_weights_read_back_equal(tmp_path):
    models = {
        "image": lambda: ClipResNet(depths=(1, 1, 1, 1), width=2, norm="batch", rngs=nnx.Rngs(0)),
        "pool": lambda: AttentionPool(1, 64, heads=1, output=4, rngs=nnx.Rngs(0)),
        "text": lambda: TextEncoder(width=8, layers=1, heads=2, embedding=4, rngs=nnx.Rngs(0)),
    }
    rng = np.random.default_rng(0)

    def half(leaf):
        return rng.normal(size=leaf.shape).astype(np.float16).astype(np.float32)

    trees = {
        name: jax.tree.map(half, nnx.to_pure_dict(nnx.state(nnx.eval_shape(make))))
        for name, make in models.items()
    }
    table = clip.token_table(8, seed=5)
    table[[7, 9]] = 1.5
    trees["text"]["tokens"] = table
    path = tmp_path / "small.safetensors"
    clip.write_clip(path, **trees, logit_scale=2.5, rows=np.array([7, 9]), seed=5, heads=2)
    weights = pretrained.read(str(path))
    assert weights.text_config["heads"] == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        pretrained.fill_image(weights, trees["image"]),
        trees["image"],
    )
    jax.tree.map(
        np.testing.assert_array_equal, clip.fill_pool(weights.tensors, trees["pool"]), trees["pool"]
    )
    jax.tree.map(
        np.testing.assert_array_equal, pretrained.fill_text(weights, trees["text"]), trees["text"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"token_embedding.rows": np.array([3, 49408], np.int32)},
        {"token_embedding.rows": np.array([-1, 3], np.int32)},
        {"token_embedding.rows": np.array([3], np.int32)},
        {"token_embedding.rows": np.array([3.0, 4.0], np.float32)},
        {"token_embedding.values": np.zeros(2, np.float16)},
    ],
)
def test_rows_that_belong_to_no_table_are_refused(tmp_path, change):
    tensors = {
        "token_embedding.rows": np.array([3, 4], np.int32),
        "token_embedding.values": np.zeros((2, 8), np.float16),
    }
    save_file(tensors | change, tmp_path / "x.safetensors", metadata={"token_embedding_seed": "0"})
    with pytest.raises(UserError, match="do not belong together"):
        pretrained.read(str(tmp_path / "x.safetensors"))
