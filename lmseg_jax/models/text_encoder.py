"""CLIP's text transformer, and the same transformer behind a shared learnable prompt.

Source: Radford et al., 2021 (the tower); LMSeg Sec. 3.2 (the prompt); reference section 2.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lmseg_jax.models.layers import LayerNorm, Linear

EPSILON = 1e-5


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), the activation that OpenAI's weights were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _normal(std: float):
    return nnx.initializers.normal(std)


class TextBlock(nnx.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int, *, layers: int, rngs: nnx.Rngs):
        residual = _normal(width**-0.5 * (2 * layers) ** -0.5)
        self.heads = heads
        self.norm1 = LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
        self.qkv = Linear(width, 3 * width, kernel_init=_normal(width**-0.5), rngs=rngs)
        self.project = Linear(width, width, kernel_init=residual, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
        self.expand = Linear(width, 4 * width, kernel_init=_normal((2 * width) ** -0.5), rngs=rngs)
        self.contract = Linear(4 * width, width, kernel_init=residual, rngs=rngs)

    def __call__(
        self, tokens: Array, *, prefix: tuple[Array, Array] | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """One layer over N sequences.

        Args:
          tokens: [N, S, width].
          prefix: keys and values, each [P, heads, width / heads], of positions that stand before
            every sequence.

        Returns:
          [N, S, width], and this layer's own keys and values, each [N, S, heads, width / heads].
        """
        n, s, width = tokens.shape
        split = (n, s, self.heads, width // self.heads)
        query, key, value = jnp.split(self.qkv(self.norm1(tokens)), 3, axis=-1)
        query = query.reshape(split) * (width // self.heads) ** -0.5
        key, value = key.reshape(split), value.reshape(split)
        logits = jnp.einsum("nshd,nthd->nhst", query, key, preferred_element_type=jnp.float32)
        causal = jnp.tril(jnp.ones((1, 1, s, s), bool))
        logits = jnp.where(causal, logits, -jnp.inf)
        if prefix is None:
            weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
            attended = jnp.einsum("nhst,nthd->nshd", weights, value)
        else:
            p = prefix[0].shape[0]
            before = jnp.einsum(
                "nshd,phd->nhsp", query, prefix[0], preferred_element_type=jnp.float32
            )
            weights = jax.nn.softmax(jnp.concatenate([before, logits], axis=-1), axis=-1)
            weights = weights.astype(value.dtype)
            attended = jnp.einsum("nhsp,phd->nshd", weights[..., :p], prefix[1])
            attended += jnp.einsum("nhst,nthd->nshd", weights[..., p:], value)
        tokens = tokens + self.project(attended.reshape(n, s, width))
        inner = quick_gelu(self.expand(self.norm2(tokens)))
        return tokens + self.contract(inner), (key, value)


class TextEncoder(nnx.Module):
    """Class names to vectors of the joint image-text space.

    The last two ids of the vocabulary are start (SOT) and end (EOT) of text. A sequence is read
    at its first EOT, so whatever follows it is padding; attention is causal, so padding changes
    nothing.

    Args:
      vocabulary: number of token ids.
      context: longest sequence, SOT and EOT included.
      width: of tokens and hidden states.
      layers: number of blocks.
      heads: of each attention; CLIP has width / 64.
      embedding: width of the joint image-text space.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 49408,
        context: int = 77,
        width: int,
        layers: int,
        heads: int,
        embedding: int,
        rngs: nnx.Rngs,
    ):
        self.start, self.end, self.context = vocabulary - 2, vocabulary - 1, context
        self.tokens = nnx.Param(_normal(0.02)(rngs.params(), (vocabulary, width)))
        self.positions = nnx.Param(_normal(0.01)(rngs.params(), (context, width)))
        self.blocks = nnx.List(
            [TextBlock(width, heads, layers=layers, rngs=rngs) for _ in range(layers)]
        )
        self.norm = LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)
        self.projection = nnx.Param(_normal(width**-0.5)(rngs.params(), (width, embedding)))

    def encode(self, tokens: Array) -> Array:
        """Embeddings of whole sequences.

        Args:
          tokens: i32 [N, S], SOT, words, EOT, padding; S at most `context`.

        Returns:
          f32 [N, embedding], not normalised.
        """
        hidden = self._embed(tokens, first=0)
        for block in self.blocks:
            hidden, _ = block(hidden)
        return self._read(hidden, tokens)

    def encode_prompted(self, context: Array, tokens: Array) -> Array:
        """Embeddings of [SOT][context][name][EOT], with the shared part computed once.

        The same numbers as the plain tower over the whole sequences: attention is causal, so keys
        and values of SOT and context do not depend on the name that follows them.

        Args:
          context: [P, width], the prompt, in token-embedding space before positions; its dtype is
            that of all arithmetic.
          tokens: i32 [N, S], name tokens, EOT, padding; no SOT. 1 + P + S at most `context`.

        Returns:
          [N, embedding], not normalised. Gradients reach `context`.

        Raises:
          ValueError: if the sequences are longer than the tower's positions.
        """
        start = self.tokens[...][self.start][None]
        shared = jnp.concatenate([start.astype(context.dtype), context], axis=0)
        p = shared.shape[0]
        positions = self.positions[...][:p].astype(context.dtype)
        shared = (shared + positions)[None]  # [1, 1 + P, width]
        hidden = self._embed(tokens, first=p).astype(context.dtype)  # [N, S, width]
        for block in self.blocks:
            shared, (key, value) = block(shared)
            hidden, _ = block(hidden, prefix=(key[0], value[0]))
        return self._read(hidden, tokens)

    def _embed(self, tokens: Array, *, first: int) -> Array:
        """Token plus position embeddings, positions counted from `first`."""
        last = first + tokens.shape[1]
        if last > self.context:
            raise ValueError(f"sequences of {last} tokens; this tower has {self.context} positions")
        return self.tokens[...][tokens] + self.positions[...][None, first:last]

    def _read(self, hidden: Array, tokens: Array) -> Array:
        """The projected state at the first EOT of each sequence."""
        where = jnp.argmax(tokens == self.end, axis=1)
        state = jnp.take_along_axis(hidden, where[:, None, None], axis=1)[:, 0]
        return self.norm(state) @ self.projection[...].astype(state.dtype)
