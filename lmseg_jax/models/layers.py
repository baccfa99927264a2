"""Parts that several modules share: convolution, pooling, attention, positions, MLP, resizing."""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

# uniform in +-sqrt(6 / (fan_in + fan_out)) and in +-sqrt(3 / fan_in)
xavier = initializers.variance_scaling(1.0, "fan_avg", "uniform")
caffe_xavier = initializers.variance_scaling(1.0, "fan_in", "uniform")

PLACES = ((1,), (2, 0))  # of even pixels, and of odd ones, in windows of 3 at stride 2
# Pixels of a map, over the images of a batch: in training a CPU convolves at most FEW by products,
# and from MANY on it computes the gradient of a kernel transposed.
FEW, MANY = 512, 4096


def _finished(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, on a CPU only when all of each has been computed.

    XLA's CPU compiler would otherwise compute them again in every transposed or shifted copy that a
    matrix product reads.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *x: jax.lax.optimization_barrier(x), default=lambda *x: x
    )


def once(x: Array) -> Array:
    """x itself, computed a single time on a CPU, and its gradient likewise: see `_finished`.

    For what several layers read, like the sum of a residual block: each of its readers, and of the
    readers of the next block's sum, would compute the whole chain again.
    """
    return _finished(x)[0]


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    x, g = _finished(x, g)
    # no reshape to a matrix: it would gather images from other devices
    leading = tuple(range(x.ndim - 1))
    return g @ kernel.T, jnp.tensordot(x, g, axes=(leading, leading))


_product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Linear):
    """Linear layer in the dtype of its input: dtype is chosen where images and words come in."""

    def __call__(self, x: Array) -> Array:
        """[..., inputs] -> [..., outputs]."""
        y = _product(x, self.kernel[...].astype(x.dtype))
        if self.bias is None:
            return y
        return y + self.bias[...].astype(x.dtype).reshape(*[1] * (y.ndim - 1), -1)


class LayerNorm(nnx.LayerNorm):
    """Normalises in f32, whatever the dtype of its input, and answers in that."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(x.dtype)


def torch_linear(inputs: int, outputs: int, *, kernel_init=None, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear layer whose kernel and bias start uniform in +-1/sqrt(inputs), as PyTorch's do."""
    bound = inputs**-0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Linear(inputs, outputs, kernel_init=kernel_init or uniform, bias_init=uniform, rngs=rngs)


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Zeroes values with probability `rate` and scales the rest; `rngs=None` means evaluation."""
    if rngs is None or rate == 0:
        return x
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def sine_positions(height: int, width: int, channels: int) -> Array:
    """Sine position encoding of a grid.

    Positions are 1-based, divided by the grid's size and scaled to 2 pi. The first half of the
    channels encodes rows, the second columns; sine and cosine alternate within a half, with
    wavelengths 10000^(2 floor(i/2) / (channels/2)).

    Args:
      height, width: of the grid.
      channels: of the encoding, a multiple of 4.

    Returns:
      f32 [height, width, channels], values in [-1, 1].

    Source: DETR (Carion et al., 2020), as MaskFormer configures it.
    """
    half = channels // 2
    wavelength = 10_000.0 ** (2 * (jnp.arange(half) // 2) / half)

    def encode(count):
        position = (jnp.arange(count) + 1) / (count + 1e-6) * 2 * jnp.pi
        angle = position[:, None] / wavelength[None, :]
        even = jnp.arange(half)[None, :] % 2 == 0
        return jnp.where(even, jnp.sin(angle), jnp.cos(angle))  # [count, half]

    rows = jnp.broadcast_to(encode(height)[:, None], (height, width, half))
    columns = jnp.broadcast_to(encode(width)[None, :], (height, width, half))
    return jnp.concatenate([rows, columns], axis=-1)


class Attention(nnx.Module):
    """Multi-head attention with dropout on the attention weights.

    out = W_o concat_h softmax(q_h k_h^T / sqrt(d)) v_h; keys that are not valid get weight zero.
    The softmax is in f32 whatever the dtype of the inputs.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, rngs: nnx.Rngs):
        # the three projections start as one matrix [width, 3 width] would
        fused = initializers.variance_scaling(0.5, "fan_avg", "uniform")
        self.query = Linear(width, width, kernel_init=fused, rngs=rngs)
        self.key = Linear(width, width, kernel_init=fused, rngs=rngs)
        self.value = Linear(width, width, kernel_init=fused, rngs=rngs)
        self.out = Linear(width, width, kernel_init=xavier, rngs=rngs)
        self.heads = heads
        self.dropout = dropout

    def __call__(
        self,
        queries: Array,
        keys: Array,
        values: Array,
        *,
        valid: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        """queries [B, Q, D], keys and values [B, S, D], valid bool [B, S] -> [B, Q, D]."""

        def split(x):
            return x.reshape(*x.shape[:2], self.heads, -1)  # [B, S, heads, D / heads]

        q, k, v = split(self.query(queries)), split(self.key(keys)), split(self.value(values))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = scores * q.shape[-1] ** -0.5
        if valid is not None:
            scores = jnp.where(valid[:, None, None, :], scores, -1e9)
        weights = dropout(jax.nn.softmax(scores, axis=-1), self.dropout, rngs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
        return self.out(mixed.reshape(queries.shape))


class MLP(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [torch_linear(a, b, rngs=rngs) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Conv(nnx.Conv):
    """Square convolution centred on each pixel, zeros around the image.

    Args:
      inputs, outputs: channels.
      size: of the kernel, odd; `kernel` is [size, size, inputs, outputs].
      stride: of the outputs in the input.
      options: of `nnx.Conv`.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, rngs: nnx.Rngs, **options
    ):
        padding = size // 2
        super().__init__(
            inputs, outputs, (size, size), strides=stride, padding=padding, rngs=rngs, **options
        )

    def __call__(self, x: Array) -> Array:
        """[B, H, W, inputs] -> [B, ceil(H / stride), ceil(W / stride), outputs]."""
        x = _convolve(x, self.kernel[...].astype(x.dtype), self.strides)
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)[None, None, None]


def _library(x: Array, kernel: Array, stride: int) -> Array:
    around = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _seen(x: Array, size: int, stride: int, *, fill: float = 0) -> Iterator[tuple[int, int, Array]]:
    """What each place (i, j) of a window sees of x, at all outputs: [B, h, w, inputs]."""
    around = (size // 2,) * 2
    rows, columns = (-(-side // stride) * stride for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=fill)
    for i, j in itertools.product(range(size), repeat=2):
        yield i, j, x[:, i : i + rows : stride, j : j + columns : stride]


def _products(x: Array, kernel: Array) -> Array:
    """A matrix product for each place of the kernel."""
    return sum(seen @ kernel[i, j] for i, j, seen in _seen(x, len(kernel), 1))


def _in_training(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution where its gradient is asked for, too; sizes are known there."""
    library = functools.partial(_library, stride=stride)
    if stride > 1 or math.prod(x.shape[:3]) > FEW:
        return library(x, kernel)
    # XLA's gradient to x writes the kernel transposed, which takes longer than a few pixels do
    return jax.lax.platform_dependent(x, kernel, cpu=_products, default=library)


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _in_training(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    x, g = _finished(x, g)
    (dx,) = jax.vjp(lambda x: _in_training(x, kernel, stride), x)[1](g)

    def by_convolution(x, g):
        return jax.vjp(lambda kernel: _library(x, kernel, stride), kernel)[1](g)[0]

    def by_products(x, g):
        """One matrix product for each place of the kernel."""
        g = g.reshape(-1, g.shape[-1])
        seen = [x.reshape(-1, x.shape[-1]) for _, _, x in _seen(x, len(kernel), stride)]
        if len(g) < MANY:
            return jnp.stack([x.T @ g for x in seen]).reshape(kernel.shape)
        (g,) = _finished(g.T)  # once, in place of x at every place
        places = _finished(*[g @ x for x in seen])
        return jnp.stack([place.T for place in places]).reshape(kernel.shape)

    # XLA's CPU compiler is slow at this gradient; elsewhere the library's own convolution is best
    return dx, jax.lax.platform_dependent(x, g, cpu=by_products, default=by_convolution)


_convolve = jax.custom_vjp(_library, nondiff_argnums=(2,))
_convolve.defvjp(_convolve_forward, _convolve_backward)


def _largest(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Largest of the 3x3 pixels around each second one.

    [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]. Of equal pixels the gradient goes to the
    first, row by row.
    """
    return _largest(x)


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = _largest(x)
    return y, (x, y)


def _max_pool_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, y = saved

    def by_place(x, y, g):
        """Sums over the windows that see a pixel, for each of the four kinds of pixels."""
        first = jnp.full(y.shape, 9, jnp.int8)  # place of the largest in its window
        for i, j, seen in reversed(list(_seen(x, 3, 2, fill=-jnp.inf))):
            first = jnp.where(seen == y, jnp.int8(3 * i + j), first)
        first, g = (jnp.pad(z, ((0, 0), (0, 1), (0, 1), (0, 0))) for z in _finished(first, g))

        def taken(i, j):
            """By the window in which a pixel of this kind has place (i, j)."""
            rows, columns = (slice(1, None) if place == 0 else slice(-1) for place in (i, j))
            return jnp.where(first[:, rows, columns] == 3 * i + j, g[:, rows, columns], 0)

        def kind(*parity):
            return sum(itertools.starmap(taken, itertools.product(*(PLACES[k] for k in parity))))

        dx = jnp.stack([jnp.stack([kind(i, 0), kind(i, 1)], 3) for i in range(2)], 2)
        dx = dx.reshape(len(x), 2 * y.shape[1], 2 * y.shape[2], -1)
        return dx[:, : x.shape[1], : x.shape[2]]

    def by_library(x, y, g):
        return jax.vjp(_largest, x)[1](g)[0]

    # XLA's CPU compiler looks for the largest pixel by a loop of scalars
    return (jax.lax.platform_dependent(x, y, g, cpu=by_place, default=by_library),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def nearest_upsample(x: Array, height: int, width: int) -> Array:
    """Nearest neighbour, source index floor(target * in / out). x: [B, h, w, C] -> [B, H, W, C]."""
    _, h, w, _ = x.shape
    if (height, width) == (2 * h, 2 * w):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows = jnp.arange(height) * h // height
    columns = jnp.arange(width) * w // width
    return x[:, rows][:, :, columns]
