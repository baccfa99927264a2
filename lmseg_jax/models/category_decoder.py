"""Category-guided decoder (CGD): queries look at themselves, the image and the class names."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from lmseg_jax.models.layers import (
    Attention,
    LayerNorm,
    Linear,
    caffe_xavier,
    dropout,
    sine_positions,
    torch_linear,
    xavier,
)

ORDERS = {
    "visual-text": ("visual", "text"),
    "text-visual": ("text", "visual"),
    "visual": ("visual",),  # no category guidance: MaskFormer's decoder
}

QUERIES = ("zeros", "learned")  # what enters the first layer


class DecoderLayer(nnx.Module):
    """Self-attention, the cross-attentions of `order`, feed-forward; each with a norm after it.

    x = norm(x + dropout(attention(x))). Queries carry their learned position in every attention;
    image keys carry a sine position; the text has none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feedforward: int,
        dropout: float,
        order: str,
        rngs: nnx.Rngs,
    ):
        steps = ("self", *ORDERS[order])
        self.attentions = nnx.List(
            [Attention(width, heads, dropout=dropout, rngs=rngs) for _ in steps]
        )
        self.norms = nnx.List([LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in steps])
        self.expand = torch_linear(width, feedforward, kernel_init=xavier, rngs=rngs)
        self.contract = torch_linear(feedforward, width, kernel_init=xavier, rngs=rngs)
        self.feedforward_norm = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.steps = steps
        self.dropout = dropout

    def __call__(
        self,
        x: Array,
        position: Array,
        *,
        sources: dict[str, tuple[Array, Array, Array]],
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """x, position: [B, Q, D]; sources: (keys, values [B, S, D], valid [B, S]) by step name."""
        for step, attention, norm in zip(self.steps, self.attentions, self.norms, strict=True):
            queries = x + position
            keys, values, valid = sources[step] if step != "self" else (queries, x, None)
            change = attention(queries, keys, values, valid=valid, rngs=rngs)
            x = norm(x + dropout(change, self.dropout, rngs))
        change = dropout(nnx.relu(self.expand(x)), self.dropout, rngs)
        return self.feedforward_norm(x + dropout(self.contract(change), self.dropout, rngs))


class CategoryDecoder(nnx.Module):
    """Turns learned queries into segment embeddings, guided by the asked categories.

    Queries start at zero and have a learned position ("zeros"), or a learned embedding enters the
    first layer itself and nothing is added later ("learned", as in the authors' release).

    The heads get norm(x_l) of every layer l, the next layer gets x_l itself. With `norm_between`
    x_l is normed before either sees it, so heads get norm(norm(x_l)): what Hugging Face's
    MaskFormer computes where its decoder has `auxiliary_loss`. With `remat` a layer's inner values
    are computed again in the backward pass instead of being kept.

    Source: LMSeg Sec. 3.4; layers follow DETR's decoder as in MaskFormer (post-norm, one final norm
    shared by the outputs of all layers).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        queries: int,
        layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        order: str,
        start: str = "zeros",
        project: bool = True,
        norm_between: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if order not in ORDERS:
            raise ValueError(f"decoder order {order!r} is not one of {sorted(ORDERS)}")
        if start not in QUERIES:
            raise ValueError(f"decoder queries {start!r} are not one of {QUERIES}")
        if not project and channels != width:
            raise ValueError(
                f"a memory of {channels} channels needs a projection to {width};"
                " set model.decoder.project"
            )
        self.project = (
            Linear(channels, width, kernel_init=caffe_xavier, rngs=rngs) if project else None
        )
        self.norm_between, self.remat = norm_between, remat
        table = nnx.Param(initializers.normal(1.0)(rngs.params(), (queries, width)))
        if start == "learned":
            self.embedding = table
        else:
            self.position = table
        self.start = start
        self.layers = nnx.List(
            [
                DecoderLayer(
                    width, heads, feedforward=feedforward, dropout=dropout, order=order, rngs=rngs
                )
                for _ in range(layers)
            ]
        )
        self.norm = LayerNorm(width, epsilon=1e-5, rngs=rngs)

    def __call__(
        self,
        memory: Array,
        memory_valid: Array,
        *,
        text: Array,
        text_valid: Array,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """Segment embeddings after every layer.

        Args:
          memory: [B, h, w, C], image features; their dtype is that of all arithmetic.
          memory_valid: bool [B, h, w], False where a cell is padding only.
          text: [B, K, D], embeddings of the names asked for, background last.
          text_valid: bool [B, K].
          rngs: stream `dropout`; None means evaluation.

        Returns:
          [L, B, Q, D].
        """
        b, h, w, _ = memory.shape
        values = memory if self.project is None else self.project(memory)
        values = values.reshape(b, h * w, -1)
        positions = sine_positions(h, w, values.shape[-1]).astype(values.dtype)
        keys = values + positions.reshape(1, h * w, -1)
        text = text.astype(values.dtype)
        sources = {
            "visual": (keys, values, memory_valid.reshape(b, h * w)),
            "text": (text, text, text_valid),
        }
        table = self.embedding if self.start == "learned" else self.position
        table = jnp.broadcast_to(table[...].astype(values.dtype)[None], (b, *table.shape))
        zeros = jnp.zeros_like(table)
        x, position = (table, zeros) if self.start == "learned" else (zeros, table)
        outputs = []

        def run(layer, x, position, sources, rngs):
            return layer(x, position, sources=sources, rngs=rngs)

        run = nnx.remat(run) if self.remat else run
        for layer in self.layers:
            x = run(layer, x, position, sources, rngs)
            if self.norm_between:
                x = self.norm(x)
            outputs.append(self.norm(x))
        return jnp.stack(outputs)
