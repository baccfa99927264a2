"""CLIP's text tower: counts, causality, and the shared prompt against the plain tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmseg_jax.models.text_encoder import TextEncoder, quick_gelu

VOCABULARY, START, END = 50, 48, 49
NAMES = np.array([[3, 4, 5, END], [7, END, END, END], [8, 9, END, END]], np.int32)


@pytest.fixture(scope="module")
def encoder():
    encoder = TextEncoder(
        vocabulary=VOCABULARY, context=20, width=8, layers=2, heads=2, embedding=6, rngs=nnx.Rngs(0)
    )
    # larger weights than at initialisation, so that attention matters
    return nnx.merge(*jax.tree.map(lambda leaf: 2 * leaf, nnx.split(encoder)))


def test_the_paper_size_has_the_published_number_of_parameters():
    model = nnx.eval_shape(
        lambda: TextEncoder(width=512, layers=12, heads=8, embedding=1024, rngs=nnx.Rngs(0))
    )
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == 63_690_240


def test_quick_gelu_by_hand():
    np.testing.assert_allclose(
        quick_gelu(jnp.array([0.0, 1.0])), [0.0, 1 / (1 + np.exp(-1.702))], rtol=1e-6
    )


def test_what_follows_the_first_end_changes_nothing(encoder):
    encode = jax.jit(encoder.encode)
    first = encode(np.array([[START, 3, 4, END, END, END]], np.int32))
    other = encode(np.array([[START, 3, 4, END, 0, END]], np.int32))
    short = encode(np.array([[START, 3, 4, END]], np.int32))
    np.testing.assert_allclose(other, first, atol=1e-6)
    np.testing.assert_allclose(short, first, atol=1e-6)


def test_a_word_before_the_end_changes_the_embedding(encoder):
    embeddings = jax.jit(encoder.encode)(
        np.array([[START, 3, 4, END], [START, 5, 4, END]], np.int32)
    )
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-2


def test_a_shared_prompt_equals_the_plain_tower_on_the_spliced_sequence(encoder):
    words = [11, 12, 13, 14, 15, 16, 17, 18]
    prompt = encoder.tokens[...][jnp.array(words)]
    spliced = np.concatenate(
        [np.tile(np.array([[START, *words]], np.int32), (len(NAMES), 1)), NAMES], axis=1
    )
    np.testing.assert_allclose(
        jax.jit(encoder.encode_prompted)(prompt, NAMES),
        jax.jit(encoder.encode)(spliced),
        rtol=1e-5,
        atol=1e-5,
    )


def test_gradients_reach_the_prompt_as_finite_differences_say(encoder):
    prompt = 0.3 * jax.random.normal(jax.random.key(1), (3, 8))
    direction = jax.random.normal(jax.random.key(2), (3, 8))

    @jax.jit
    def total(prompt):
        return jnp.sum(jnp.sin(encoder.encode_prompted(prompt, NAMES)))

    slope = float(jnp.sum(jax.jit(jax.grad(total))(prompt) * direction))
    step = 3e-3
    difference = (total(prompt + step * direction) - total(prompt - step * direction)) / (2 * step)
    assert abs(slope) > 0.1
    np.testing.assert_allclose(slope, difference, rtol=2e-2)


def test_a_sequence_beyond_the_positions_is_refused(encoder):
    with pytest.raises(ValueError, match="sequences of 22 tokens; this tower has 20 positions"):
        encoder.encode_prompted(jnp.zeros((17, 8)), NAMES)
