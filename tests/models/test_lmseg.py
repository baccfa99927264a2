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
