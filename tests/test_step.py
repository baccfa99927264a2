import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmseg_jax import sharding, state
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.step import gradient, make_step, run_update, sound
from tests.tiny import batch, begin, tiny_config, vocabulary


def make(devices):
    config = tiny_config()
    config.model.temperature_learned = True
    config.optimizer.steps, config.optimizer.rate = 1000, 0.03
    mesh = sharding.make_mesh(devices, 1, multiple=2)
    step, first = begin(config, mesh)
    return step, first, mesh


@pytest.fixture(scope="module")
def one():
    return make(1)


def rows(bucket, selected):
    return {key: value[selected] for key, value in bucket.items()}


BUCKETS = [batch(0, dataset=0, images=2), batch(1, dataset=1, images=2)]


def test_the_gradient_does_not_depend_on_how_the_update_is_cut(one):
    step, first, mesh = one
    whole = gradient(step, first, BUCKETS, mesh=mesh, seed=0)
    pieces = [rows(bucket, slice(i, i + 1)) for bucket in BUCKETS[::-1] for i in (1, 0)]
    cut = gradient(step, first, pieces, mesh=mesh, seed=0)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(whole["params"]))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def curve(data, fsdp):
    """Losses and gradient norms of three updates of eight images, and the state after them."""
    config = tiny_config()
    config.batching.batch = config.batching.multiple = 8
    config.model.decoder.layers, config.optimizer.rate = 1, 1e-3
    mesh = sharding.make_mesh(data, fsdp, multiple=8)
    step, now = begin(config, mesh)
    halves = [batch(seed, dataset=seed, images=4) for seed in (0, 1)]
    bucket = {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
    told = []
    for _ in range(3):
        now, metrics = run_update(step, now, [bucket], mesh=mesh, seed=0)
        told.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(told), now


@pytest.fixture(scope="module")
def curve_of_one():
    return curve(1, 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(2, 1), (2, 2), (8, 1), (4, 2), (2, 4)])
def test_a_mesh_learns_what_one_device_does_with_its_share_of_the_memory(
    curve_of_one, monkeypatch, data, fsdp
):
    monkeypatch.setattr(sharding, "SMALLEST", 2**10)  # else nothing of a tiny model is split
    told, now = curve(data, fsdp)
    np.testing.assert_allclose(told, curve_of_one, rtol=1e-5)
    leaves = jax.tree.leaves((now.params, now.optimizer))
    expected, whole = 0, sum(leaf.nbytes for leaf in leaves)
    for leaf in leaves:
        split = leaf.size >= 2**10 and any(side % fsdp == 0 for side in leaf.shape)
        expected += leaf.nbytes // (fsdp if split else 1)
    for device in now.step.sharding.device_set:
        shards = [s for leaf in leaves for s in leaf.addressable_shards if s.device == device]
        assert sum(shard.data.nbytes for shard in shards) == expected
    assert expected < 1.2 * whole / fsdp  # most of it is split


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_no_number_changes_nothing(one, where):
    step, first, mesh = one
    sums = gradient(step, first, BUCKETS, mesh=mesh, seed=0)
    if where == "loss":
        sums["parts"]["loss"] = jnp.float32(np.nan)
    else:
        sums["params"]["head"]["temperature"] = jnp.float32(np.inf)
    before = jax.device_get(first)
    after, metrics = step.update(jax.tree.map(lambda x: x.copy(), first), sums)
    assert not sound(metrics)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_update_trains_prompt_and_adapter_but_not_the_text_tower(one):
    step, first, mesh = one
    before = jax.device_get((first.params, first.frozen))
    copy = jax.tree.map(lambda x: x.copy(), first)
    after, metrics = run_update(step, copy, BUCKETS, mesh=mesh, seed=0)
    for path in (("prompt", "context"), ("adapter", "kernel"), ("decoder", "position")):
        old, new = before[0], after.params
        for key in path:
            old, new = old[key], new[key]
        assert np.abs(np.asarray(new) - old).max() > 0, path
    for a, b in zip(jax.tree.leaves(before[1]), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    groups = [float(value) for key, value in metrics.items() if key.startswith("gradient_norm/")]
    assert len(groups) == len(before[0]) and min(groups) > 0
    np.testing.assert_allclose(np.linalg.norm(groups), metrics["gradient_norm"], rtol=1e-5)
    assert sound(metrics)
    assert int(after.step) == 1


def test_a_learned_temperature_never_leaves_its_bounds_and_comes_back(one):
    step, first, mesh = one
    now, path = jax.tree.map(lambda x: x.copy(), first), []
    found = gradient(step, first, BUCKETS[:1], mesh=mesh, seed=0)
    for slope in [1.0] * 6 + [-1.0] * 60 + [1.0] * 20:  # of the loss by the temperature
        sums = jax.tree.map(jnp.zeros_like, found)
        sums["params"]["head"]["temperature"] = jnp.float32(slope)
        now, metrics = step.update(now, sums)
        assert float(metrics["temperature"]) == float(now.params["head"]["temperature"])
        path.append(float(metrics["temperature"]))
    assert path[0] == pytest.approx(0.07 - 0.03, abs=1e-3)
    assert min(path) == path[5] == np.float32(0.01)
    assert max(path) == path[65] == 1.0
    assert 0.01 < path[15] < 1 and path[85] < 0.95  # away from either bound within a few updates


def test_no_new_program_is_compiled_for_a_shape_seen_before(one):
    step, first, mesh = one
    gradient(step, first, BUCKETS, mesh=mesh, seed=0)
    before = step.programs()
    gradient(step, first, [BUCKETS[1], BUCKETS[0], BUCKETS[1]], mesh=mesh, seed=3)
    # the number of images of an update is fixed; here six make one more denominator program
    assert step.programs() - before <= 1
    gradient(step, first, BUCKETS[::-1], mesh=mesh, seed=4)
    assert step.programs() - before <= 1


@pytest.mark.parametrize("head", ["multi_head", "manual_taxonomy"])
def test_an_update_without_text_has_no_text_in_any_program(head):
    config = tiny_config()
    config.model.head, config.model.decoder.order = head, "visual"
    mesh = sharding.make_mesh(1, 1, multiple=2)
    optimizer, words = make_optimizer(config.optimizer), vocabulary()

    def begin():
        weights = state.weights(config.model, 0, vocabulary=words)
        return state.start(*weights, optimizer, average=False)

    first = jax.eval_shape(begin)
    step = make_step(
        config,
        state.graph(config.model, words),
        optimizer,
        vocabulary=words,
        mesh=mesh,
        shardings=sharding.state_shardings(first, mesh),
    )
    assert not {"text_encoder", "prompt", "adapter"} & {*first.params, *first.frozen}
    text = step.encode_text.eval_shape(first.params, first.frozen)
    assert text["embeddings"].shape == (2, 4, 0)
    totals = step.denominators.eval_shape(BUCKETS[0]["classes"])
    found = step.gradients.eval_shape(
        first.params, first.frozen, text, BUCKETS[0], totals, jax.random.key(0)
    )
    assert jax.tree.map(np.shape, found["params"]) == jax.tree.map(np.shape, first.params)
    sums = step.add.eval_shape(found, found)
    assert jax.tree.map(np.shape, sums) == jax.tree.map(np.shape, found)
    after, _ = step.update.eval_shape(first, sums)
    assert jax.tree.map(np.shape, after.params) == jax.tree.map(np.shape, first.params)


def test_frozen_and_trainable_leaves_join_again():
    params, frozen = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "c": 4}
    assert state.join(params, frozen) == {"a": {"x": 1, "y": 3}, "b": 2, "c": 4}
    assert state.count({"a": np.zeros((2, 3)), "b": np.zeros(4)}) == 10
