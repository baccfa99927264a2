import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from lmseg_jax import state
from lmseg_jax.models.lmseg import LMSeg, any_valid, build
from tests.tiny import batch, text, tiny_config, vocabulary


def test_the_papers_model_has_the_papers_parameters():
    params, frozen = jax.eval_shape(lambda: state.weights(base.get_config().model, 0))
    affine = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(frozen["backbone"])
        if path[-1].key in ("scale", "bias")
    ]
    assert state.count(params["backbone"]) == 23_474_016
    assert state.count(affine) == 53_248
    assert state.count(params["pixel_decoder"]) == 7_540_480
    assert state.count((params["decoder"]["layers"], params["decoder"]["norm"])) == 11_055_104
    assert params["decoder"]["project"]["kernel"].shape == (2048, 256)  # of res5
    assert params["decoder"]["position"].shape == (100, 256)
    assert params["prompt"]["context"].shape == (8, 512)
    assert state.count(frozen["text_encoder"]) == 63_690_240
    assert state.count(params["adapter"]) == 262_400
    assert "text_encoder" not in params


@pytest.fixture(scope="module")
def model():
    return build(tiny_config().model, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def forward(model):
    graphdef, weights = nnx.split(model)

    @jax.jit
    def run(images, words, valid):
        dataset = jnp.zeros(images.shape[0], jnp.int32)
        return nnx.merge(graphdef, weights)(images, words, dataset, valid=valid)

    return run


IMAGES = batch(0, dataset=0)["image"]
VALID = np.ones(IMAGES.shape[:3], bool)


def test_predictions_have_every_layer(forward):
    found = forward(IMAGES, text(), VALID)
    assert found["logits"].shape == (2, 2, 6, 4)
    assert found["masks"].shape == (2, 2, 6, 16, 16)


def test_permuting_classes_permutes_logits_only(forward):
    order = np.array([2, 0, 3, 1])
    words = text()
    shuffled = words | {"embeddings": words["embeddings"][:, order]}
    plain, found = forward(IMAGES, words, VALID), forward(IMAGES, shuffled, VALID)
    np.testing.assert_allclose(found["logits"], plain["logits"][..., order], atol=1e-4)
    np.testing.assert_allclose(found["masks"], plain["masks"], atol=1e-4)


def test_names_guide_the_decoder_with_their_lengths_and_classify_without(forward):
    words = text()
    longer = words | {"embeddings": words["embeddings"].at[0, 2].multiply(3.0)}
    plain, found = forward(IMAGES, words, VALID), forward(IMAGES, longer, VALID)
    assert np.abs(found["masks"] - plain["masks"]).max() > 1e-2
    assert np.abs(found["logits"]).max() <= 1 / 0.07 + 1e-3


def test_padded_classes_change_nothing(forward):
    words = text()
    words["valid"] = words["valid"].at[0, 3].set(False)
    other = words | {"embeddings": words["embeddings"].at[0, 3].set(50.0)}
    plain, found = forward(IMAGES, words, VALID), forward(IMAGES, other, VALID)
    np.testing.assert_array_equal(found["logits"], plain["logits"])
    np.testing.assert_array_equal(found["masks"], plain["masks"])


def test_the_values_of_padding_change_nothing(forward):
    valid = VALID.copy()
    valid[:, 40:] = False
    other = np.where(valid[..., None], IMAGES, 7).astype(np.uint8)
    plain, found = forward(IMAGES, text(), valid), forward(other, text(), valid)
    np.testing.assert_array_equal(found["logits"], plain["logits"])


def test_padding_is_attended_only_where_the_config_says_so():
    valid = VALID.copy()
    valid[:, 32:] = False  # one of two cells a column at stride 32

    def queries(padding, value):
        config = tiny_config().model
        config.decoder.padding = padding
        model = build(config, rngs=nnx.Rngs(0))
        # features of the padded half differ; what the decoder is told decides if that matters
        memory = np.random.default_rng(0).normal(size=(2, 2, 2, 256)).astype(np.float32)
        memory[:, 1] = value
        seen = np.ones_like(valid) if model.padding_seen else valid
        return model.decoder(
            memory,
            any_valid(jnp.asarray(seen), 32),
            text=text()["embeddings"].repeat(2, axis=0),
            text_valid=jnp.ones((2, 4), bool),
        )

    assert np.abs(queries("hidden", 0.0) - queries("hidden", 3.0)).max() == 0
    assert np.abs(queries("seen", 0.0) - queries("seen", 3.0)).max() > 1e-3


def test_a_cell_is_padding_only_if_all_of_it_is():
    valid = np.zeros((1, 4, 4), bool)
    valid[0, 1, 3] = True
    np.testing.assert_array_equal(
        any_valid(jnp.asarray(valid), 2), [[[False, True], [False, False]]]
    )


def test_equal_names_of_two_datasets_share_one_embedding(model):
    words = vocabulary()  # "dog" is class 2 of the first and class 0 of the second dataset
    found = model.encode_text(words["tokens"], words["index"], words["valid"])
    np.testing.assert_array_equal(found["embeddings"][0, 2], found["embeddings"][1, 0])
    assert np.abs(found["embeddings"][0, 0] - found["embeddings"][0, 1]).max() > 1e-3
    np.testing.assert_array_equal(found["valid"], [[True] * 4, [True, True, True, False]])


def changed(**keys):
    """The tiny model with some keys of `config.model` changed."""
    config = tiny_config().model
    config.update(keys)
    return build(config, rngs=nnx.Rngs(0))


def leaves(model):
    """Shape of every array by its path."""
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in found}


def test_switches_that_are_off_leave_no_parameters_behind(model):
    off = {"similarity": "cosine", "temperature_learned": False, "query_mlp": False}
    assert leaves(changed(**off, adapter_norm=False)) == leaves(model)
    assert {path.split("/")[0] for path in leaves(model)} == {
        "backbone",
        "pixel_decoder",
        "decoder",
        "mask_head",
        "prompt",
        "text_encoder",
        "adapter",
    }


def test_each_switch_adds_its_own_parameters_only(model):
    plain = leaves(model)
    found = leaves(changed(query_mlp=True, adapter_norm=True, temperature_learned=True))
    added = {path: shape for path, shape in found.items() if path not in plain}
    layers = {f"query_mlp/layers/{i}/kernel": (16, 16) for i in range(3)}
    layers |= {f"query_mlp/layers/{i}/bias": (16,) for i in range(3)}
    norm = {"adapter_norm/scale": (16,), "adapter_norm/bias": (16,)}
    assert added == layers | norm | {"head/temperature": ()}
    assert plain.items() <= found.items()


def test_the_query_mlp_stands_before_the_names_and_not_before_the_masks(forward):
    model = changed(query_mlp=True)
    first, _, last = model.query_mlp.layers
    for layer in model.query_mlp.layers:  # the identity: no ReLU cuts what is 100 higher
        layer.kernel[...], layer.bias[...] = jnp.eye(16), jnp.zeros(16)
    first.bias[...], last.bias[...] = jnp.full(16, 100.0), jnp.full(16, -100.0)
    graphdef, weights = nnx.split(model)

    @jax.jit
    def run(weights):
        dataset = jnp.zeros(2, jnp.int32)
        return nnx.merge(graphdef, weights)(IMAGES, text(), dataset, valid=VALID)

    plain, found = forward(IMAGES, text(), VALID), run(weights)
    np.testing.assert_allclose(found["logits"], plain["logits"], atol=2e-3)
    last.kernel[...], last.bias[...] = -last.kernel[...], -last.bias[...]
    opposite = run(nnx.state(model))
    np.testing.assert_allclose(opposite["logits"], -plain["logits"], atol=2e-3)
    np.testing.assert_allclose(opposite["masks"], plain["masks"], atol=1e-4)


def test_the_adapter_norm_normalises_each_text_embedding_first():
    model, words = changed(adapter_norm=True), vocabulary()
    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=(2, 16)).astype(np.float32)
    model.adapter_norm.scale[...], model.adapter_norm.bias[...] = scale, bias
    found = model.encode_text(words["tokens"], words["index"], words["valid"])["embeddings"]
    x = model.text_encoder.encode_prompted(model.prompt.context[...], words["tokens"])
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    kernel, bias_out = (
        np.asarray(part[...]) for part in (model.adapter.kernel, model.adapter.bias)
    )
    x = (x * scale + bias) @ kernel + bias_out
    np.testing.assert_allclose(found, x[words["index"]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("restrict", [True, False])
def test_foreign_names_are_background_only_in_answers_over_the_whole_union(restrict):
    config = tiny_config().model
    config.head, config.decoder.order = "manual_taxonomy", "visual"
    config.manual.restrict = restrict
    words = vocabulary()
    graphdef = state.graph(config, words)
    weights = jax.eval_shape(lambda: state.weights(config, 0, vocabulary=words))

    def classes(last):
        def run(params, frozen):
            model = state.merge(graphdef, params, frozen)
            text = model.encode_text(*(jnp.asarray(v) for v in words.values()))
            return model(IMAGES, text, jnp.zeros(2, jnp.int32), valid=VALID, last=last)

        return jax.eval_shape(run, *weights)["logits"].shape[-1]

    assert classes(last=False) == 5
    assert classes(last=True) == (5 if restrict else 4)


class Plain(nnx.Module):
    """A backbone of a user's own: strided convolutions."""

    def __init__(self, *, rngs):
        sizes = [3, 4, 8, 8, 12, 12]
        self.layers = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs)
                for a, b in zip(sizes[:-1], sizes[1:], strict=True)
            ]
        )
        self.channels = dict(zip(("res2", "res3", "res4", "res5"), sizes[2:], strict=True))

    def __call__(self, images):
        outputs = []
        for layer in self.layers:
            images = nnx.relu(layer(images))
            outputs.append(images)
        return dict(zip(("res2", "res3", "res4", "res5"), outputs[1:], strict=True))


def test_any_module_that_keeps_the_contract_is_a_backbone():
    @jax.jit
    def run(images):
        model = LMSeg(Plain(rngs=nnx.Rngs(1)), tiny_config().model, rngs=nnx.Rngs(0))
        return model(images, text(), jnp.zeros(2, jnp.int32), valid=VALID)

    found = run(IMAGES)
    assert found["masks"].shape == (2, 2, 6, 16, 16)
    assert np.isfinite(found["logits"]).all()


def test_an_unknown_memory_lists_the_known_ones():
    config = tiny_config().model
    config.decoder.memory = "res9"
    with pytest.raises(ValueError, match="pixel16"):
        build(config, rngs=nnx.Rngs(0))
