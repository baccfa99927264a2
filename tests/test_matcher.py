import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lmseg_jax import matcher, sharding
from lmseg_jax.matcher import TOO_EXPENSIVE, assign


def hard_costs(seed, *, problems, queries=9, targets=6, broken=True):
    """Targets compete for the same queries; with ties, NaN, inf and images without targets."""
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(1, problems, queries, targets)) + 3 * rng.normal(
        size=(1, problems, queries, 1)
    )
    cost[:, ::5] = np.round(cost[:, ::5])
    if broken:
        cost[rng.random(cost.shape) < 0.03] = np.nan
        cost[rng.random(cost.shape) < 0.03] = np.inf
        cost[rng.random(cost.shape) < 0.01] = -np.inf
    return cost.astype(np.float32), rng.integers(0, targets + 1, problems).astype(np.int32)


def replaced(cost):
    return np.nan_to_num(cost, nan=TOO_EXPENSIVE, posinf=TOO_EXPENSIVE, neginf=-TOO_EXPENSIVE)


def check_optimal(cost, count, query):
    for image, real in enumerate(count):
        plain = replaced(cost[0, image, :, :real]).astype(np.float64)
        rows, columns = linear_sum_assignment(plain)
        chosen = query[0, image, :real]
        assert len(set(chosen.tolist())) == real
        np.testing.assert_allclose(
            plain[chosen, np.arange(real)].sum(), plain[rows, columns].sum(), rtol=0, atol=1e-3
        )
        assert (query[0, image, real:] == 0).all()


def test_a_thousand_hard_cases_equal_scipy():
    cost, count = hard_costs(0, problems=1000)
    check_optimal(cost, count, np.asarray(assign(cost, count, where="host")))


def test_the_device_finds_the_same_optimum():
    cost, count = hard_costs(1, problems=300, broken=False)  # float32 sums bear no 1e6
    check_optimal(
        cost, count, np.asarray(jax.jit(lambda c, n: assign(c, n, where="device"))(cost, count))
    )


def test_each_device_solves_its_own_images(monkeypatch):
    mesh = sharding.make_mesh(4, 2, multiple=8)
    cost, count = hard_costs(2, problems=16)
    solve, received = matcher.solve_on_host, []

    def recorded(cost, count):
        received.append((cost.shape, count.shape))
        return solve(cost, count)

    monkeypatch.setattr(matcher, "solve_on_host", recorded)
    query = jax.jit(lambda c, n: assign(c, n, where="host", mesh=mesh))(cost, count)
    check_optimal(cost, count, np.asarray(query))
    assert received == [((1, 2, 9, 6), (2,))] * 8  # 16 images on 8 devices


def test_no_gradient_passes():
    cost, count = hard_costs(3, problems=4)
    cost = replaced(cost)

    def total(cost):
        query = assign(cost, count, where="host")
        return jnp.sum(cost * 0) + jnp.sum(query * 1.0)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(cost)), 0)


def test_more_targets_than_queries_is_an_error():
    with pytest.raises(ValueError, match="5 targets cannot share 4 queries"):
        assign(jnp.zeros((1, 1, 4, 5)), jnp.array([5]), where="host")
