"""The text path beside its plain form: every name of every dataset as a sequence of 77 tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from lmseg_jax import flops, state
from lmseg_jax.models.lmseg import LMSeg


@dataclass(frozen=True)
class Count:
    """FLOPs of an update's text path: names are embedded, then once more with the gradient.

    Attributes:
      ours: distinct names, the shared prefix once, no padding beyond the longest name.
      naive: the plain form.
      names: of all datasets, equal ones several times, background left out.
      positions: of each sequence in the plain form.
    """

    ours: int
    naive: int
    names: int
    positions: int


def plain_embeddings(model: LMSeg, tokens: Array, index: Array) -> Array:
    """`LMSeg.encode_text` without any saving.

    Args:
      model: with a text tower.
      tokens: i32 [N, S], each name's tokens and its end token.
      index: i32 [R], the row of `tokens` of each name; equal names are computed again.

    Returns:
      f32 [R, D], adapted.
    """
    encoder, context = model.text_encoder, model.prompt.context[...]
    p = 1 + context.shape[0]
    rows = jnp.full((index.shape[0], encoder.context - p), encoder.end)
    rows = rows.at[:, : tokens.shape[1]].set(jnp.asarray(tokens)[index])
    table = encoder.tokens[...]
    shared = jnp.concatenate([table[encoder.start][None], context])
    shared = jnp.broadcast_to(shared[None], (len(rows), *shared.shape))
    hidden = jnp.concatenate([shared, table[rows]], axis=1) + encoder.positions[...][None]
    for block in encoder.blocks:
        hidden, _ = block(hidden)
    end = p + jnp.argmax(rows == encoder.end, axis=1)
    read = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
    names = encoder.norm(read) @ encoder.projection[...]
    if model.adapter_norm is not None:
        names = model.adapter_norm(names)
    return model.adapter(names)


def count(config: ConfigDict, vocabulary: dict[str, np.ndarray]) -> Count:
    """Counts both forms in their jaxprs; nothing is computed or compiled."""
    graphdef = state.graph(config.model, vocabulary)
    params, frozen = state.shapes(config.model, vocabulary)
    tokens, index, valid = (vocabulary[key] for key in ("tokens", "index", "valid"))
    real = [row[: np.sum(used) - 1] for row, used in zip(index, valid, strict=True)]
    real = np.concatenate(real)  # background, each dataset's last, left out

    def ours(params, frozen):
        model = state.merge(graphdef, params, frozen)
        return model.encode_text(tokens, index, valid)["embeddings"]

    def naive(params, frozen):
        return plain_embeddings(state.merge(graphdef, params, frozen), tokens, real)

    def both_passes(embed):
        def backward(params, frozen, cotangent):
            return jax.vjp(lambda params: embed(params, frozen), params)[1](cotangent)

        cotangent = jax.eval_shape(embed, params, frozen)
        return flops.count(embed, params, frozen) + flops.count(backward, params, frozen, cotangent)

    positions = frozen["text_encoder"]["positions"].shape[0]
    return Count(both_passes(ours), both_passes(naive), len(real), positions)
