import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.layers import (
    Attention,
    Conv,
    Linear,
    _convolve,
    dropout,
    nearest_upsample,
    sine_positions,
)


def test_sine_positions_of_a_small_grid():
    # 2 rows: y = 1/2, 2/2 of 2 pi; 3 columns: x = 1/3, 2/3, 3/3 of 2 pi; 8 channels, 4 an axis
    encoding = np.asarray(sine_positions(2, 3, 8))
    y, x = 2 * np.pi * 1 / 2, 2 * np.pi * 2 / 3
    slow = 10_000.0**0.5
    expected = [np.sin(y), np.cos(y), np.sin(y / slow), np.cos(y / slow)]
    expected += [np.sin(x), np.cos(x), np.sin(x / slow), np.cos(x / slow)]
    np.testing.assert_allclose(encoding[0, 1], expected, atol=1e-5)


@pytest.fixture(scope="module")
def attention():
    return Attention(8, 2, dropout=0.5, rngs=nnx.Rngs(0))


def test_attention_equals_its_formula(attention):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, n, 8)).astype(np.float32) for n in (3, 5, 5))

    def linear(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    query, key, value = (
        linear(attention.query, q),
        linear(attention.key, k),
        linear(attention.value, v),
    )
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[0, :, head] @ key[0, :, head].T / 2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ value[0, :, head])
    expected = linear(attention.out, np.concatenate(heads, -1))
    np.testing.assert_allclose(attention(q, k, v)[0], expected, atol=1e-5)


def test_masked_keys_change_nothing(attention):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(1, 3, 8)), rng.normal(size=(1, 5, 8))
    valid = np.array([[True, True, False, True, False]])
    other = np.where(valid[..., None], k, 99.0)
    np.testing.assert_array_equal(
        attention(q, k, k, valid=valid), attention(q, other, other, valid=valid)
    )


def test_dropout_only_acts_with_a_random_stream():
    x = jnp.ones((2000,))
    assert dropout(x, 0.25, None) is x
    dropped = np.asarray(dropout(x, 0.25, nnx.Rngs(dropout=0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert abs((dropped == 0).mean() - 0.25) < 0.04


def test_nearest_upsampling_takes_the_floor():
    x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(nearest_upsample(x, 1, 5)[0, 0, :, 0], [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(nearest_upsample(x, 2, 6)[0, 1, :, 0], [0, 0, 1, 1, 2, 2])


def test_a_linear_layer_and_its_gradients_are_matrix_products():
    layer = Linear(3, 4, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(size=(2, 5, n)).astype(np.float32) for n in (3, 4))
    kernel, bias = rng.normal(size=(3, 4)).astype(np.float32), np.arange(4, dtype=np.float32)

    def loss(x, kernel, bias):
        model = nnx.merge(nnx.graphdef(layer), {"kernel": kernel, "bias": bias})
        return jnp.sum(model(x) * weights), model(x)

    (_, output), found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, bias)
    np.testing.assert_allclose(output, np.einsum("bni,io->bno", x, kernel) + bias, atol=1e-5)
    np.testing.assert_allclose(found[0], np.einsum("bno,io->bni", weights, kernel), atol=1e-5)
    np.testing.assert_allclose(found[1], np.einsum("bni,bno->io", x, weights), atol=1e-5)
    np.testing.assert_allclose(found[2], weights.sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("side", "stride", "size"), [(3, 1, (4, 5)), (3, 2, (6, 7)), (3, 2, (5, 4)), (7, 2, (6, 5))]
)
def test_a_convolution_and_its_gradients_equal_sums_over_the_window(side, stride, size):
    layer = Conv(2, 3, side, stride=stride, rngs=nnx.Rngs(0))
    edge = side // 2
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 2)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 2, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    weights = rng.normal(size=(2, rows, columns, 3)).astype(np.float32)

    def loss(x, kernel, bias):
        model = nnx.merge(nnx.graphdef(layer), {"kernel": kernel, "bias": bias})
        return jnp.sum(model(x) * weights), model(x)

    (_, output), found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, bias)
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    expected = np.zeros_like(output) + bias
    dx, dk = np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(rows):
        for j in range(columns):
            window = np.s_[:, i * stride : i * stride + side, j * stride : j * stride + side]
            expected[:, i, j] += np.einsum("bhwc,hwco->bo", padded[window], kernel)
            dx[window] += np.einsum("bo,hwco->bhwc", weights[:, i, j], kernel)
            dk += np.einsum("bo,bhwc->hwco", weights[:, i, j], padded[window])
    np.testing.assert_allclose(output, expected, atol=1e-4)
    np.testing.assert_allclose(found[0], dx[:, edge:-edge, edge:-edge], atol=1e-4)
    np.testing.assert_allclose(found[1], dk, atol=1e-4)
    np.testing.assert_allclose(found[2], weights.sum((0, 1, 2)), atol=1e-4)


@pytest.mark.parametrize(
    ("platform", "convolutions", "products"), [("cpu", 1, 9), ("cuda", 2, 0), ("tpu", 2, 0)]
)
def test_the_gradient_of_a_kernel_is_products_on_a_cpu_and_a_convolution_elsewhere(
    platform, convolutions, products
):
    def loss(kernel, x):
        return jnp.sum(_convolve(x, kernel, 1) ** 2)

    x = jax.ShapeDtypeStruct((2, 6, 5, 2), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 3), jnp.float32)
    traced = jax.jit(jax.grad(loss)).trace(kernel, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions  # one is the layer itself
    assert text.count("stablehlo.dot_general") == products  # one for each place of the kernel
