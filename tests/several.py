"""Runs as a user starts them, for tests: one process, or several by launch/local.sh."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from lmseg_jax import logs
from tests.quick import QUICK

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "runs" / "worlds.py"
# One layer less, one evaluated image: the smallest run with every part.
SMALL = (
    "--config.model.decoder.layers=1",
    "--config.data.evaluate_limit=2",
    "--config.evaluation.average=1",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=99",
)


def environment(folder: Path) -> dict[str, str]:
    """Of a process; compiled programs are kept in a folder if nowhere else."""
    found = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHON": sys.executable, "HEARTBEAT": "10"}
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    found.setdefault("JAX_PLATFORMS", "cpu")
    found.setdefault("XLA_FLAGS", QUICK)
    return found


def begin(command, *, folder: Path, **settings) -> subprocess.Popen:
    """Starts a command in a session of its own; its output goes to a file, see `printed`."""
    with open(folder / "printed", "a", encoding="utf-8") as out:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment(folder) | settings,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def begin_several(count: int, workdir: Path, *flags: str) -> subprocess.Popen:
    """`launch/local.sh` with so many processes of one CPU device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return begin(
        ["launch/local.sh", CONFIG, workdir, *SMALL, *flags],
        folder=workdir.parent,
        PROCESSES=str(count),
        PORT=str(port),
    )


def end(process: subprocess.Popen, *, seconds: float = 600) -> int:
    """Waits for the exit status; a process that does not end is killed with all it started."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def printed(folder: Path) -> str:
    """Everything that commands with this folder have printed."""
    return (folder / "printed").read_text(encoding="utf-8")


def gave_up(text: str) -> bool:
    """Whether a process said that it ends because of another one: in our words, or in JAX's."""
    ours = "error: this process ended; the same command goes on from there"
    return ours in text or "the JAX distributed service detected fatal errors" in text


def children(process: subprocess.Popen) -> list[int]:
    """Process ids of what a script has started, in that order."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return list(map(int, path.read_text().split()))


def wait_for(workdir: Path, update: int, process: subprocess.Popen, *, seconds: float = 600):
    """Returns when a run has logged an update.

    Raises:
      RuntimeError: it ended before.
    """
    last = time.monotonic() + seconds
    while not any(row["step"] >= update for row in logs.read(workdir)):
        if process.poll() is not None or time.monotonic() > last:
            raise RuntimeError(f"update {update} was not reached: {printed(workdir.parent)}")
        time.sleep(0.02)


def saved(workdir: Path) -> list[int]:
    """Updates of which there is a checkpoint."""
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def losses(workdir: Path) -> dict[int, float]:
    """{updates done: loss} as logged."""
    return {row["step"]: row["loss"] for row in logs.read(workdir) if "loss" in row}


def digest(text: str) -> str:
    """The SHA-256 that a run has printed last."""
    return [line for line in text.splitlines() if "sha256" in line][-1].split()[-1]
