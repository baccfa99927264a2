"""LMSeg: one segmentation model whose label space is language."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from lmseg_jax.models.category_decoder import CategoryDecoder
from lmseg_jax.models.heads import HEADS
from lmseg_jax.models.layers import MLP, torch_linear
from lmseg_jax.models.pixel_decoder import PIXEL_DECODERS
from lmseg_jax.models.prompts import Prompt
from lmseg_jax.models.resnet import ClipResNet
from lmseg_jax.models.text_encoder import TextEncoder

BACKBONES = {"clip_resnet": ClipResNet}
STRIDES = {"res3": 8, "res4": 16, "res5": 32, "pixel8": 8, "pixel16": 16}  # of the memory
MULTIPLE = 32  # of height and width of every image the network sees

# CLIP's normalisation, 0..255 RGB
MEAN = (122.7709383, 116.7460125, 104.09373615)
STD = (68.5005327, 66.6321579, 70.32316305)


def known(table: dict, key: str, what: str):
    """table[key], or an error that lists what there is."""
    if key not in table:
        raise ValueError(f"{what} {key!r} is not one of {sorted(table)}")
    return table[key]


def any_valid(valid: Array, stride: int) -> Array:
    """bool [B, H, W] -> [B, H / stride, W / stride], True where a cell holds one valid pixel."""
    b, h, w = valid.shape
    cells = valid.reshape(b, h // stride, stride, w // stride, stride)
    return jnp.any(cells, axis=(2, 4))


class LMSeg(nnx.Module):
    """Backbone, pixel decoder, category-guided decoder, masks and text-aligned classes.

    Args:
      backbone: maps f32 images [B, H, W, 3] to a dict res2..res5 and has `channels`.
      config: `config.model` of a run.
    """

    def __init__(self, backbone: nnx.Module, config: ConfigDict, *, rngs: nnx.Rngs):
        self.backbone = backbone
        decoder, pixels, text = config.decoder, config.pixel_decoder, config.text
        self.pixel_decoder = known(PIXEL_DECODERS, pixels.name, "pixel decoder")(
            backbone.channels, width=pixels.width, groups=pixels.groups, rngs=rngs
        )
        known(STRIDES, decoder.memory, "decoder memory")
        self.decoder = CategoryDecoder(
            backbone.channels.get(decoder.memory, pixels.width),
            config.width,
            queries=config.queries,
            layers=decoder.layers,
            heads=decoder.heads,
            feedforward=decoder.feedforward,
            dropout=decoder.dropout,
            order=decoder.order,
            rngs=rngs,
        )
        self.mask_head = MLP((config.width,) * 3 + (pixels.width,), rngs=rngs)
        self.head = known(HEADS, config.head, "head")(temperature=config.temperature)
        self.prompt = Prompt(text.prompt, text.width, std=text.prompt_std, rngs=rngs)
        self.text_encoder = TextEncoder(
            width=text.width,
            layers=text.layers,
            heads=text.heads,
            embedding=text.embedding,
            rngs=rngs,
        )
        self.adapter = torch_linear(text.embedding, config.width, rngs=rngs)
        self.memory = decoder.memory
        self.padding_seen = decoder.padding == "seen"

    def encode_text(self, tokens: Array, index: Array, valid: Array) -> dict[str, Array]:
        """Embeds every distinct name once and deals the rows out to the datasets.

        Args:
          tokens: i32 [N, S], each name's tokens and its end token (no start token).
          index: i32 [M, K], row of `tokens` for each class of each dataset, background last.
          valid: bool [M, K].

        Returns:
          Text: `embeddings` f32 [M, K, D], adapted, not normalised; `valid`.
        """
        names = self.text_encoder.encode_prompted(self.prompt.context[...], tokens)
        return {"embeddings": self.adapter(names)[index], "valid": valid}

    def __call__(
        self,
        images: Array,
        text: dict[str, Array],
        dataset: Array,
        *,
        valid: Array,
        last: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Array]:
        """Segments images in the taxonomy of each one's dataset.

        Args:
          images: uint8 [B, H, W, 3], RGB; H and W are multiples of 32.
          text: from `encode_text`.
          dataset: i32 [B], row of `text` asked of each image.
          valid: bool [B, H, W], False where the image is padding.
          last: keep the last decoder layer only (L = 1).
          rngs: stream `dropout`; None means evaluation.

        Returns:
          Predictions: `logits` f32 [L, B, Q, K], `masks` f32 [L, B, Q, H/4, W/4] before the
          sigmoid; the last layer is the answer, the others are supervised too.
        """
        x = (images.astype(jnp.float32) - jnp.asarray(MEAN)[None, None, None]) / jnp.asarray(STD)[
            None, None, None
        ]
        x = jnp.where(valid[..., None], x, 0)
        features = self.backbone(x)
        features |= self.pixel_decoder(features)
        seen = jnp.ones_like(valid) if self.padding_seen else valid
        queries = self.decoder(
            features[self.memory],
            any_valid(seen, STRIDES[self.memory]),
            text=text["embeddings"][dataset],
            text_valid=text["valid"][dataset],
            rngs=rngs,
        )  # [L, B, Q, D]
        if last:
            queries = queries[-1:]
        masks = jnp.einsum("lbqc,bhwc->lbqhw", self.mask_head(queries), features["pixel4"])
        return {"logits": self.head(queries, text, dataset), "masks": masks}


def build(config: ConfigDict, *, rngs: nnx.Rngs) -> LMSeg:
    """The model that `config.model` describes, with random weights."""
    resnet = config.resnet
    backbone = known(BACKBONES, config.backbone, "backbone")(
        depths=tuple(resnet.depths), width=resnet.width, norm=resnet.norm, rngs=rngs
    )
    return LMSeg(backbone, config, rngs=rngs)
