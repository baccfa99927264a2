"""What training carries from update to update, and which parameters train."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from lmseg_jax.models.lmseg import build

# The text tower never trains; frozen norms and running statistics are no `Param`s at all.
TRAINABLE = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("text_encoder")))


@flax.struct.dataclass
class TrainState:
    """Everything an update reads and writes; nested dicts of arrays.

    Attributes:
      step: int32, updates done.
      params: what the optimizer changes.
      frozen: text tower and constants of frozen norms.
      optimizer: optax state.
      average: moving average of `params`, or {} where that is off.
    """

    step: jax.Array
    params: Any
    frozen: Any
    optimizer: Any
    average: Any


def graph(config: ConfigDict) -> nnx.GraphDef:
    """Structure of the model without its arrays; no memory is used."""
    return nnx.graphdef(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))


def weights(config: ConfigDict, seed: int) -> tuple[dict, dict]:
    """Random weights of `config.model`: (params, frozen)."""
    _, params, frozen = nnx.split(build(config, rngs=nnx.Rngs(seed)), TRAINABLE, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def start(params: dict, frozen: dict, optimizer: optax.GradientTransformation, *, average: bool):
    """State before the first update."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        frozen=frozen,
        optimizer=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params) if average else {},
    )


def merge(graphdef: nnx.GraphDef, params: dict, frozen: dict):
    """A model again, to be used inside one traced function."""
    return nnx.merge(graphdef, params, frozen)


def join(params: dict, frozen: dict) -> dict:
    """One nested dict of both; branches that occur in both are joined, leaves never collide."""
    joined = dict(params)
    for key, value in frozen.items():
        joined[key] = join(params[key], value) if key in params else value
    return joined


def count(tree: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
