"""Bilinear upsampling for sums over pixels, whose order does not matter."""

import functools

import jax
import jax.numpy as jnp
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
    places = [(i + 0.5) / factor - 0.5 for i in range(factor)]  # in the old pixel, from its centre
    for axis in (-2, -1):  # rows, then columns; each puts its places before the last two axes
        part = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
        size = x.shape[axis]
        before = jnp.concatenate([part(0, 1), part(0, size - 1)], axis)
        after = jnp.concatenate([part(1, size), part(size - 1, size)], axis)
        # numbers, not an array of weights: the CPU's compiler would spread that over all pixels
        stretched = [
            (1 - abs(place)) * x + abs(place) * (before if place < 0 else after) for place in places
        ]
        x = jnp.stack(stretched, axis=-3)
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])
