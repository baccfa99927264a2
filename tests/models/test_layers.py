import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models import layers
from lmseg_jax.models.layers import (
    Attention,
    Conv,
    Linear,
    dropout,
    max_pool,
    nearest_upsample,
    once,
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
    q, k = (rng.normal(size=(1, n, 8)).astype(np.float32) for n in (3, 5))
    valid = np.array([[True, True, False, True, False]])
    other = np.where(valid[..., None], k, np.float32(99))
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


@pytest.mark.parametrize(("few", "many"), [(512, 4096), (0, 4096), (0, 0)])
@pytest.mark.parametrize(
    ("side", "stride", "size"), [(3, 1, (4, 5)), (3, 2, (6, 7)), (3, 2, (5, 4)), (7, 2, (6, 5))]
)
def test_a_convolution_and_its_gradients_equal_sums_over_the_window(
    side, stride, size, few, many, monkeypatch
):
    monkeypatch.setattr(layers, "FEW", few)
    monkeypatch.setattr(layers, "MANY", many)
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


def lowered(function, platform, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "few", "convolutions", "products"),
    [("cpu", 0, 2, 9), ("cpu", 512, 0, 27), ("cuda", 512, 3, 0), ("tpu", 512, 3, 0)],
)
def test_a_cpu_takes_products_for_the_gradient_of_a_kernel_and_for_small_maps(
    platform, few, convolutions, products, monkeypatch
):
    monkeypatch.setattr(layers, "FEW", few)

    def loss(kernel, x):
        return jnp.sum(layers._convolve(x, kernel, 1) ** 2)

    x = jax.ShapeDtypeStruct((2, 6, 5, 2), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2, 3), jnp.float32)
    text = lowered(jax.grad(loss, argnums=(0, 1)), platform, kernel, x)
    # the layer, its gradient to the kernel and that to its input; one product a place of the kernel
    assert text.count("stablehlo.convolution") == convolutions
    assert text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_a_max_pool_and_its_gradient_equal_those_of_a_loop(size):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, *size, 3)).astype(np.float32)  # with many equal neighbours
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    weights = rng.normal(size=(2, rows, columns, 3)).astype(np.float32)
    found, back = jax.vjp(max_pool, jnp.asarray(x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected, dx = np.zeros_like(weights), np.zeros_like(padded)
    for b, i, j, c in np.ndindex(*weights.shape):
        window = padded[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = np.unravel_index(np.argmax(window), window.shape)  # the first of equal ones
        expected[b, i, j, c] = window[row, column]
        dx[b, 2 * i + row, 2 * j + column, c] += weights[b, i, j, c]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(back(weights)[0], dx[:, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize(("platform", "searches"), [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_accelerators_get_the_librarys_gradient_of_a_max_pool(platform, searches):
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(max_pool(x) ** 2))(x)

    text = lowered(gradient, platform, jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32))
    assert text.count("stablehlo.select_and_scatter") == searches


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 2), ("cuda", 0)])
def test_what_is_computed_once_is_so_in_both_directions_on_a_cpu(platform, barriers):
    def gradient(x):
        return jax.value_and_grad(lambda x: jnp.sum(once(x) ** 2))(x)

    x = jnp.arange(3.0)
    text = lowered(gradient, platform, x)
    assert text.count("stablehlo.optimization_barrier") == barriers
    np.testing.assert_array_equal(gradient(x)[1], 2 * x)
