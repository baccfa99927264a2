"""LMSeg: one segmentation model whose label space is language."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from lmseg_jax.models.category_decoder import CategoryDecoder
from lmseg_jax.models.heads import HEADS, foreign_to_background
from lmseg_jax.models.layers import MLP, LayerNorm, torch_linear
from lmseg_jax.models.pixel_decoder import PIXEL_DECODERS
from lmseg_jax.models.prompts import Prompt
from lmseg_jax.models.resnet import ClipResNet, ResNet
from lmseg_jax.models.text_encoder import TextEncoder

BACKBONES = {"clip_resnet": ClipResNet, "resnet": ResNet}
STRIDES = {"res3": 8, "res4": 16, "res5": 32, "pixel8": 8, "pixel16": 16}  # of the memory
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of arithmetic; parameters are f32
REMAT = {"none": False, "blocks": True}  # whether blocks and layers are computed twice, not kept
MULTIPLE = 32  # of height and width of every image the network sees
TEXT_PARTS = ("text_encoder", "prompt", "adapter", "adapter_norm")  # only `encode_text` uses them

# Mean and standard deviation that images are normalised with, 0..255 RGB
PIXELS = {
    "clip": ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


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

    Heads other than "text" know their classes by number: such a model has neither text tower nor
    prompt nor adapter.

    Args:
      backbone: maps images [B, H, W, 3] to a dict res2..res5 in their dtype and has `channels`.
      config: `config.model` of a run.
      names: number of names of each dataset, background included and last; for heads other than
        "text".
      union: i32 [M, K], number of each class's name among all different ones; for
        "manual_taxonomy".
    """

    def __init__(
        self,
        backbone: nnx.Module,
        config: ConfigDict,
        *,
        names: Sequence[int] = (),
        union: np.ndarray | None = None,
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        decoder, pixels, text = config.decoder, config.pixel_decoder, config.text
        self.pixel_decoder = known(PIXEL_DECODERS, pixels.name, "pixel decoder")(
            backbone.channels,
            width=pixels.width,
            groups=pixels.groups,
            mask_width=pixels.mask_width,
            rngs=rngs,
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
            start=decoder.queries,
            project=decoder.project,
            norm_between=decoder.norm_between,
            remat=known(REMAT, config.remat, "remat"),
            rngs=rngs,
        )
        mask_width = pixels.mask_width or pixels.width
        self.mask_head = MLP((config.width,) * 3 + (mask_width,), rngs=rngs)
        head = known(HEADS, config.head, "head")
        self.reads_text = config.head == "text"
        if self.reads_text:
            self.head = head(
                temperature=config.temperature,
                similarity=config.similarity,
                learned=config.temperature_learned,
            )
            self.prompt = Prompt(text.prompt, text.width, std=text.prompt_std, rngs=rngs)
            self.text_encoder = TextEncoder(
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                embedding=text.embedding,
                rngs=rngs,
            )
            self.adapter = torch_linear(text.embedding, config.width, rngs=rngs)
        elif config.head == "manual_taxonomy":
            self.head = head(config.width, names=names, union=union, rngs=rngs)
        else:
            self.head = head(config.width, names=names, rngs=rngs)
        self.adapter_norm = (
            LayerNorm(text.embedding, epsilon=1e-5, rngs=rngs) if config.adapter_norm else None
        )
        self.query_mlp = MLP((config.width,) * 4, rngs=rngs) if config.query_mlp else None
        self.unrestricted = config.head == "manual_taxonomy" and not config.manual.restrict
        self.mean, self.std = known(PIXELS, config.pixels, "pixels")
        self.dtype = known(DTYPES, config.dtype, "dtype")
        self.memory = decoder.memory
        self.padding_seen = decoder.padding == "seen"

    def encode_text(self, tokens: Array, index: Array, valid: Array) -> dict[str, Array]:
        """Embeds every distinct name once and deals the rows out to the datasets.

        Args:
          tokens: i32 [N, S], each name's tokens and its end token (no start token).
          index: i32 [M, K], row of `tokens` for each class of each dataset, background last.
          valid: bool [M, K].

        Returns:
          Text: `embeddings` f32 [M, K, D], adapted, not normalised, D = 0 if the head reads no
          text; `valid`.
        """
        if not self.reads_text:
            return {"embeddings": jnp.zeros((*valid.shape, 0)), "valid": valid}
        context = self.prompt.context[...].astype(self.dtype)
        names = self.text_encoder.encode_prompted(context, tokens)
        if self.adapter_norm is not None:
            names = self.adapter_norm(names)
        return {"embeddings": self.adapter(names).astype(jnp.float32)[index], "valid": valid}

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
          sigmoid; the last layer is the answer, the others are supervised too. Head
          "manual_taxonomy" has one more class, "none of these", unless `last` is asked for and
          `model.manual.restrict` is off.
        """
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (self.mean, self.std))
        x = (images.astype(jnp.float32) - mean) / std
        x = jnp.where(valid[..., None], x, 0).astype(self.dtype)
        features = self.backbone(x)
        features |= self.pixel_decoder(features)
        return self.answer(features, text, dataset, valid=valid, last=last, rngs=rngs)

    def answer(
        self,
        features: dict[str, Array],
        text: dict[str, Array],
        dataset: Array,
        *,
        valid: Array,
        last: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, Array]:
        """Predictions from the levels of backbone and pixel decoder; the rest as in a call."""
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
        masks = jnp.einsum(
            "lbqc,bhwc->blqhw",  # layers first would write every mask transposed
            self.mask_head(queries),
            features["pixel4"],
            preferred_element_type=jnp.float32,
        ).swapaxes(0, 1)
        if self.query_mlp is not None:
            queries = self.query_mlp(queries)
        logits = self.head(queries.astype(jnp.float32), text, dataset)
        if last and self.unrestricted:
            logits = foreign_to_background(logits, text["valid"][dataset])
        return {"logits": logits, "masks": masks}


def build(
    config: ConfigDict,
    *,
    names: Sequence[int] = (),
    union: np.ndarray | None = None,
    rngs: nnx.Rngs,
) -> LMSeg:
    """The model that `config.model` describes, with random weights; see `LMSeg` for `names`."""
    resnet = config.resnet
    backbone = known(BACKBONES, config.backbone, "backbone")(
        depths=tuple(resnet.depths),
        width=resnet.width,
        norm=resnet.norm,
        affine=resnet.affine,
        remat=known(REMAT, config.remat, "remat"),
        rngs=rngs,
    )
    return LMSeg(backbone, config, names=names, union=union, rngs=rngs)
