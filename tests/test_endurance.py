"""What a run survives: the short form of tests/endurance.py."""

import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lmseg_jax import checkpoint, configuration, logs, train
from lmseg_jax.errors import UserError
from tests.disturbed import COMPILATION
from tests.several import (
    CONFIG,
    SMALL,
    begin,
    begin_several,
    children,
    end,
    gave_up,
    losses,
    printed,
    saved,
    wait_for,
)

LAST = 8  # updates of the config
KILLED = 40  # file operations after the first save has begun; a save makes about 30
EVERYTHING = ("step", "params", "frozen", "optimizer", "average")

pytestmark = pytest.mark.slow


def run_here(workdir, *flags):
    """A run of one device within the tests' own process."""
    config = configuration.load(CONFIG, [*SMALL, "--config.mesh.data=1", *flags])
    configuration.check(config)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return train.run(config, workdir)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def contents(workdir, update):
    """The bytes of every array of a checkpoint."""
    folder = workdir / "checkpoints"
    arrays = checkpoint.read_weights(folder, step=update, names=EVERYTHING)
    return [array.tobytes() for array in jax.tree.leaves(arrays)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Workdir of an undisturbed run of one device; its arrays alive and compilations by row."""
    workdir, alive, compiled = tmp_path_factory.mktemp("plain") / "run", {}, {}
    compilations = []

    class Counting(logs.Logs):
        def write(self, step, values):
            alive.setdefault(step, len(jax.live_arrays()))
            compiled.setdefault(step, len(compilations))
            super().write(step, values)

    def count(event, seconds, **named):
        if event == COMPILATION:
            compilations.append(named)

    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "Logs", Counting)
        assert run_here(workdir, "--config.checkpoint.every=5") == 0
    jax.monitoring.unregister_event_duration_listener(count)
    return workdir, alive, compiled


def test_updates_compile_nothing_after_the_first_and_leave_no_arrays_behind(plain):
    _, alive, compiled = plain
    assert compiled[1] > 5  # the five programs of an update at least
    assert compiled[1] == compiled[4] < compiled[5] == compiled[LAST]  # it evaluates after four
    assert alive[2] == alive[3] == alive[4]  # then it evaluates and saves, which keeps some


def test_a_loss_that_is_no_number_stops_the_run_before_it_changes_anything(
    plain, tmp_path, monkeypatch
):
    gradient = train.gradient

    def broken(step, state, buckets, **settings):
        sums = gradient(step, state, buckets, **settings)
        if int(state.step) == 5:
            sums["parts"]["loss"] = sums["parts"]["loss"] * np.nan
        return sums

    class Watched(train.Loader):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            loaders.append(self)

    loaders = []
    monkeypatch.setattr(train, "Loader", Watched)
    monkeypatch.setattr(train, "gradient", broken)
    flags = ["--config.log.every=8", "--config.checkpoint.every=8"]  # it is found an update later
    with pytest.raises(UserError) as caught:
        run_here(tmp_path, *flags)
    message = str(caught.value)
    assert "became infinite or NaN in update 6 and changed nothing" in message
    named = loaders[0].names(5)  # of the sixth; tests/pipeline/test_batches.py reads them off
    assert list(named) == ["world_patterns", "world_shapes"] and named != loaders[0].names(4)
    images = "; ".join(f"{world}: {', '.join(found)}" for world, found in named.items())
    assert f"is saved as checkpoint 5; its images were {images}; look at these" in message
    assert saved(tmp_path) == [4, 5]  # 4 before its evaluation
    found, expected = contents(tmp_path, 5), contents(plain[0], 5)
    assert len(expected) > 100 and found == expected


def test_a_kill_within_a_save_costs_nothing_that_was_saved(plain, tmp_path):
    """At an operation in the middle of a save after the first; then to the bits of a calm run."""
    workdir = tmp_path / "run"
    flags = [*SMALL, "--config.mesh.cpu_devices=1", "--config.checkpoint.every=5"]
    accident = [sys.executable, "-m", "tests.disturbed", "operation", KILLED]
    run = begin([*accident, "--config", CONFIG, "--workdir", workdir, *flags], folder=tmp_path)
    assert end(run, seconds=120) == -signal.SIGKILL, printed(tmp_path)
    assert list((workdir / "checkpoints").glob(checkpoint.UNFINISHED))
    steps = saved(workdir)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert run_here(workdir, "--config.checkpoint.every=5") == 0
    assert f"; from update {steps[-1]}\n" in told.getvalue()
    assert contents(workdir, LAST) == contents(plain[0], LAST)


def test_a_signal_before_the_first_update_ends_all_processes(tmp_path):
    """JAX alone would note it for a question that nobody asks, and the run would go on."""
    workdir = tmp_path / "run"
    process = begin_several(2, workdir)
    while not (workdir / "checkpoints").exists():  # the processes know each other by now
        assert process.poll() is None, printed(tmp_path)
        time.sleep(0.02)
    started = children(process)
    os.kill(started[1], signal.SIGTERM)
    assert end(process, seconds=60) not in (0, 130), printed(tmp_path)
    assert not any(Path(f"/proc/{number}").exists() for number in started)
    assert saved(workdir) == [] and not logs.read(workdir)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run of two processes of which one is killed, and that one process then brings to its end.

    Returns the workdir, the killed job's status, what it had saved and what the last one printed.
    """
    workdir = tmp_path_factory.mktemp("several") / "run"
    process = begin_several(2, workdir)
    wait_for(workdir, 5, process)
    os.kill(children(process)[1], signal.SIGKILL)
    status = end(process, seconds=60)
    steps = saved(workdir)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert run_here(workdir) == 0
    return workdir, status, steps, told.getvalue()


def test_a_dead_process_ends_the_others_with_an_error(several):
    workdir, status, *_ = several
    text = printed(workdir.parent)
    assert status not in (0, 130), text  # that of the killed one is the highest
    assert gave_up(text), text


def test_a_run_goes_on_from_the_last_update_that_others_saved(several):
    *_, steps, told = several
    assert steps and steps[-1] > 0, "nothing was saved before the kill"
    assert f"; from update {steps[-1]}\n" in told


def test_two_processes_learn_what_one_does_and_one_goes_on_from_their_checkpoint(plain, several):
    expected, found = losses(plain[0]), losses(several[0])
    assert list(found) == list(expected) == list(range(1, LAST + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    rows = [row["step"] for row in logs.read(several[0]) if "loss" in row]
    assert rows == list(range(1, LAST + 1))  # written once, by process 0
    assert len(list((several[0] / "tensorboard").iterdir())) == 2  # a file of each start


def test_the_sums_of_an_evaluation_are_those_of_one_process(plain, several):
    found = []
    for workdir in (plain[0], several[0]):
        (row,) = (row for row in logs.read(workdir) if row["step"] == 4 and "loss" not in row)
        found.append(row)
    assert "score/world_shapes/miou" in found[0]
    assert found[0] == found[1]
