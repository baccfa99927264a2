import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lmseg_jax import sharding
from lmseg_jax.models.heads import (
    INVALID,
    LinearHead,
    ManualHead,
    MultiHead,
    TextHead,
    foreign_to_background,
    normalise,
)


def test_logits_are_cosines_over_the_temperature():
    queries = jnp.array([[[[3.0, 4.0], [0.0, 2.0]]]])  # [L, B, Q, D]
    text = {
        "embeddings": jnp.array([[[10.0, 0.0], [0.0, 5.0], [1.0, 1.0]]]),
        "valid": jnp.array([[True, True, False]]),
    }
    logits = TextHead(temperature=0.1)(queries, text, jnp.array([0]))
    expected = [[[[6.0, 8.0, INVALID], [0.0, 10.0, INVALID]]]]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_normalising_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros(3))
    assert np.isfinite(np.asarray(gradient)).all()


def numbers(layer):
    return np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)


QUERIES = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)  # [L, B, Q, D]
DATASET = np.array([1, 0, 1])
# "a", "b", "c" and background of one dataset; "b", "d" and background of another
UNION = np.array([[0, 1, 2, 3], [1, 4, 3, 0]])
NAMES = (4, 3)
VALID = np.array([[True] * 4, [True, True, True, False]])
TEXT = {"embeddings": np.zeros((2, 4, 0)), "valid": VALID}


def test_the_linear_head_is_one_linear_layer():
    head = LinearHead(8, names=(3,), rngs=nnx.Rngs(0))
    kernel, bias = numbers(head.classes)
    assert np.abs(bias).max() > 0 and max(np.abs(kernel).max(), np.abs(bias).max()) <= 8**-0.5
    found = head(QUERIES, TEXT, np.zeros(3, np.int32))
    np.testing.assert_allclose(found, QUERIES @ kernel + bias, atol=1e-5)


def test_multi_head_asks_the_layer_of_each_images_dataset():
    head = MultiHead(8, names=NAMES, rngs=nnx.Rngs(0))
    found = np.asarray(head(QUERIES, TEXT, DATASET))
    assert found.shape == (2, 3, 4, 4)
    for image, dataset in enumerate(DATASET):
        kernel, bias = numbers(head.classes[int(dataset)])
        expected = QUERIES[:, image] @ kernel + bias
        np.testing.assert_allclose(found[:, image, :, : NAMES[dataset]], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, [0, 2], :, 3], np.float32(INVALID))


def test_multi_head_leaves_the_layers_of_other_datasets_alone():
    graphdef, weights = nnx.split(MultiHead(8, names=NAMES, rngs=nnx.Rngs(0)))

    def loss(weights):
        logits = nnx.merge(graphdef, weights)(QUERIES, TEXT, np.ones(3, np.int32))
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    first, second = nnx.to_pure_dict(jax.grad(loss)(weights))["classes"].values()
    assert np.abs(second["kernel"]).max() > 0
    assert np.abs(first["kernel"]).max() == np.abs(first["bias"]).max() == 0


@pytest.fixture(scope="module")
def manual():
    return ManualHead(8, names=NAMES, union=UNION, rngs=nnx.Rngs(0))


def union_probabilities(head):
    """[L, B, Q, 5] of a, b, c, d, background."""
    kernel, bias = numbers(head.classes)
    weights = np.exp(QUERIES @ kernel + bias)
    return weights / weights.sum(-1, keepdims=True)


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum(-1, keepdims=True)


def test_manual_taxonomy_has_one_row_for_each_different_name_and_background_last(manual):
    assert manual.classes.out_features == 5
    assert manual.rows == ((0, 1, 2, 4), (1, 3, 4))


def test_manual_taxonomy_trains_with_the_softmax_over_the_union(manual):
    found, union = softmax(manual(QUERIES, TEXT, DATASET)), union_probabilities(manual)
    np.testing.assert_allclose(found[:, 1, :, :4], union[:, 1][..., [0, 1, 2, 4]], rtol=1e-4)
    np.testing.assert_allclose(found[:, 0, :, :3], union[:, 0][..., [1, 3, 4]], rtol=1e-4)
    # the last column is everything that the dataset does not name; the padded one is nothing
    np.testing.assert_allclose(found[:, 1, :, 4], union[:, 1][..., 3], rtol=1e-4)
    np.testing.assert_allclose(found[:, 0, :, 4], union[:, 0][..., [0, 2]].sum(-1), rtol=1e-4)
    assert found[:, 0, :, 3].max() == 0


def test_manual_taxonomy_learns_that_other_datasets_names_are_wrong(manual):
    graphdef, weights = nnx.split(manual)

    def loss(weights):
        logits = nnx.merge(graphdef, weights)(QUERIES, TEXT, np.zeros(3, np.int32))
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])  # "a" of the first dataset

    found = np.asarray(jax.grad(loss)(weights)["classes"]["bias"][...])
    union = union_probabilities(manual).reshape(-1, 5).mean(0)
    np.testing.assert_allclose(found, union - np.array([1, 0, 0, 0, 0]), atol=1e-5)


def test_without_the_last_column_manual_taxonomy_is_restricted_to_the_asked_names(manual):
    found = softmax(manual(QUERIES, TEXT, DATASET)[..., :4])
    asked = union_probabilities(manual)[:, 0][..., [1, 3, 4]]
    np.testing.assert_allclose(found[:, 0, :, :3], asked / asked.sum(-1, keepdims=True), rtol=1e-4)


def test_unrestricted_foreign_names_count_as_background(manual):
    logits = foreign_to_background(manual(QUERIES, TEXT, DATASET), VALID[DATASET])
    found, union = softmax(logits), union_probabilities(manual)
    assert found.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(found[:, 0, :, :2], union[:, 0][..., [1, 3]], rtol=1e-4)
    background = union[:, 0][..., [0, 2, 4]].sum(-1)
    np.testing.assert_allclose(found[:, 0, :, 2], background, rtol=1e-4)
    np.testing.assert_allclose(found[:, 1, :, :3], union[:, 1][..., :3], rtol=1e-4)


@pytest.mark.parametrize("make", [MultiHead, LinearHead])
def test_a_head_of_numbered_classes_needs_their_numbers(make):
    with pytest.raises(ValueError, match="head 'm?u?l"):
        make(8, names=(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["multi_head", "manual_taxonomy"])
def test_choosing_a_datasets_classes_moves_no_image_between_devices(name):
    made = {"multi_head": MultiHead, "manual_taxonomy": ManualHead}[name]
    extra = {"union": UNION} if name == "manual_taxonomy" else {}
    graphdef, weights = nnx.split(made(8, names=NAMES, **extra, rngs=nnx.Rngs(0)))
    mesh = sharding.make_mesh(4, 1, multiple=4)
    whole = sharding.replicated(mesh)

    def loss(weights, queries, dataset):
        logits = nnx.merge(graphdef, weights)(queries, TEXT, dataset)
        return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

    images = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    each = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    program = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        in_shardings=(whole, images, each),
        out_shardings=((whole, (whole, images))),
    )
    shapes = jax.ShapeDtypeStruct((2, 8, 4, 8), np.float32), jax.ShapeDtypeStruct((8,), np.int32)
    text = program.lower(weights, *shapes).compile().as_text()
    for line in text.splitlines():
        assert not re.search(r"all-gather|all-to-all|collective-permute", line.split("metadata")[0])


def ask(head, queries, names):
    text = {"embeddings": jnp.asarray(names)[None], "valid": jnp.ones((1, len(names)), bool)}
    return np.asarray(head(jnp.asarray(queries)[None, None], text, jnp.array([0])))[0, 0]


def test_raw_similarity_normalises_neither_side():
    queries, names = [[3.0, 4.0], [0.0, 2.0]], [[10.0, 0.0], [1.0, 1.0]]
    found = ask(TextHead(temperature=0.5, similarity="raw"), queries, names)
    np.testing.assert_allclose(found, [[60.0, 14.0], [0.0, 4.0]], rtol=1e-6)


def test_an_unknown_similarity_lists_the_known_ones():
    with pytest.raises(ValueError, match="cosine"):
        TextHead(temperature=0.1, similarity="euclid")


def test_a_learned_temperature_is_a_parameter_that_starts_at_the_given_one():
    head = TextHead(temperature=0.07, learned=True)
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(head, nnx.Param))] == [()]
    assert not jax.tree.leaves(nnx.state(TextHead(temperature=0.07)))
    queries, names = [[3.0, 4.0]], [[10.0, 0.0]]
    np.testing.assert_allclose(ask(head, queries, names), [[0.6 / 0.07]], rtol=1e-5)
    head.temperature[...] = jnp.float32(0.5)
    np.testing.assert_allclose(ask(head, queries, names), [[1.2]], rtol=1e-5)
