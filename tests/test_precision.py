"""Arithmetic in bfloat16: which values have which dtype, and that training goes the same way."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmseg_jax import flops, losses, sharding, state
from lmseg_jax.step import run_update
from tests.tiny import batch, begin, tiny_config, vocabulary

UPDATES = 50
BUCKET = batch(0, dataset=0, images=2, size=(32, 32))


def config_of(dtype):
    config = tiny_config()
    config.model.dtype = dtype
    config.batching.batch = 2
    config.model.decoder.layers = 1
    config.loss.resolution = "quarter"
    config.optimizer.steps, config.optimizer.rate = 1000, 1e-4
    return config


def operands(jaxpr, *names):
    """(primitive, dtypes of its operands) of every equation with one of these names."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            yield equation.primitive.name, {str(x.aval.dtype) for x in equation.invars}
        for inner in flops.inside(equation.params):
            yield from operands(inner, *names)


def traced(dtype):
    """Jaxpr of text and network, and the dtypes of what they return."""
    config, words = config_of(dtype), vocabulary()
    graphdef = state.graph(config.model)
    weights = jax.eval_shape(lambda: state.weights(config.model, 0))

    def forward(params, frozen):
        model = state.merge(graphdef, params, frozen)
        text = model.encode_text(words["tokens"], words["index"], words["valid"])
        seen = BUCKET["segments"] != -2
        found = model(jnp.asarray(BUCKET["image"]), text, BUCKET["dataset"], valid=seen)
        return found | {"text": text["embeddings"]}

    found = jax.eval_shape(forward, *weights)
    return jax.make_jaxpr(forward)(*weights).jaxpr, found


def test_products_are_in_bfloat16_and_answers_in_float32():
    jaxpr, found = traced("bfloat16")
    assert {key: value.dtype for key, value in found.items()} == dict.fromkeys(
        ("logits", "masks", "text"), jnp.float32
    )
    products = list(operands(jaxpr, "dot_general", "conv_general_dilated"))
    exact = [name for name, dtypes in products if dtypes != {"bfloat16"}]
    assert exact == ["dot_general"]  # the similarities of queries and names
    softmaxes = list(operands(jaxpr, "exp"))
    assert softmaxes and all(dtypes == {"float32"} for _, dtypes in softmaxes)


def test_nothing_is_in_bfloat16_unless_asked_for():
    jaxpr, _ = traced("float32")
    assert "bf16" not in str(jaxpr)


@pytest.mark.parametrize(("resolution", "where"), [("full", "host"), ("quarter", "device")])
def test_losses_matching_and_their_gradients_take_the_networks_answers_in_float32(
    resolution, where
):
    config, words = config_of("bfloat16"), vocabulary()
    config.loss.resolution, config.matcher.where = resolution, where
    _, found = traced("bfloat16")
    predictions = {key: found[key] for key in ("logits", "masks")}  # as the model gives them

    def total(predictions):
        return losses.total_loss(
            predictions,
            BUCKET,
            losses.denominators(BUCKET["classes"], queries=config.model.queries, no_object=0.1),
            valid=words["valid"],
            loss=config.loss,
            matching=config.matcher,
        )

    jaxpr = str(jax.make_jaxpr(jax.value_and_grad(total, has_aux=True))(predictions))
    assert set(re.findall(r"\b(bf16|f\d+)\[", jaxpr)) == {"f32"}
    assert ("pure_callback" in jaxpr) == (where == "host")


@pytest.fixture(scope="module")
def runs():
    """Loss of each update and the last state, by dtype."""

    def run(dtype):
        config = config_of(dtype)
        mesh = sharding.make_mesh(1, 1, multiple=2)
        step, now = begin(config, mesh)
        path = []
        for _ in range(UPDATES):
            now, metrics = run_update(step, now, [BUCKET], mesh=mesh, seed=0)
            path.append(float(metrics["loss"]))
        return np.array(path), now

    return {dtype: run(dtype) for dtype in ("float32", "bfloat16")}


def test_the_mean_loss_of_fifty_updates_in_bfloat16_is_that_of_float32(runs):
    exact, rounded = runs["float32"][0], runs["bfloat16"][0]
    assert exact[-1] < 0.9 * exact[0]
    np.testing.assert_allclose(rounded[0], exact[0], rtol=0.005)
    # of all updates: single ones drift apart, as a match that flips early changes what follows
    np.testing.assert_allclose(rounded.mean(), exact.mean(), rtol=0.02)
    assert not np.array_equal(rounded, exact)


def test_parameters_and_moments_stay_in_float32(runs):
    last = runs["bfloat16"][1]
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(last)}
    assert kinds == {"float32", "int32"}  # int32 counts updates
