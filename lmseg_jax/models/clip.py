"""A whole CLIP: image tower with attention pool, text tower, temperature. For pre-training only.

And the image tower alone under a linear layer, which learns without text.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lmseg_jax.models.resnet import AttentionPool, ClipResNet
from lmseg_jax.models.text_encoder import TextEncoder

HEAD = 64  # channels of one head of the attention pool


class Clip(nnx.Module):
    """Image and text tower into one space.

    Args:
      size: of the square images in pixels, a multiple of 32.
      depths, width: of the `ClipResNet`, which has batch norms.
      text: arguments of the `TextEncoder`; its `embedding` is the joint space.

    Source: Radford et al., 2021.
    """

    def __init__(self, size: int, *, depths: Sequence[int], width: int, text: dict, rngs: nnx.Rngs):
        self.image = ClipResNet(depths=depths, width=width, norm="batch", rngs=rngs)
        channels = self.image.channels["res5"]
        heads = max(1, channels // HEAD)
        embedding = text["embedding"]
        self.pool = AttentionPool(size // 32, channels, heads=heads, output=embedding, rngs=rngs)
        self.text = TextEncoder(**text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def encode_image(self, images: Array, *, train: bool = False) -> Array:
        """f32 [B, size, size, 3], normalised -> f32 [B, embedding] of length 1."""
        return _unit(self.pool(self.image(images, train=train)["res5"]))

    def encode_text(self, tokens: Array, *, prompt: Array | None = None) -> Array:
        """i32 [N, S] from SOT on -> f32 [N, embedding] of length 1.

        Args:
          tokens: whole sequences.
          prompt: f32 [P, width], put between SOT and the words.
        """
        if prompt is None:
            return _unit(self.text.encode(tokens))
        return _unit(self.text.encode_prompted(prompt, tokens[:, 1:]))


class Classifier(nnx.Module):
    """The image tower of `Clip` with a linear layer on its mean feature.

    Args:
      outputs: how many logits.
      depths, width: of the `ClipResNet`, which has batch norms.
    """

    def __init__(self, outputs: int, *, depths: Sequence[int], width: int, rngs: nnx.Rngs):
        self.image = ClipResNet(depths=depths, width=width, norm="batch", rngs=rngs)
        self.head = nnx.Linear(self.image.channels["res5"], outputs, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """f32 [B, size, size, 3], normalised -> logits f32 [B, outputs]."""
        features = self.image(images, train=train)["res5"]
        return self.head(jnp.mean(features, axis=(1, 2)))


def _unit(vectors: Array) -> Array:
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(squares + 1e-12)
