import jax
import numpy as np
from flax import nnx

from lmseg_jax.models.keys import Rngs


def draws(rngs):
    return [rngs.params(), rngs.dropout(), rngs.params(), rngs()]


def test_the_keys_are_those_of_flax():
    for seed in (0, jax.random.key(7)):
        for found, expected in zip(draws(Rngs(seed)), draws(nnx.Rngs(seed)), strict=True):
            np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))


def test_a_traced_draw_depends_on_the_key_alone():
    """Counting in an array would add an equation a draw, and search all of them at each."""

    def numbers(key):
        rngs = Rngs(key)
        return [jax.random.bits(rngs.params()) for _ in range(3)]

    found = jax.jit(numbers)(jax.random.key(3))
    assert found == numbers(jax.random.key(3))
    assert len(set(map(int, found))) == 3
    assert "add" not in str(jax.make_jaxpr(numbers)(jax.random.key(3)))


def test_what_is_drawn_where_layers_are_computed_again_is_counted():
    rngs = Rngs(0)
    first = nnx.remat(lambda rngs: jax.random.bits(rngs.dropout()))(rngs)
    second = nnx.remat(lambda rngs: jax.random.bits(rngs.dropout()))(rngs)
    assert int(first) != int(second)
