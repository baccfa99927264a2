import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.category_decoder import ORDERS, CategoryDecoder


def decoder(order):
    return CategoryDecoder(
        6,
        8,
        queries=5,
        layers=2,
        heads=2,
        feedforward=12,
        dropout=0.0,
        order=order,
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


def test_an_unknown_order_lists_the_known_ones():
    with pytest.raises(ValueError, match="text-visual"):
        decoder("sideways")
