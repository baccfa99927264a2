"""The ResNet in CLIP's form (three-convolution stem, average pools for strides) and ImageNet's.

Source: Radford et al., 2021; He et al., 2016; reference sections 1.1 and 1.3.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lmseg_jax.models import norms
from lmseg_jax.models.layers import Conv, Linear, max_pool, once

EXPANSION = 4
CHANNELS_A_GROUP = 8  # of GroupNorm, where there is one

# Detectron2's MSRA initialisation: normal with standard deviation sqrt(2 / fan_out).
_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _group_norm(channels: int, *, rngs: nnx.Rngs) -> norms.GroupNorm:
    return norms.GroupNorm(channels, groups=max(1, channels // CHANNELS_A_GROUP), rngs=rngs)


NORMS = {"frozen": norms.FrozenNorm, "group": _group_norm, "batch": norms.BatchNorm}


def _norm(name: str, *, affine: bool) -> Callable:
    """Makes norms of a kind; `affine` trains scale and bias of the frozen ones."""
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; known: {', '.join(NORMS)}")
    if affine and name != "frozen":
        raise ValueError(f"affine is for frozen norms; {name!r} always trains scale and bias")
    return functools.partial(NORMS[name], affine=True) if affine else NORMS[name]


def _spatial(inputs: int, outputs: int, *, stride: int = 1, rngs: nnx.Rngs) -> Conv:
    """3x3 convolution without bias."""
    return Conv(
        inputs, outputs, 3, stride=stride, use_bias=False, kernel_init=_kernel_init, rngs=rngs
    )


def _pointwise(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """1x1 convolution without bias, as a matrix product: the weight gradient is faster on CPU."""
    return Linear(inputs, outputs, use_bias=False, kernel_init=_kernel_init, rngs=rngs)


def _halve(features: Array) -> Array:
    """2x2 average pool; an odd last row or column is dropped."""
    return nnx.avg_pool(features, (2, 2), strides=(2, 2))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut.

    A stride of 2 is an average pool after the 3x3 convolution and before the shortcut's; with
    `pooled` off it is the stride of both convolutions.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int,
        norm: Callable,
        pooled: bool = True,
        rngs: nnx.Rngs,
    ):
        outputs = planes * EXPANSION
        self.stride, self.pooled = stride, pooled
        self.conv1 = _pointwise(inputs, planes, rngs=rngs)
        self.norm1 = norm(planes, rngs=rngs)
        self.conv2 = _spatial(planes, planes, stride=1 if pooled else stride, rngs=rngs)
        self.norm2 = norm(planes, rngs=rngs)
        self.conv3 = _pointwise(planes, outputs, rngs=rngs)
        self.norm3 = norm(outputs, rngs=rngs)
        self.projected = stride > 1 or inputs != outputs
        if self.projected:
            self.shortcut = _pointwise(inputs, outputs, rngs=rngs)
            self.shortcut_norm = norm(outputs, rngs=rngs)

    def __call__(self, features: Array, *, train: bool = False) -> Array:
        """[B, H, W, inputs] -> [B, h, w, 4 planes], H / stride rounded down, not `pooled`: up."""
        inner = nnx.relu(self.norm1(self.conv1(features), train=train))
        inner = nnx.relu(self.norm2(self.conv2(inner), train=train))
        if self.stride > 1 and self.pooled:
            inner, features = _halve(inner), _halve(features)
        elif self.stride > 1:
            features = features[:, :: self.stride, :: self.stride]
        inner = self.norm3(self.conv3(inner), train=train)
        if self.projected:
            features = self.shortcut_norm(self.shortcut(features), train=train)
        return once(nnx.relu(inner + features))


class StemLayer(nnx.Module):
    """3x3 convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Callable, rngs: nnx.Rngs):
        self.conv = _spatial(inputs, outputs, stride=stride, rngs=rngs)
        self.norm = norm(outputs, rngs=rngs)

    def __call__(self, features: Array, *, train: bool = False) -> Array:
        return nnx.relu(self.norm(self.conv(features), train=train))


def _make_stages(
    depths: Sequence[int], width: int, *, norm: Callable, pooled: bool, rngs: nnx.Rngs
) -> nnx.List:
    """The blocks of res2..res5."""
    stages, inputs = [], width
    for stage, depth in enumerate(depths):
        planes, blocks = width * 2**stage, []
        for block in range(depth):
            stride = 2 if block == 0 and stage > 0 else 1
            blocks.append(
                Bottleneck(inputs, planes, stride=stride, norm=norm, pooled=pooled, rngs=rngs)
            )
            inputs = planes * EXPANSION
        stages.append(nnx.List(blocks))
    return nnx.List(stages)


def _channels(stages: nnx.List) -> dict[str, int]:
    return {f"res{i}": blocks[0].conv3.out_features for i, blocks in enumerate(stages, start=2)}


def _run_stages(stages: nnx.List, features: Array, *, train: bool, remat: bool) -> dict[str, Array]:
    def run(block, features):
        return block(features, train=train)

    run = nnx.remat(run) if remat else run
    outputs = {}
    for number, blocks in enumerate(stages, start=2):
        for block in blocks:
            features = run(block, features)
        outputs[f"res{number}"] = features
    return outputs


class ClipResNet(nnx.Module):
    """The trunk of CLIP's image tower, without the attention pool.

    Strides are 4, 8, 16 and 32 for sides that are multiples of 32; in general the first
    convolution rounds a half up and every later pool rounds it down.

    Args:
      depths: blocks of res2..res5; (3, 4, 6, 3) is ResNet-50.
      width: channels after the stem; res2 has 4 times as many, res5 32 times.
      norm: "frozen" (constants, for pretrained weights), "group" (from scratch) or "batch" (live
        statistics when called with `train=True`; pre-training only).
      affine: trains scale and bias of frozen norms.
      remat: computes the inside of each block again in the backward pass instead of keeping it.

    Attributes:
      channels: of each output, a dict with the keys "res2".."res5".

    Raises:
      ValueError: for an unknown norm.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        norm: str = "frozen",
        affine: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        make = _norm(norm, affine=affine)
        self.remat = remat
        half = width // 2
        sizes = ((3, half, 2), (half, half, 1), (half, width, 1))
        self.stem = nnx.List([StemLayer(a, b, stride=s, norm=make, rngs=rngs) for a, b, s in sizes])
        self.stages = _make_stages(depths, width, norm=make, pooled=True, rngs=rngs)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each output of the call."""
        return _channels(self.stages)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        """Features at four scales.

        Args:
          images: [B, H, W, 3], normalised; their dtype is that of all arithmetic.
          train: with norm "batch", normalise by this batch and move the running averages.

        Returns:
          "res2".."res5" -> [B, h, w, C], strides 4 to 32.
        """
        features = self.embed(images, train=train)
        return _run_stages(self.stages, features, train=train, remat=self.remat)

    def embed(self, images: Array, *, train: bool = False) -> Array:
        """The stem: [B, H, W, 3] -> [B, H/4, W/4, width]."""
        features = images
        for layer in self.stem:
            features = layer(features, train=train)
        return _halve(features)


class ResNet(nnx.Module):
    """The ResNet of ImageNet classification, without its classifier: torchvision's form.

    A 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2 make the stem; the first block of
    res3, res4 and res5 has its stride in the 3x3 convolution. Strides are 4, 8, 16 and 32; every
    one rounds up.

    Args:
      depths, width, norm, affine, remat: as for `ClipResNet`.

    Attributes:
      channels: of each output, a dict with the keys "res2".."res5".

    Raises:
      ValueError: for an unknown norm.

    Source: He et al., 2016; reference section 1.3.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        norm: str = "frozen",
        affine: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        make = _norm(norm, affine=affine)
        self.remat = remat
        self.stem = Stem(width, norm=make, rngs=rngs)
        self.stages = _make_stages(depths, width, norm=make, pooled=False, rngs=rngs)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each output of the call."""
        return _channels(self.stages)

    def __call__(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        """[B, H, W, 3], normalised -> "res2".."res5" [B, h, w, C], strides 4 to 32."""
        features = self.stem(images, train=train)
        return _run_stages(self.stages, features, train=train, remat=self.remat)


class Stem(nnx.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max-pool of stride 2."""

    def __init__(self, width: int, *, norm: Callable, rngs: nnx.Rngs):
        self.conv = Conv(3, width, 7, stride=2, use_bias=False, kernel_init=_kernel_init, rngs=rngs)
        self.norm = norm(width, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """[B, H, W, 3] -> [B, H/4, W/4, width]."""
        features = nnx.relu(self.norm(self.conv(images), train=train))
        return max_pool(features)


class AttentionPool(nnx.Module):
    """CLIP's pooling of an image: the mean of all cells asks all cells and itself.

    Used by contrastive pre-training; LMSeg itself leaves it out.

    Args:
      grid: cells along one side of the square feature map.
      channels: of the feature map.
      heads: of the attention.
      output: width of the joint image-text space.
    """

    def __init__(self, grid: int, channels: int, *, heads: int, output: int, rngs: nnx.Rngs):
        init = nnx.initializers.normal(channels**-0.5)
        self.heads = heads
        self.positions = nnx.Param(init(rngs.params(), (grid * grid + 1, channels)))
        self.query = nnx.Linear(channels, channels, kernel_init=init, rngs=rngs)
        self.key = nnx.Linear(channels, channels, kernel_init=init, rngs=rngs)
        self.value = nnx.Linear(channels, channels, kernel_init=init, rngs=rngs)
        self.project = nnx.Linear(channels, output, kernel_init=init, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        """[B, grid, grid, channels] -> [B, output]."""
        b, _, _, c = features.shape
        tokens = features.reshape(b, -1, c)
        tokens = jnp.concatenate([jnp.mean(tokens, axis=1, keepdims=True), tokens], axis=1)
        tokens = tokens + self.positions[...][None]  # [B, 1 + cells, C]
        split = (b, -1, self.heads, c // self.heads)
        query = self.query(tokens[:, :1]).reshape(split)
        key, value = self.key(tokens).reshape(split), self.value(tokens).reshape(split)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (c // self.heads) ** -0.5
        pooled = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)
        return self.project(pooled.reshape(b, c))
