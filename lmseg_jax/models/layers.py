"""Parts that several modules share: convolution, attention, positions, dropout, MLP, resizing."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

# uniform in +-sqrt(6 / (fan_in + fan_out)) and in +-sqrt(3 / fan_in)
xavier = initializers.variance_scaling(1.0, "fan_avg", "uniform")
caffe_xavier = initializers.variance_scaling(1.0, "fan_in", "uniform")


def _finished(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, on a CPU only when all of each has been computed.

    XLA's CPU compiler would otherwise compute them again in every transposed or shifted copy that a
    matrix product reads.
    """
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *x: jax.lax.optimization_barrier(x), default=lambda *x: x
    )


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


def _plain(x: Array, kernel: Array, stride: int) -> Array:
    around = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    x, g = _finished(x, g)
    (dx,) = jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](g)

    def by_convolution(x, g):
        return jax.vjp(lambda kernel: _plain(x, kernel, stride), kernel)[1](g)[0]

    def by_products(x, g):
        """One matrix product for each place of the kernel."""
        _, rows, columns, outputs = g.shape
        size = kernel.shape[0]
        around = (size // 2,) * 2
        x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
        g = g.reshape(-1, outputs)

        def place(top, left):
            seen = x[:, top : top + stride * rows : stride, left : left + stride * columns : stride]
            return seen.reshape(-1, x.shape[-1]).T @ g

        return jnp.stack([jnp.stack([place(i, j) for j in range(size)]) for i in range(size)])

    # XLA's CPU compiler is slow at this gradient; elsewhere the library's own convolution is best
    return dx, jax.lax.platform_dependent(x, g, cpu=by_products, default=by_convolution)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2,))
_convolve.defvjp(_convolve_forward, _convolve_backward)


def nearest_upsample(x: Array, height: int, width: int) -> Array:
    """Nearest neighbour, source index floor(target * in / out). x: [B, h, w, C] -> [B, H, W, C]."""
    _, h, w, _ = x.shape
    if (height, width) == (2 * h, 2 * w):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows = jnp.arange(height) * h // height
    columns = jnp.arange(width) * w // width
    return x[:, rows][:, :, columns]
