"""Random keys for layers, counted in Python."""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    """Keys one after another: number n is `fold_in(key, n)`, as of `nnx.RngStream`."""

    def __init__(self, key: jax.Array):
        self.key = key
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)


class Rngs(nnx.Rngs):
    """The keys of `nnx.Rngs(key)`, for functions that are traced.

    `nnx.Rngs` counts in an array. Under a trace every draw then asks a tracer for a sharding it
    does not have, and the error that is made and dropped lists all equations so far: building the
    paper's model took 7 seconds where 1 is enough.

    Args:
      key: a seed or a key; every name of a stream (`params`, `dropout`) draws from it.
    """

    def __init__(self, key: int | jax.Array):
        self.default = _Stream(jax.random.key(key) if isinstance(key, int) else key)
