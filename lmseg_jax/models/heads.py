"""Class heads. All share one signature: (queries, text, dataset) -> logits [.., B, Q, K]."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

INVALID = -1e9  # logit of a padded class: weight zero in any softmax, finite in any sum


def normalise(x: Array) -> Array:
    """x / |x| along the last axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class TextHead(nnx.Module):
    """Text-query alignment: cosine of each query with each name, over a temperature.

    logits[q, j] = <q / |q|, t_j / |t_j|> / tau; padded names get -1e9.

    Source: LMSeg Eq. 1; both sides normalised as in the authors' release.
    """

    def __init__(self, *, temperature: float):
        self.temperature = temperature

    def __call__(self, queries: Array, text: dict[str, Array], dataset: Array) -> Array:
        """queries [L, B, Q, D], text of all datasets, dataset i32 [B] -> [L, B, Q, K]."""
        names = normalise(text["embeddings"][dataset])  # [B, K, D]
        logits = jnp.einsum("lbqd,bkd->lbqk", normalise(queries), names) / self.temperature
        return jnp.where(text["valid"][dataset][None, :, None, :], logits, INVALID)


HEADS = {"text": TextHead}
