"""Foreign CLIP weights: golden values of the towers, strictness, and the shipped worlds-clip."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lmseg_jax.errors import UserError
from lmseg_jax.models.resnet import AttentionPool, ClipResNet
from lmseg_jax.models.text_encoder import TextEncoder
from lmseg_jax.pretrained import clip

FIXTURES = Path(__file__).parents[1] / "fixtures"
ASSETS = Path(clip.__file__).parents[1] / "assets"


@pytest.fixture(scope="module")
def weights():
    return clip.read_clip(str(FIXTURES / "clip_rn_tiny.safetensors"))


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
    model = filled(trunk(), clip.fill_image, weights)
    images = golden["image"].transpose(0, 2, 3, 1)
    outputs = jax.jit(lambda images: {"stem": model.embed(images)} | model(images))(images)
    for name, features in outputs.items():
        expected = golden[name].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_pooled_image_features_equal_the_original(weights, golden):
    model = filled(trunk(norm="batch"), clip.fill_image, weights)
    pool = filled(
        lambda: AttentionPool(2, 512, heads=8, output=32, rngs=nnx.Rngs(0)), clip.fill_pool, weights
    )
    images = golden["image_square"].transpose(0, 2, 3, 1)
    features = jax.jit(lambda images: pool(model(images)["res5"]))(images)
    np.testing.assert_allclose(features, golden["image_features"], rtol=1e-4, atol=1e-4)


def test_text_features_equal_the_original(weights, golden):
    model = filled(text_tower, clip.fill_text, weights)
    features = jax.jit(model.encode)(golden["tokens"].astype(np.int32))
    np.testing.assert_allclose(features, golden["text_features"], rtol=1e-4, atol=1e-4)


def test_sizes_follow_from_the_shapes(weights):
    assert weights.image_config == {"depths": (2, 1, 2, 1), "width": 16}
    assert weights.text_config == {"width": 16, "layers": 3, "heads": 2, "embedding": 32}


def test_half_precision_becomes_float32(tmp_path, golden):
    tensors = load_file(FIXTURES / "clip_rn_tiny.safetensors")
    halved = {n: t.astype(np.float16) for n, t in tensors.items() if n.startswith("visual.")}
    save_file(halved, tmp_path / "half.safetensors")
    half = clip.read_clip(str(tmp_path / "half.safetensors"))
    tree = clip.fill_image(half, nnx.to_pure_dict(nnx.state(nnx.eval_shape(trunk()))))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}


def test_a_config_of_another_size_is_told_key_and_both_values(weights):
    with pytest.raises(UserError, match=r"model\.resnet\.width is 64, the weights have 16"):
        clip.check_image(weights, depths=(2, 1, 2, 1), width=64)
    with pytest.raises(UserError, match=r"model\.text\.heads is 8, the weights have 2"):
        clip.check_text(weights, width=16, layers=3, heads=8, embedding=32)


def test_weights_that_fit_pass_the_check(weights):
    clip.check_image(weights, depths=[2, 1, 2, 1], width=16)
    clip.check_text(weights, width=16, layers=3, heads=2, embedding=32)


def test_unused_and_unfilled_names_are_all_reported_at_once(weights):
    tree = nnx.to_pure_dict(nnx.state(nnx.eval_shape(trunk(depths=(1, 2, 2, 1)))))
    with pytest.raises(UserError) as error:
        clip.fill_image(weights, tree)
    assert "visual.layer1.1.conv3.weight" in str(error.value)  # theirs only
    assert "stages/1/1/norm2/var" in str(error.value)  # ours only


def test_unequal_shapes_are_reported_with_both(weights):
    tree = nnx.to_pure_dict(nnx.state(nnx.eval_shape(trunk(width=8))))
    with pytest.raises(
        UserError, match=r"visual\.conv1\.weight \(3, 3, 3, 8\) for .*\(3, 3, 3, 4\)"
    ):
        clip.fill_image(weights, tree)


def test_group_norms_cannot_be_filled(weights):
    tree = nnx.to_pure_dict(nnx.state(nnx.eval_shape(trunk(norm="group"))))
    with pytest.raises(UserError, match=r"without a place.*visual\.bn1\.running_mean"):
        clip.fill_image(weights, tree)


def test_a_missing_file_names_what_the_key_takes():
    with pytest.raises(UserError, match=r"no such file; pretrained\.image .* worlds-clip"):
        clip.read_clip("nowhere.safetensors")


def test_weights_that_were_never_downloaded_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match="hf download timm/resnet50_clip.openai"):
        clip.read_clip("openai/rn50")


def test_a_file_without_clip_names_is_refused(tmp_path):
    save_file({"layer.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="starts with layer.weight"):
        clip.read_clip(str(tmp_path / "other.safetensors"))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a header")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        clip.read_clip(str(tmp_path / "broken.safetensors"))


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
    weights = clip.read_clip(str(path))
    assert weights.text_config["heads"] == 2
    jax.tree.map(
        np.testing.assert_array_equal, clip.fill_image(weights, trees["image"]), trees["image"]
    )
    jax.tree.map(
        np.testing.assert_array_equal, clip.fill_pool(weights, trees["pool"]), trees["pool"]
    )
    jax.tree.map(
        np.testing.assert_array_equal, clip.fill_text(weights, trees["text"]), trees["text"]
    )
