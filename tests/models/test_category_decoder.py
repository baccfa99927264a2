import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.category_decoder import ORDERS, QUERIES, CategoryDecoder
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.layers import sine_positions


def decoder(order, channels=6, **options):
    return CategoryDecoder(
        channels,
        8,
        queries=5,
        layers=2,
        heads=2,
        feedforward=12,
        dropout=0.0,
        order=order,
        **options,
        rngs=nnx.Rngs(0),
    )


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "memory": jnp.asarray(rng.normal(size=(2, 2, 3, 6)), jnp.float32),
        "memory_valid": jnp.ones((2, 2, 3), bool),
        "text": jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32),
        "text_valid": jnp.ones((2, 4), bool),
    }


def call(model, given):
    return np.asarray(
        model(
            given["memory"],
            given["memory_valid"],
            text=given["text"],
            text_valid=given["text_valid"],
        )
    )


@pytest.mark.parametrize("order", ORDERS)
def test_text_guides_unless_it_is_turned_off(order):
    model, given = decoder(order), inputs()
    change = np.abs(call(model, given) - call(model, given | {"text": inputs(1)["text"]})).max()
    assert (change == 0) == (order == "visual")


def test_the_two_orders_differ():
    assert (
        np.abs(
            call(decoder("visual-text"), inputs()) - call(decoder("text-visual"), inputs())
        ).max()
        > 1e-2
    )


def test_the_order_of_names_does_not_reach_the_queries():
    model, given = decoder("visual-text"), inputs()
    shuffled = given | {"text": given["text"][:, np.array([2, 0, 3, 1])]}
    np.testing.assert_allclose(call(model, shuffled), call(model, given), atol=1e-5)


def test_padded_names_and_padded_cells_are_not_seen():
    model, given = decoder("visual-text"), inputs()
    given["text_valid"] = given["text_valid"].at[:, 3].set(False)
    given["memory_valid"] = given["memory_valid"].at[:, 1, 2].set(False)
    other = given | {
        "text": given["text"].at[:, 3].set(7.0),
        "memory": given["memory"].at[:, 1, 2].set(-9.0),
    }
    np.testing.assert_array_equal(call(model, other), call(model, given))


def test_a_memory_of_the_right_width_needs_no_projection():
    model, given = decoder("visual", 8, project=False), inputs()
    assert model.project is None
    given["memory"] = jnp.concatenate([given["memory"], given["memory"][..., :2]], axis=-1)
    assert call(model, given).shape == (2, 2, 5, 8)
    with pytest.raises(ValueError, match="6 channels needs a projection to 8"):
        decoder("visual", project=False)


def test_an_unknown_order_lists_the_known_ones():
    with pytest.raises(ValueError, match="text-visual"):
        decoder("sideways")


def by_hand(model, x, position, given):
    """The decoder's layers one after the other, from given queries and positions."""
    b, h, w, _ = given["memory"].shape
    values = model.project(given["memory"]).reshape(b, h * w, 8)
    keys = values + sine_positions(h, w, 8).reshape(1, h * w, 8)
    sources = {
        "visual": (keys, values, given["memory_valid"].reshape(b, h * w)),
        "text": (given["text"], given["text"], given["text_valid"]),
    }
    outputs = []
    for layer in model.layers:
        x = layer(x, position, sources=sources)
        outputs.append(model.norm(x))
    return np.stack(outputs)


@pytest.mark.parametrize("order", ["visual-text", "text-visual"])
def test_a_layer_normalises_after_each_step_and_adds_positions_to_its_queries(order):
    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    def norm(layer, x):  # scale 1 and bias 0 at first
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    rng, layer = np.random.default_rng(3), decoder(order).layers[0]
    x, position, keys, values, names = rng.normal(size=(5, 2, 3, 8)).astype(np.float32)
    seen = np.ones((2, 3), bool)
    sources = {"visual": (keys, values, seen), "text": (names, names, seen)}
    found = layer(jnp.asarray(x), jnp.asarray(position), sources=sources)
    for step, attention in zip(("self", *order.split("-")), layer.attentions, strict=True):
        queries = x + position
        k, v, _ = sources[step] if step != "self" else (queries, x, None)
        x = norm(layer.norms, x + np.asarray(attention(queries, k, v)))
    x = norm(layer.norms, x + linear(layer.contract, np.maximum(linear(layer.expand, x), 0)))
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_learned_queries_enter_the_first_layer_themselves():
    model, given = decoder("visual-text", start="learned"), inputs()
    table = np.broadcast_to(np.asarray(model.embedding[...]), (2, 5, 8))
    expected = by_hand(model, table, np.zeros_like(table), given)
    np.testing.assert_allclose(call(model, given), expected, atol=1e-6)
    assert not hasattr(model, "position")


def test_queries_start_at_zero_with_a_learned_position():
    model, given = decoder("visual-text"), inputs()
    table = np.broadcast_to(np.asarray(model.position[...]), (2, 5, 8))
    expected = by_hand(model, np.zeros_like(table), table, given)
    np.testing.assert_allclose(call(model, given), expected, atol=1e-6)
    assert not hasattr(model, "embedding")


def test_an_unknown_start_of_queries_lists_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(map(repr, QUERIES))):
        decoder("visual-text", start="ones")


def test_layers_computed_twice_draw_the_same_dropout():
    given, gradients = inputs(), []
    for remat in (False, True):
        model = decoder("visual", remat=remat)
        for layer in model.layers:
            layer.dropout = 0.5
        graphdef, weights = nnx.split(model)

        def loss(weights, graphdef=graphdef):
            model, rngs = nnx.merge(graphdef, weights), Rngs(jax.random.key(1))
            return jnp.mean(jnp.abs(model(**given, rngs=rngs)))

        gradients.append(jax.jit(jax.grad(loss))(weights))
    # of the keys' biases, which move no softmax, there is nothing but rounding: one scale for all
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[0]))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * scale)
