"""Both forms of the ResNet: sizes, parameter counts, and each norm against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.norms import BatchNorm, Constant, FrozenNorm, GroupNorm
from lmseg_jax.models.resnet import AttentionPool, ClipResNet, ResNet
from lmseg_jax.step import KEEP_BARRIERS


def count(model, kind):
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, kind)))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def test_the_paper_size_has_the_published_number_of_parameters():
    model = nnx.eval_shape(lambda: ClipResNet(rngs=nnx.Rngs(0)))
    assert count(model, nnx.Param) == 23_474_016
    assert count(model, Constant) == 2 * 53_248  # scale and bias, mean and variance
    assert model.channels == {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (224, 224, [(56, 56), (28, 28), (14, 14), (7, 7)]),
        (512, 512, [(128, 128), (64, 64), (32, 32), (16, 16)]),
        (250, 333, [(62, 83), (31, 41), (15, 20), (7, 10)]),  # first half rounds up, later down
    ],
)
def test_feature_sizes(height, width, sizes):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def features(image):
        return ClipResNet(depths=(1, 1, 1, 1), width=4, rngs=nnx.Rngs(0))(image)

    shapes = jax.eval_shape(features, image)
    assert [shapes[f"res{i}"].shape[1:3] for i in range(2, 6)] == sizes


def test_the_imagenet_form_has_torchvisions_parameters():
    # torchvision's resnet50 has 25,557,032; its classifier 2048 x 1000 + 1000 of them
    trunk = 25_557_032 - 2_049_000
    # norms: 64; then blocks x (planes, planes, 4 planes) and one shortcut of 4 planes a stage
    norms = 64 + sum(n * 6 * p + 4 * p for n, p in ((3, 64), (4, 128), (6, 256), (3, 512)))
    model = nnx.eval_shape(lambda: ResNet(rngs=nnx.Rngs(0)))
    assert norms == 26_560
    assert count(model, nnx.Param) == trunk - 2 * norms == 23_454_912
    assert count(model, Constant) == 4 * norms
    assert model.channels == {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
    affine = nnx.eval_shape(lambda: ResNet(affine=True, rngs=nnx.Rngs(0)))
    assert count(affine, nnx.Param) == trunk
    assert count(affine, Constant) == 2 * norms


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (224, 224, [(56, 56), (28, 28), (14, 14), (7, 7)]),
        (250, 333, [(63, 84), (32, 42), (16, 21), (8, 11)]),  # every stride rounds up
    ],
)
def test_feature_sizes_of_the_imagenet_form(height, width, sizes):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def features(image):
        return ResNet(depths=(1, 1, 1, 1), width=4, rngs=nnx.Rngs(0))(image)

    shapes = jax.eval_shape(features, image)
    assert [shapes[f"res{i}"].shape[1:3] for i in range(2, 6)] == sizes


def test_the_imagenet_stem_and_a_strided_block_equal_sums_over_windows():
    rng = np.random.default_rng(0)
    model = ResNet(depths=(1, 1, 1, 1), width=2, norm="frozen", rngs=nnx.Rngs(0))
    image = rng.normal(size=(1, 9, 8, 3)).astype(np.float32)

    def convolve(x, kernel, *, stride, padding):
        k = kernel.shape[0]
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        rows, columns = ((n - k) // stride + 1 for n in x.shape[:2])
        at = [np.s_[i * stride : i * stride + k] for i in range(max(rows, columns))]
        return np.array(
            [
                [np.einsum("hwc,hwco->o", x[at[i], at[j]], kernel) for j in range(columns)]
                for i in range(rows)
            ]
        )

    def arrays(*layers):
        return [np.asarray(layer.kernel[...]) for layer in layers]

    one = 1 / np.sqrt(1 + 1e-5)  # a new frozen norm
    (kernel,) = arrays(model.stem.conv)
    stem = np.maximum(convolve(image[0], kernel, stride=2, padding=3) * one, 0)  # [5, 4, 2]
    padded = np.pad(stem, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.array(
        [[padded[i : i + 3, j : j + 3].max((0, 1)) for j in (0, 2)] for i in (0, 2, 4)]
    )
    np.testing.assert_allclose(model.stem(image)[0], pooled, atol=1e-5)

    block = model.stages[1][0]  # 8 -> 4 -> 4 -> 16 channels, stride 2
    x = rng.normal(size=(5, 4, 8)).astype(np.float32)
    first, second, third, shortcut = arrays(block.conv1, block.conv2, block.conv3, block.shortcut)
    inner = np.maximum(x @ first * one, 0)
    inner = np.maximum(convolve(inner, second, stride=2, padding=1) * one, 0)  # [3, 2, 4]
    expected = np.maximum(inner @ third * one + x[::2, ::2] @ shortcut * one, 0)
    np.testing.assert_allclose(block(x[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["frozen", "group", "batch"])
def test_every_norm_gives_the_channels_it_promises(norm):
    def make():
        return ClipResNet(depths=(1, 2, 1, 1), width=4, norm=norm, rngs=nnx.Rngs(0))

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    outputs = jax.eval_shape(lambda image: make()(image), image)
    channels = {name: value.shape[-1] for name, value in outputs.items()}
    assert (
        channels
        == nnx.eval_shape(make).channels
        == {"res2": 16, "res3": 32, "res4": 64, "res5": 128}
    )


def test_an_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="frozen, group, batch"):
        ClipResNet(norm="layer", rngs=nnx.Rngs(0))


def test_the_folded_norm_equals_the_unfolded_formula():
    rng = np.random.default_rng(0)
    x, scale, bias, mean = rng.normal(size=(2, 3, 4, 5)), *rng.normal(size=(3, 5))
    var = rng.uniform(0.1, 2, 5)
    norm = FrozenNorm(5, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...] = scale, bias, mean, var
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(norm(x.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("affine", "parameters"), [(False, 0), (True, 10)])
def test_only_an_affine_frozen_norm_has_parameters(affine, parameters):
    assert count(FrozenNorm(5, affine=affine, rngs=nnx.Rngs(0)), nnx.Param) == parameters


def test_groups_have_zero_mean_and_unit_variance():
    rng = np.random.default_rng(0)
    x = (3 + 2 * rng.normal(size=(2, 4, 4, 6))).astype(np.float32)
    got = GroupNorm(6, groups=2, rngs=nnx.Rngs(0))(x)
    groups = x.reshape(2, 16, 2, 3)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    var = groups.var(axis=(1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        GroupNorm(6, groups=4, rngs=nnx.Rngs(0))


def test_batch_norm_uses_the_batch_in_training_and_its_averages_otherwise():
    rng = np.random.default_rng(0)
    x = (1 + 2 * rng.normal(size=(4, 3, 3, 2))).astype(np.float32)
    norm = BatchNorm(2, momentum=0.1, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(x), x, rtol=1e-4)  # averages begin at mean 0, variance 1
    flat = x.reshape(-1, 2)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(norm(x, train=True), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-4)


def test_attention_pool_of_equal_cells_ignores_their_number():
    pool = AttentionPool(2, 8, heads=2, output=3, rngs=nnx.Rngs(0))
    pool.positions[...] = np.zeros((5, 8))
    cell = np.random.default_rng(0).normal(size=8).astype(np.float32)
    features = np.broadcast_to(cell, (1, 2, 2, 8))
    kernel, bias = np.asarray(pool.value.kernel[...]), np.asarray(pool.value.bias[...])
    value = cell @ kernel + bias  # every token has this value, so any attention returns it
    expected = value @ np.asarray(pool.project.kernel[...]) + np.asarray(pool.project.bias[...])
    np.testing.assert_allclose(pool(features)[0], expected, rtol=1e-5, atol=1e-5)


def test_blocks_computed_twice_have_the_same_gradient_and_need_less_memory():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)

    def measured(remat):
        sizes = {"depths": (3, 1, 1, 1), "width": 8, "norm": "group"}
        graphdef, weights = nnx.split(ClipResNet(**sizes, remat=remat, rngs=nnx.Rngs(0)))

        def loss(weights):
            return jnp.mean(jnp.square(nnx.merge(graphdef, weights)(x)["res5"]))

        gradient = jax.jit(jax.grad(loss), compiler_options=KEEP_BARRIERS)
        program = gradient.lower(weights).compile()
        return program(weights), program.memory_analysis().temp_size_in_bytes

    (kept, more), (again, less) = measured(False), measured(True)
    assert less < 0.8 * more
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max())
