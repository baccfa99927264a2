import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.pixel_decoder import FPN

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


@pytest.fixture(scope="module")
def decoder():
    return FPN(CHANNELS, width=8, groups=2, rngs=nnx.Rngs(0))


def features(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"res2": 16, "res3": 8, "res4": 4, "res5": 2}
    return {k: jnp.asarray(rng.normal(size=(1, s, s, CHANNELS[k]))) for k, s in sizes.items()}


def test_levels_have_their_strides(decoder):
    shapes = jax.tree.map(lambda x: x.shape, decoder(features()))
    assert shapes == {"pixel4": (1, 16, 16, 8), "pixel8": (1, 8, 8, 8), "pixel16": (1, 4, 4, 8)}


def test_mask_features_may_have_a_width_of_their_own():
    decoder = FPN(CHANNELS, width=8, groups=2, mask_width=6, rngs=nnx.Rngs(0))
    shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(decoder, features()))
    assert shapes == {"pixel4": (1, 16, 16, 6), "pixel8": (1, 8, 8, 8), "pixel16": (1, 4, 4, 8)}


@pytest.mark.parametrize("level", ["res2", "res3", "res4", "res5"])
def test_every_level_reaches_the_mask_features(decoder, level):
    changed = features() | {level: features(1)[level]}
    assert np.abs(decoder(changed)["pixel4"] - decoder(features())["pixel4"]).max() > 1e-3
