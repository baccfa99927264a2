import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lmseg_jax.optimizer import clip_by_norm, decayed, make_optimizer, rate_factor, schedule


def settings(**changes):
    config = base.get_config().optimizer
    config.update(changes)
    return config


def test_the_poly_schedule_has_the_papers_values():
    rate = schedule(settings(steps=160_000))
    np.testing.assert_allclose(rate(0), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(80_000), 5.359e-5, rtol=1e-3)
    assert float(rate(160_000)) == 0


def test_warm_up_is_linear_and_cosine_ends_at_a_hundredth():
    rate = schedule(settings(steps=1000, schedule="cosine", warmup=10, rate=1.0))
    np.testing.assert_allclose(rate(4) / rate(10), 0.5, rtol=1e-2)
    np.testing.assert_allclose(rate(1000), 0.01, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("decoder", "layers", "0", "norms", "1", "scale"), False),
        (("backbone", "stages", "0", "0", "norm1", "bias"), False),
        (("decoder", "position"), False),
        (("prompt", "context"), False),
        (("decoder", "embedding"), False),
        (("adapter_norm", "scale"), False),
        (("head", "temperature"), False),
        (("query_mlp", "layers", "0", "kernel"), True),
        (("adapter", "bias"), True),
        (("adapter", "kernel"), True),
    ],
)
def test_norms_positions_and_prompts_are_not_decayed(path, expected):
    assert decayed(path) == expected


def test_the_backbone_learns_ten_times_slower():
    assert rate_factor(("backbone", "stem"), backbone_rate=0.1) == 0.1
    assert rate_factor(("adapter", "kernel"), backbone_rate=0.1) == 1.0


@pytest.mark.parametrize(("limit", "expected"), [(5.0, (3.0, 4.0)), (100.0, (30.0, 40.0))])
def test_gradients_are_scaled_to_the_limit_of_their_common_norm(limit, expected):
    gradients = {"adapter": jnp.array([30.0]), "backbone": jnp.array([40.0])}
    optimizer = clip_by_norm(limit)
    clipped, _ = optimizer.update(gradients, optimizer.init(gradients))
    np.testing.assert_allclose([clipped["adapter"][0], clipped["backbone"][0]], expected, rtol=1e-6)


def test_gradients_of_zero_stay_zero():
    gradients = {"adapter": jnp.zeros(3)}
    clipped, _ = clip_by_norm(0.01).update(gradients, optax.EmptyState())
    np.testing.assert_array_equal(clipped["adapter"], np.zeros(3))


def test_one_update_equals_adamw_by_hand():
    params = {
        "adapter": {"kernel": jnp.array([2.0]), "norm": jnp.array([2.0])},
        "backbone": {"kernel": jnp.array([2.0])},
    }
    gradients = {
        "adapter": {"kernel": jnp.array([30.0]), "norm": jnp.array([40.0])},
        "backbone": {"kernel": jnp.array([0.0])},
    }
    optimizer = make_optimizer(settings(rate=0.1, decay=0.5, clip=5.0, schedule="poly", steps=10))
    changes, _ = optimizer.update(gradients, optimizer.init(params), params)
    # the first Adam step is the sign of the gradient; decay adds 0.5 * 2 where it applies
    np.testing.assert_allclose(changes["adapter"]["kernel"], [-0.1 * (1 + 1)], rtol=1e-5)
    np.testing.assert_allclose(changes["adapter"]["norm"], [-0.1], rtol=1e-5)
    np.testing.assert_allclose(changes["backbone"]["kernel"], [-0.1 * 0.1 * 1], rtol=1e-5)
