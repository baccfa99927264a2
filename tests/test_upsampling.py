"""Upsampling against interpolation by NumPy, and the order of its pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmseg_jax import upsampling


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_upsampling_interpolates_at_pixel_centres(factor):
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)

    def stretch(row):
        places = (np.arange(factor * len(row)) + 0.5) / factor - 0.5
        return np.interp(places, np.arange(len(row)), row)

    expected = np.apply_along_axis(stretch, -1, np.apply_along_axis(stretch, -2, x))
    found = np.asarray(upsampling.upsample(jnp.asarray(x), factor))
    assert found.shape == (2, factor * factor * 3, 5)
    for r, c in np.ndindex(factor, factor):
        rows = slice(3 * (factor * r + c), 3 * (factor * r + c + 1))  # pixels of place (r, c)
        np.testing.assert_allclose(
            found[:, rows], expected[:, r::factor, c::factor], atol=1e-6, err_msg=f"{r}, {c}"
        )


def test_phases_group_pixels_by_their_place():
    x = np.arange(2 * 6 * 8).reshape(2, 6, 8)
    expected = np.concatenate([x[:, r::2, c::2] for r in range(2) for c in range(2)], axis=1)
    np.testing.assert_array_equal(upsampling.phases(jnp.asarray(x), 2), expected)
    np.testing.assert_array_equal(upsampling.phases(jnp.asarray(x), 1), x)
