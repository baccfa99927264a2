import jax
import jax.numpy as jnp
import numpy as np

from lmseg_jax.models.heads import INVALID, TextHead, normalise


def test_logits_are_cosines_over_the_temperature():
    queries = jnp.array([[[[3.0, 4.0], [0.0, 2.0]]]])  # [L, B, Q, D]
    text = {
        "embeddings": jnp.array([[[10.0, 0.0], [0.0, 5.0], [1.0, 1.0]]]),
        "valid": jnp.array([[True, True, False]]),
    }
    logits = TextHead(temperature=0.1)(queries, text, jnp.array([0]))
    expected = [[[[6.0, 8.0, INVALID], [0.0, 10.0, INVALID]]]]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_normalising_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda x: normalise(x).sum())(jnp.zeros(3))
    assert np.isfinite(np.asarray(gradient)).all()
