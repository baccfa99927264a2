"""What a run survives, the long form: `python -m tests.endurance [PART ...]`, an hour on two cores.

Parts: kills, full, processes, updates; all by default. Each prints its numbers and ends with an
error if something did not hold. The short forms are in tests/test_endurance.py.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lmseg_jax import checkpoint, logs
from tests.disturbed import COMPILED
from tests.several import (
    CONFIG,
    SMALL,
    begin,
    begin_several,
    children,
    digest,
    end,
    gave_up,
    losses,
    printed,
    saved,
    wait_for,
)

KILLS, SEED = 20, 0
OPERATIONS, MILLISECONDS = 200, 4000  # the latest kill, in a save and after the first update
UPDATES = 5000
TINY = (
    "--config.data.train=world_shapes",
    "--config.batching.batch=2",
    "--config.data.evaluate_limit=1",
    "--config.evaluation.every=100000",
    "--config.checkpoint.every=1000",
    "--config.log.every=250",
    f"--config.optimizer.steps={UPDATES}",
)


def command(workdir, *flags, accident=()):
    """One process with one device."""
    module = ["tests.disturbed", *accident] if accident else ["lmseg_jax.main"]
    settings = [*SMALL, "--config.mesh.cpu_devices=1", "--config.checkpoint.keep=2"]
    return [
        *(sys.executable, "-m", *module, "--config", CONFIG, "--workdir", workdir),
        *(*settings, *flags),
    ]


def alive(number: int) -> bool:
    """Whether a process has not ended; one whose status nobody has read yet has."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def bring_down(workdir: Path, victim: int, accident: signal.Signals, *, flags) -> float:
    """Starts a run of two processes, one of which meets with an accident after three updates.

    Returns:
      Seconds until the other had ended; the job's status is that of an error.
    """
    process = begin_several(2, workdir, *flags)
    wait_for(workdir, 3, process)
    began, started = time.monotonic(), children(process)
    os.kill(started[victim], accident)
    others = started[:victim] + started[victim + 1 :]
    while any(map(alive, others)):
        assert time.monotonic() - began < 60, printed(workdir.parent)
        time.sleep(0.1)
    seconds = time.monotonic() - began
    if accident == signal.SIGSTOP:
        os.kill(started[victim], signal.SIGKILL)  # it hangs for ever, and so would the script
    assert end(process, seconds=10) not in (0, 130), printed(workdir.parent)
    assert gave_up(printed(workdir.parent)), printed(workdir.parent)
    assert not any(map(alive, started))
    return seconds


def kills(folder: Path) -> None:
    """SIGKILL at seeded moments, every other one inside a save; to the bits of a calm run."""
    flags = ["--config.optimizer.steps=60", "--config.evaluation.every=1000"]
    assert end(begin(command(folder / "calm", *flags), folder=folder)) == 0, printed(folder)
    expected = digest(printed(folder))

    draw, workdir, newest = random.Random(SEED), folder / "killed", 0
    begun, killed, within = 0, 0, 0  # within a save, which was left unfinished
    while killed < KILLS:
        if killed % 2:
            accident = ["operation", draw.randint(1, OPERATIONS)]
        else:
            accident = ["moment", draw.randint(0, MILLISECONDS)]
        status = end(begin(command(workdir, *flags, accident=accident), folder=folder))
        begun += 1
        if status == 0:  # it had come to its end before: again, from the start
            assert digest(printed(folder)) == expected
            workdir, newest = folder / f"killed_{begun}", 0
            continue
        assert status == -signal.SIGKILL, printed(folder)
        killed += 1
        unfinished = len(list((workdir / "checkpoints").glob(checkpoint.UNFINISHED)))
        within += unfinished > 0
        steps = saved(workdir)
        if steps:
            weights = checkpoint.read_weights(workdir / "checkpoints", names=("params", "step"))
            assert int(weights["step"]) == steps[-1] >= newest
            newest = steps[-1]
        where = f"{' '.join(map(str, accident))}: newest {newest}, {unfinished} unfinished"
        print(f"kill {killed} of {KILLS} by {where}", flush=True)
    assert end(begin(command(workdir, *flags), folder=folder)) == 0, printed(folder)
    assert digest(printed(folder)) == expected
    told = f"{killed} kills in {begun} starts, {within} left an unfinished save"
    print(f"kills: {told}; the same bits {expected[:16]}", flush=True)
    assert within > 0, "no kill hit a save, which is what half of them are for"


def full(folder: Path) -> None:
    """No room for the second checkpoint: an error of one line, the first one is whole."""
    workdir, flags = folder / "full", ["--config.optimizer.steps=6"]
    process = begin(command(workdir, *flags, accident=["full", 20_000]), folder=folder)
    assert end(process) == 2, printed(folder)
    assert "Traceback" not in printed(folder), printed(folder)
    (line,) = [line for line in printed(folder).splitlines() if line.startswith("error: ")]
    assert saved(workdir) == [2]
    checkpoint.read_weights(workdir / "checkpoints")
    assert end(begin(command(workdir, *flags), folder=folder)) == 0, printed(folder)
    print(f"full: {line}", flush=True)


def processes(folder: Path) -> None:
    """Two, then four processes learn what one does.

    One that dies or hangs, the first one too, ends the others; SIGTERM to one makes all save.
    """
    flags = ["--config.batching.multiple=4"]
    one, several = folder / "one", folder / "several"
    assert end(begin(command(one, *flags), folder=folder)) == 0, printed(folder)

    for victim, accident in ((0, signal.SIGKILL), (1, signal.SIGSTOP), (1, signal.SIGKILL)):
        workdir = folder / f"{accident.name}_{victim}" / "run"
        workdir.parent.mkdir()
        seconds = bring_down(workdir, victim, accident, flags=flags)
        told = f"process {victim} got {accident.name}, the other had ended {seconds:.1f} s later"
        print(f"processes: {told}, with checkpoints {saved(workdir)}", flush=True)
    workdir.rename(several)

    process = begin_several(4, several, *flags)
    wait_for(several, 5, process)
    began, started = time.monotonic(), children(process)
    os.kill(started[3], signal.SIGTERM)
    assert end(process, seconds=60) == 130, printed(folder)
    assert not any(map(alive, started))
    stopped = saved(several)[-1]
    print(f"processes: saved {stopped} {time.monotonic() - began:.1f} s after SIGTERM", flush=True)

    assert end(begin_several(4, several, *flags)) == 0, printed(folder)
    expected, found = losses(one), losses(several)
    assert expected.keys() == found.keys()
    error = max(abs(found[update] / expected[update] - 1) for update in expected)
    assert error < 1e-5, error
    scores = ((folder / name / "scores.json").read_text() for name in ("one", "several"))
    assert len(set(scores)) == 1
    print(f"processes: losses of 2, then 4 agree with 1 to {error:.1e}, scores equal", flush=True)


def updates(folder: Path) -> None:
    """Thousands of updates take no more memory and compile nothing after the first ones."""
    workdir = folder / "updates"
    process = begin(command(workdir, *TINY, accident=["compiles", 251]), folder=folder)
    memory = {}
    while process.poll() is None:
        rows = logs.read(workdir)
        if rows and rows[-1]["step"] not in memory:
            status = Path(f"/proc/{process.pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            memory[rows[-1]["step"]] = int(fields["VmRSS"].split()[0]) / 1024
        time.sleep(0.5)
    assert process.returncode == 0, printed(folder)
    assert COMPILED not in printed(folder), printed(folder)
    losses_told = [row["loss"] for row in logs.read(workdir) if "loss" in row]
    assert len(losses_told) == UPDATES // 250 and np.isfinite(losses_told).all()
    print("updates:", {step: round(size) for step, size in memory.items()}, "MiB", flush=True)
    settled, last = memory[1250], memory[UPDATES - 250]  # a first checkpoint was written before
    assert last < 1.02 * settled, memory
    print(f"updates: nothing compiled after 250; {last - settled:+.0f} MiB, {settled:.0f} before")


PARTS = {"kills": kills, "full": full, "processes": processes, "updates": updates}


def run(names) -> None:
    """Runs some of the parts, each in a folder of its own."""
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            PARTS[name](Path(folder))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
