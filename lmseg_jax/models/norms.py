"""Normalisation of image features: constants, groups of channels, or the whole batch.

Statistics are in f32, results in the dtype of the features.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

EPSILON = 1e-5


class Constant(nnx.Variable):
    """An array that belongs to the model but is never trained by gradients."""


def _affine(features: Array, scale: Array, bias: Array) -> Array:
    """features * scale + bias; scale and bias are [C], or [B, C] for one pair an image."""
    shape = (-1, 1, 1, features.shape[-1])
    return (features * scale.reshape(shape) + bias.reshape(shape)).astype(features.dtype)


class FrozenNorm(nnx.Module):
    """Batch normalisation with fixed statistics, folded to one multiply-add.

    y = x a + b with a = scale / sqrt(var + 1e-5) and b = bias - mean a. The four vectors are
    constants; `affine=True` makes scale and bias ordinary parameters. New ones are the identity:
    it takes pretrained weights to be useful.

    Source: reference sections 1.1 and 1.4.
    """

    def __init__(self, channels: int, *, affine: bool = False, rngs: nnx.Rngs):
        kind = nnx.Param if affine else Constant
        self.scale = kind(jnp.ones(channels))
        self.bias = kind(jnp.zeros(channels))
        self.mean = Constant(jnp.zeros(channels))
        self.var = Constant(jnp.ones(channels))

    def __call__(self, features: Array, *, train: bool = False) -> Array:
        """[B, H, W, C] -> the same; `train` changes nothing."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        return _affine(features, scale, self.bias[...] - self.mean[...] * scale)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance of each group of channels of each image, then scale and bias.

    Moments are taken per channel first and averaged over the group on [B, C]; reshaping the
    feature map into groups instead is much slower on CPU.

    Source: Wu and He, 2018.
    """

    def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups")
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, features: Array, *, train: bool = False) -> Array:
        """[B, H, W, C] -> the same; `train` changes nothing."""
        exact = features.astype(jnp.float32)
        mean = self._over_groups(jnp.mean(exact, axis=(1, 2)))
        square = self._over_groups(jnp.mean(jnp.square(exact), axis=(1, 2)))
        var = jnp.maximum(square - jnp.square(mean), 0.0)
        scale = self.scale[...][None] * jax.lax.rsqrt(var + EPSILON)  # [B, C]
        return _affine(features, scale, self.bias[...][None] - mean * scale)

    def _over_groups(self, moments: Array) -> Array:
        """Mean of each group, given back to each of its channels. [B, C] -> [B, C]."""
        b, c = moments.shape
        means = jnp.mean(moments.reshape(b, self.groups, c // self.groups), axis=-1)
        return jnp.repeat(means, c // self.groups, axis=-1)


class BatchNorm(nnx.Module):
    """Zero mean and unit variance of each channel over the whole batch; for pre-training only.

    In training the batch's own moments normalise, and the running averages `mean` and `var` move
    towards them by `momentum`; otherwise the running averages normalise. The averages are the
    one thing in this package that a call changes: pre-training splits them off after the forward.

    Source: Ioffe and Szegedy, 2015.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, rngs: nnx.Rngs):
        self.momentum = momentum
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = Constant(jnp.zeros(channels))
        self.var = Constant(jnp.ones(channels))

    def __call__(self, features: Array, *, train: bool = False) -> Array:
        """[B, H, W, C] -> the same."""
        mean, var = self.mean[...], self.var[...]
        if train:
            batch_mean = jnp.mean(features, axis=(0, 1, 2))
            square = jnp.mean(jnp.square(features), axis=(0, 1, 2))
            batch_var = jnp.maximum(square - jnp.square(batch_mean), 0.0)
            unbiased = batch_var * (features.size / (features.size - features.shape[-1]))
            self.mean[...] = mean + self.momentum * (batch_mean - mean)
            self.var[...] = var + self.momentum * (unbiased - var)
            mean, var = batch_mean, batch_var
        scale = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        return _affine(features, scale, self.bias[...] - mean * scale)
