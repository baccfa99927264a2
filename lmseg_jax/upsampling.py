"""Bilinear upsampling for sums over pixels, whose order does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def phases(x: Array, factor: int) -> Array:
    """Pixels ordered by their place inside the coarse pixel that they lie in.

    The place (r, c) of every coarse pixel comes before the next place of any, so that all pixels of
    a place are neighbours in memory, and sums over places add whole images.

    Args:
      x: [..., factor h, factor w].
      factor: pixels of a coarse pixel along each axis.

    Returns:
      [..., factor factor h, w], indexed by (r, c, row) and column.
    """
    h, w = (size // factor for size in x.shape[-2:])
    x = x.reshape(*x.shape[:-2], h, factor, w, factor)
    x = jnp.moveaxis(x, (-3, -1), (-4, -3))
    return x.reshape(*x.shape[:-4], -1, w)


def upsample(x: Array, factor: int) -> Array:
    """Bilinear interpolation at pixel centres, edges repeated; two neighbours an axis.

    The numbers of `jax.image.resize`, which is a product with a dense matrix of H x h an axis, in
    the order of `phases`: the interleaved image is never made, nor read back by the gradient.

    Args:
      x: [..., h, w].
      factor: by which both sides grow.

    Returns:
      [..., factor factor h, w], `phases` of the larger image.
    """
    if factor == 1:
        return x
    place = (np.arange(factor) + 0.5) / factor - 0.5  # in the old pixel, from its centre
    weights = np.float32([np.maximum(-place, 0), 1 - np.abs(place), np.maximum(place, 0)])
    for axis in (-2, -1):  # rows, then columns; each puts its places before the last two axes
        first, last = (jax.lax.index_in_dim(x, i, axis) for i in (0, -1))
        size = x.shape[axis]
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        x = sum(
            neighbour[..., None, :, :] * weight.reshape((1,) * (x.ndim - 2) + (-1, 1, 1))
            for neighbour, weight in zip((before, x, after), weights, strict=True)
        )
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])
