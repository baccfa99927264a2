import asyncio
import resource
import sys
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmseg_jax import checkpoint, sharding
from lmseg_jax.errors import UserError


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


def make_state(scale=1.0):
    kernel = scale * np.arange(12, dtype=np.float32).reshape(4, 3)
    return {
        "step": jnp.int32(7),
        "params": {"layers": {0: {"kernel": jnp.asarray(kernel)}, 1: {"bias": jnp.zeros(3)}}},
        "frozen": {"scale": jnp.ones(5, jnp.bfloat16)},
        "opt_state": (Moments(jnp.int32(7), {"kernel": jnp.asarray(-kernel)}), ()),
        "images": 28,
    }


def abstract(state, mesh=None):
    where = sharding.replicated(mesh or sharding.make_mesh(1, 1, multiple=1))

    def describe(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(describe, state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = checkpoint.Checkpoints(folder, keep=2, every=5)
    for step in range(1, 16):
        checkpoints.save(step, make_state(step), {"seed": step})
    checkpoints.save(17, make_state(17), {"seed": 17}, force=True)
    checkpoints.close()
    return folder


@pytest.fixture
def checkpoints(folder):
    opened = checkpoint.Checkpoints(folder, keep=2, every=5)
    yield opened
    opened.close()


def test_a_folder_without_checkpoints_has_no_latest(tmp_path):
    opened = checkpoint.Checkpoints(tmp_path / "new", keep=1, every=1)
    assert opened.latest() is None
    assert checkpoint.latest(tmp_path / "new") is None
    opened.close()


def test_only_due_forced_and_newest_checkpoints_stay(folder, checkpoints):
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [15, 17]
    assert checkpoints.latest() == checkpoint.latest(folder) == 17


def test_a_step_that_is_there_is_not_written_again(checkpoints):
    assert not checkpoints.save(17, make_state(0), {}, force=True)
    assert checkpoints.read_run(17) == {"seed": 17}


def test_a_state_comes_back_with_its_bits_and_its_structure(checkpoints):
    state = make_state(15)
    restored = checkpoints.restore(15, abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for expected, found in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.asarray(found).dtype == np.asarray(expected).dtype


def test_a_state_lands_on_another_mesh(checkpoints):
    mesh = sharding.make_mesh(2, 4, multiple=8)
    restored = checkpoints.restore(17, abstract(make_state(), mesh))
    kernel = restored["params"]["layers"][0]["kernel"]
    assert kernel.sharding == sharding.replicated(mesh)
    np.testing.assert_array_equal(kernel, make_state(17)["params"]["layers"][0]["kernel"])


def test_facts_are_read_beside_the_state(folder, checkpoints):
    assert checkpoints.read_run(15) == {"seed": 15}
    assert checkpoint.read_run(folder) == {"seed": 17}


def test_donating_after_a_save_does_not_change_the_checkpoint(tmp_path):
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=1)
    array = jnp.full(100_000, 3.0)
    opened.save(1, {"x": array}, {})
    jax.jit(lambda x: x + 1, donate_argnums=0)(array).block_until_ready()
    restored = opened.restore(1, abstract({"x": jnp.zeros(100_000)}))
    opened.close()
    assert np.unique(restored["x"]).tolist() == [3.0]


def test_arrays_without_elements_come_back_empty(tmp_path):
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=1)
    state = {"params": {"prompt": jnp.zeros((0, 4)), "kernel": jnp.ones(2)}}
    opened.save(1, state, {})
    restored = opened.restore(1, abstract(state))
    opened.close()
    assert restored["params"]["prompt"].shape == (0, 4)
    weights = checkpoint.read_weights(tmp_path, names=("params",), expected=abstract(state))
    assert weights["params"]["prompt"].shape == (0, 4)


def test_another_shape_is_refused_with_the_path(checkpoints):
    state = abstract(make_state())
    state["params"]["layers"][0]["kernel"] = jax.ShapeDtypeStruct((4, 9), jnp.float32)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(17, state)
    message = str(caught.value)
    assert "a checkpoint of another model" in message
    assert "params/layers/0/kernel is float32 [4, 3] there, float32 [4, 9] in this run" in message


def test_another_tree_is_refused_with_the_path(checkpoints):
    fewer, more = abstract(make_state()), abstract(make_state())
    del fewer["params"]["layers"][1]
    with pytest.raises(UserError, match=r"layers/1/bias is float32 \[3\] there, nothing in"):
        checkpoints.restore(17, fewer)
    more["frozen"]["shift"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with pytest.raises(UserError, match=r"frozen/shift is nothing there, float32 \[5\] in"):
        checkpoints.restore(17, more)


def test_weights_are_read_without_the_rest(folder):
    weights = checkpoint.read_weights(folder)
    assert set(weights) == {"params", "frozen"}
    kernel = weights["params"]["layers"][0]["kernel"]
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, 17 * np.arange(12, dtype=np.float32).reshape(4, 3))
    older = checkpoint.read_weights(folder, step=15)["params"]["layers"][0]["kernel"]
    np.testing.assert_array_equal(older, 15 * np.arange(12, dtype=np.float32).reshape(4, 3))


def test_weights_of_another_model_are_refused(folder):
    expected = abstract(make_state())
    expected["frozen"]["scale"] = jax.ShapeDtypeStruct((6,), jnp.bfloat16)
    with pytest.raises(UserError, match=r"frozen/scale is bfloat16 \[5\] there, bfloat16 \[6\]"):
        checkpoint.read_weights(folder, expected=expected)


def test_a_folder_without_weights_is_named(tmp_path, folder):
    with pytest.raises(UserError, match="nowhere: no checkpoint there"):
        checkpoint.read_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint of update 3; the newest is 17"):
        checkpoint.read_weights(folder, step=3)


def test_what_a_killed_process_left_is_removed(tmp_path):
    leftover = tmp_path / "4.orbax-checkpoint-tmp-12" / "state"
    leftover.mkdir(parents=True)
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=1)
    assert not leftover.parent.exists()
    assert opened.latest() is None
    opened.close()


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB, as on a disk without room; the fixture's value lifts it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield lift
    lift()


def test_a_checkpoint_that_finds_no_room_is_an_error_and_the_old_one_stays(
    tmp_path, capfd, small_files
):
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=1)
    noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    opened.save(1, {"params": jnp.asarray(noise[:1000])}, {"seed": 1})
    opened.wait()
    with pytest.raises(UserError) as caught:
        opened.save(2, {"params": jnp.asarray(noise)}, {"seed": 2})
        opened.wait()
    reason = "a checkpoint could not be written (File too large)"
    assert str(caught.value) == (
        f"{tmp_path}: {reason}; mend that, and the same command goes on from update 1"
    )
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    np.testing.assert_array_equal(
        checkpoint.read_weights(tmp_path, names=("params",))["params"], noise[:1000]
    )
    small_files()
    opened.save(2, {"params": jnp.asarray(noise)}, {"seed": 2})
    opened.close()
    assert checkpoint.read_run(tmp_path) == {"seed": 2}


def test_a_failed_save_is_told_at_the_next_update(tmp_path, small_files):
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=5)
    noise = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    opened.save(5, {"params": jnp.asarray(noise)}, {})
    deadline = time.monotonic() + 60
    with pytest.raises(UserError, match="mend that, and the same command goes on from the start"):
        while time.monotonic() < deadline:
            time.sleep(0.01)
            opened.save(6, {"params": jnp.asarray(noise)}, {})  # is not due
    opened.close()


def test_saving_and_reading_say_nothing(tmp_path, capfd):
    opened = checkpoint.Checkpoints(tmp_path, keep=1, every=1)
    opened.save(1, make_state(), {})
    opened.close()
    checkpoint.read_weights(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_only_what_follows_from_a_failed_save_is_not_told(tmp_path, monkeypatch):
    """As storage's threads call a loop that is closed: Python's own frame is the first."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(found.exc_value))
    for name in ("first", "second"):
        checkpoint.Checkpoints(tmp_path / name, keep=1, every=1).close()
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed") as caught:
        loop.call_soon_threadsafe(print)
    closed, trace, other = caught.value, caught.value.__traceback__, ValueError("of somebody else")
    for error, first in ((closed, trace.tb_next), (closed, trace), (other, None)):
        found = {"exc_type": type(error), "exc_value": error, "exc_traceback": first}
        sys.unraisablehook(types.SimpleNamespace(**found))
    assert told == [closed, other]  # closed, where the call came from Python
