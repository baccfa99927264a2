"""Class heads. All share one signature: (queries, text, dataset) -> logits [.., B, Q, K]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lmseg_jax.models.layers import torch_linear

SIMILARITIES = ("cosine", "raw")
TEMPERATURES = (0.01, 1.0)  # bounds of a learned one; see `state.project`
INVALID = -1e9  # logit of a padded class: weight zero in any softmax, finite in any sum


def normalise(x: Array) -> Array:
    """x / |x| along the last axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class TextHead(nnx.Module):
    """Text-query alignment: similarity of each query with each name, over a temperature.

    logits[q, j] = s(q, t_j) / tau; padded names get -1e9.

    Args:
      temperature: tau, fixed or the first value of a learned one.
      similarity: "cosine", s = <q / |q|, t / |t|>, or "raw", s = <q, t>.
      learned: makes tau a parameter.

    Source: LMSeg Eq. 1; both sides normalised as in the authors' release.
    """

    def __init__(self, *, temperature: float, similarity: str = "cosine", learned: bool = False):
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity {similarity!r} is not one of {SIMILARITIES}")
        self.temperature = nnx.Param(jnp.float32(temperature)) if learned else temperature
        self.similarity = similarity

    def __call__(self, queries: Array, text: dict[str, Array], dataset: Array) -> Array:
        """queries [L, B, Q, D], text of all datasets, dataset i32 [B] -> [L, B, Q, K]."""
        names = text["embeddings"][dataset]  # [B, K, D]
        if self.similarity == "cosine":
            queries, names = normalise(queries), normalise(names)
        learned = isinstance(self.temperature, nnx.Param)
        temperature = self.temperature[...] if learned else self.temperature
        logits = jnp.einsum("lbqd,bkd->lbqk", queries, names) / temperature
        return jnp.where(text["valid"][dataset][None, :, None, :], logits, INVALID)


class LinearHead(nnx.Module):
    """One linear layer to the classes of one dataset and background, which is last: MaskFormer's.

    logits = W q + b, with W and b uniform in +-1/sqrt(D) at the start.

    Args:
      width: D, of the queries.
      names: number of names of each dataset, background included; one dataset only.

    Raises:
      ValueError: there is not exactly one dataset.

    Source: MaskFormer (Cheng et al., 2021); reference section 3.3.
    """

    def __init__(self, width: int, *, names: Sequence[int], rngs: nnx.Rngs):
        if len(names) != 1:
            raise ValueError(f"head 'linear' is made for one dataset, not {len(names)}")
        self.classes = torch_linear(width, names[0], rngs=rngs)

    def __call__(self, queries: Array, text: dict[str, Array], dataset: Array) -> Array:
        """queries [L, B, Q, D] -> [L, B, Q, K]; `text` and `dataset` change nothing."""
        return self.classes(queries)


class MultiHead(nnx.Module):
    """One linear layer for each dataset behind a shared trunk: the paper's multi-head baseline.

    logits[q, j] = <W_m[j], q> + b_m[j] for a query q of an image of dataset m; columns that
    dataset m does not have get -1e9.

    Args:
      width: D, of the queries.
      names: number of names of each dataset, background included and last.

    Raises:
      ValueError: there is no dataset.

    Source: LMSeg's comparison with baselines; reference A31.
    """

    def __init__(self, width: int, *, names: Sequence[int], rngs: nnx.Rngs):
        if not names:
            raise ValueError("head 'multi_head' needs the number of names of each dataset")
        self.classes = nnx.List([torch_linear(width, count, rngs=rngs) for count in names])

    def __call__(self, queries: Array, text: dict[str, Array], dataset: Array) -> Array:
        """queries [L, B, Q, D], dataset i32 [B] -> [L, B, Q, K]."""
        k = max(layer.out_features for layer in self.classes)

        def padded(layer):
            missing = k - layer.out_features
            kernel = jnp.pad(layer.kernel[...], ((0, 0), (0, missing)))
            return kernel, jnp.pad(layer.bias[...], (0, missing), constant_values=INVALID)

        tables = [padded(layer) for layer in self.classes]
        kernels = jnp.stack([kernel for kernel, _ in tables])[dataset]  # [B, D, K]
        biases = jnp.stack([bias for _, bias in tables])[dataset]  # [B, K]
        return jnp.einsum("lbqd,bdk->lbqk", queries, kernels) + biases[None, :, None]


class ManualHead(nnx.Module):
    """One linear layer to the union of all names: the paper's manual taxonomy baseline.

    Equal names of several datasets are one class, background comes last. In training this is one
    label space: the softmax runs over the whole union, and a name that an image's dataset does not
    have is a negative like any other, as if all datasets were one. The shared signature has a
    column for each asked name only, so whatever the union gives to other names is summed in one
    more column, the last:

    logits[q, j] = u[i(j)] for j < K,  logits[q, K] = log sum_{i not asked} exp(u[i]),  u = W q + b

    The softmax over all K + 1 columns is then each asked name's probability in the union. Without
    the last column it is the union restricted to the asked dataset's names, which is how images
    are segmented unless `model.manual.restrict` is off; see `foreign_to_background`.

    Args:
      width: D, of the queries.
      names: number of names of each dataset, background included and last.
      union: i32 [M, K], number of each class's name; equal numbers are equal names.

    Raises:
      ValueError: the numbers of the names are missing.

    Source: LMSeg's comparison with baselines; reference A31.
    """

    def __init__(self, width: int, *, names: Sequence[int], union: np.ndarray, rngs: nnx.Rngs):
        if union is None or not names:
            raise ValueError("head 'manual_taxonomy' needs the numbers of all datasets' names")
        asked = [row[:count] for row, count in zip(np.asarray(union), names, strict=True)]
        background = asked[0][-1]
        order = [*sorted({int(i) for row in asked for i in row} - {int(background)}), background]
        place = {int(number): i for i, number in enumerate(order)}
        # tuples: structure of the model, not one of its arrays
        self.rows = tuple(tuple(place[int(i)] for i in row) for row in asked)
        self.classes = torch_linear(width, len(order), rngs=rngs)

    def __call__(self, queries: Array, text: dict[str, Array], dataset: Array) -> Array:
        """queries [L, B, Q, D], dataset i32 [B] -> [L, B, Q, K + 1]."""
        k, u = max(map(len, self.rows)), self.classes.out_features
        index = np.zeros((len(self.rows), k), np.int32)
        valid = np.zeros((len(self.rows), k), bool)
        foreign = np.ones((len(self.rows), u), bool)
        for m, row in enumerate(self.rows):
            index[m, : len(row)], valid[m, : len(row)], foreign[m, list(row)] = row, True, False
        logits = self.classes(queries)
        chosen = jnp.asarray(index)[dataset][None, :, None]  # [1, B, 1, K]
        asked = jnp.take_along_axis(logits, chosen, axis=-1)
        asked = jnp.where(jnp.asarray(valid)[dataset][None, :, None], asked, INVALID)
        others = jnp.where(jnp.asarray(foreign)[dataset][None, :, None], logits, INVALID)
        others = jax.nn.logsumexp(others, axis=-1, keepdims=True)
        return jnp.concatenate([asked, others], axis=-1)


def foreign_to_background(logits: Array, valid: Array) -> Array:
    """Counts what other datasets' names get as background, so asked names keep their probability.

    Args:
      logits: [L, B, Q, K + 1] of the `ManualHead`.
      valid: bool [B, K], the asked dataset's names, background last.

    Returns:
      [L, B, Q, K], the softmax of which is that of the whole union at each asked name.
    """
    k = valid.shape[-1]
    background = jnp.arange(k)[None] == jnp.sum(valid, axis=-1, keepdims=True) - 1  # [B, K]
    both = jnp.logaddexp(logits[..., :k], logits[..., k:])
    return jnp.where(background[None, :, None], both, logits[..., :k])


HEADS = {
    "text": TextHead,
    "linear": LinearHead,
    "multi_head": MultiHead,
    "manual_taxonomy": ManualHead,
}
