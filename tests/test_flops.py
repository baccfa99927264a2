import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from lmseg_jax import flops, sharding
from lmseg_jax.models.layers import Conv

A = jax.ShapeDtypeStruct((7, 3, 4), jnp.float32)
B = jax.ShapeDtypeStruct((4, 5), jnp.float32)
PRODUCT = 2 * 3 * 4 * 5  # of one [3, 4] @ [4, 5]


def test_a_product_counts_two_for_each_multiply_add():
    assert flops.count(lambda a, b: jnp.einsum("nij,jk->nik", a, b), A, B) == 7 * PRODUCT


def test_a_loop_counts_as_often_as_it_runs():
    def looped(a, b):
        return jax.lax.map(jax.checkpoint(lambda x: x @ b), a)

    assert flops.count(looped, A, B) == 7 * PRODUCT


def test_a_loop_of_unknown_length_counts_once():
    def looped(a, b):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ b[:, :4], a[0])

    assert flops.count(looped, A, B) == 2 * 3 * 4 * 4


def test_what_no_result_needs_is_not_counted():
    def wasteful(a, b):
        jax.jit(lambda: a[0] @ b)()
        return a[0] @ b

    assert flops.count(wasteful, A, B) == PRODUCT


def test_a_condition_counts_its_dearest_branch():
    def either(a, b):
        twice = lambda: jnp.stack([a[0] @ b, a[1] @ b])  # noqa: E731
        return jax.lax.cond(b[0, 0] > 0, twice, lambda: jnp.stack([a[0] @ b] * 2))

    assert flops.count(either, A, B) == 2 * PRODUCT


def test_a_share_of_each_device_counts_on_all_of_them():
    mesh = sharding.make_mesh(2, 2, multiple=4)
    spec = PartitionSpec(sharding.AXES)
    shared = jax.shard_map(
        lambda x: jnp.einsum("ni,nj->nij", x, x), mesh=mesh, in_specs=spec, out_specs=spec
    )
    assert flops.count(shared, jax.ShapeDtypeStruct((8, 3), jnp.float32)) == 2 * 8 * 9


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_two_gradients_count_alike(stride):
    module = Conv(8, 16, 3, stride=stride, use_bias=False, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(module)

    def call(weights, x):
        return jnp.sum(jnp.square(nnx.merge(graph, weights)(x)))

    x = jax.ShapeDtypeStruct((2, 12, 20, 8), jnp.float32)
    once = 2 * 2 * (12 // stride) * (20 // stride) * 16 * 8 * 9
    assert flops.count(call, weights, x) == once
    assert flops.count(jax.grad(call, argnums=(0, 1)), weights, x) == 3 * once


def test_one_attention_of_three_linear_layers_by_hand():
    x = np.ones((1, 6, 8), np.float32)
    w = np.ones((8, 8), np.float32)

    def attend(x):
        scores = jnp.einsum("bqd,bkd->bqk", x @ w, x @ w)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores, axis=-1), x @ w)

    assert flops.count(attend, x) == 2 * (3 * 6 * 8 * 8 + 2 * 6 * 6 * 8)
