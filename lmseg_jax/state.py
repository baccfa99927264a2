"""What training carries from update to update, and which parameters train."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from lmseg_jax.models.heads import TEMPERATURES
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.lmseg import TEXT_PARTS, build

# The text tower never trains; frozen norms and running statistics are no `Param`s at all.
TRAINABLE = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("text_encoder")))

Vocabulary = Mapping[str, np.ndarray]  # tokens, index and valid; see `assembly.vocabulary_of`


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


def class_tables(vocabulary: Vocabulary | None) -> dict[str, Any]:
    """What heads with tables of classes are built for: `names` and `union` of `build`."""
    if vocabulary is None:
        return {}
    counts = np.sum(vocabulary["valid"], axis=1)
    return {"names": tuple(int(count) for count in counts), "union": vocabulary["index"]}


def graph(
    config: ConfigDict, vocabulary: Vocabulary | None = None, *, text: bool = True
) -> nnx.GraphDef:
    """Structure of the model without its arrays; no memory is used.

    Args:
      config: `config.model` of a run.
      vocabulary: of all datasets; heads other than "text" need it.
      text: False leaves out the parts that only `encode_text` uses; see `without_text`.
    """
    whole, network, _ = _structure(*_key(config, vocabulary))
    return whole if text else network


def shapes(config: ConfigDict, vocabulary: Vocabulary | None = None) -> tuple[dict, dict]:
    """(params, frozen) of `weights` as `jax.ShapeDtypeStruct`s; for `vocabulary` see `graph`."""
    return _structure(*_key(config, vocabulary))[2]


def _key(config: ConfigDict, vocabulary: Vocabulary | None) -> tuple:
    """All that decides a model's structure, hashable."""
    tables = class_tables(vocabulary) if config.head != "text" else {}
    union = tables.get("union")
    rows = None if union is None else tuple(map(tuple, np.asarray(union).tolist()))
    return FrozenConfigDict(config), tables.get("names", ()), rows


@functools.lru_cache(maxsize=8)  # tracing every initialiser takes a second, and loading asks twice
def _structure(
    config: FrozenConfigDict, names: tuple[int, ...], union: tuple[tuple[int, ...], ...] | None
) -> tuple[nnx.GraphDef, nnx.GraphDef, tuple[dict, dict]]:
    """The graph, the graph without the parts that only read text, and shapes."""
    tables = {} if union is None else {"names": names, "union": np.array(union, np.int32)}
    model = nnx.eval_shape(lambda: build(config, **tables, rngs=Rngs(0)))
    graphdef, params, frozen = nnx.split(model, TRAINABLE, ...)
    for part in TEXT_PARTS:
        if hasattr(model, part):
            delattr(model, part)
    return graphdef, nnx.graphdef(model), (nnx.to_pure_dict(params), nnx.to_pure_dict(frozen))


def without_text(tree: dict) -> dict:
    """`params` or `frozen` without the parts that only `encode_text` uses."""
    return {part: leaves for part, leaves in tree.items() if part not in TEXT_PARTS}


def weights(
    config: ConfigDict, seed: int, *, vocabulary: Vocabulary | None = None
) -> tuple[dict, dict]:
    """Random weights of `config.model`: (params, frozen). For `vocabulary` see `graph`."""
    model = build(config, **class_tables(vocabulary), rngs=Rngs(seed))
    _, params, frozen = nnx.split(model, TRAINABLE, ...)
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


def project(params: dict) -> dict:
    """Puts a learned temperature back between its bounds; nothing else changes.

    Done after each update rather than by clipping in the forward pass: a clipped value has no
    gradient, and one that wanders on beyond a bound takes as long to come back.
    """
    head = params.get("head", {})
    if "temperature" not in head:
        return params
    return params | {"head": head | {"temperature": jnp.clip(head["temperature"], *TEMPERATURES)}}


def merge(graphdef: nnx.GraphDef, params: dict, frozen: dict):
    """A model again, to be used inside one traced function."""
    return nnx.merge(graphdef, params, frozen)


def join(params: dict, frozen: dict) -> dict:
    """One nested dict of both; branches that occur in both are joined, leaves never collide."""
    joined = dict(params)
    for key, value in frozen.items():
        joined[key] = join(params[key], value) if key in params else value
    return joined


def split_like(trees: tuple[dict, dict], values: dict) -> tuple[dict, dict]:
    """Deals the leaves of one nested dict out to two, where each has a place for its own."""

    def pick(tree, values):
        return {
            key: pick(value, values[key]) if isinstance(value, dict) else values[key]
            for key, value in tree.items()
        }

    return pick(trees[0], values), pick(trees[1], values)


def remaining(tree: dict, known: dict) -> dict:
    """A nested dict without the leaves that another one has; all branches stay."""
    return {
        key: remaining(value, known.get(key, {})) if isinstance(value, dict) else value
        for key, value in tree.items()
        if isinstance(value, dict) or key not in known
    }


def count(tree: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
