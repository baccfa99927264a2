"""What a run reports while it goes on: metric rows on disk, and lines of progress."""

import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax
import numpy as np

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
WINDOW = 50  # intervals over which the speed is averaged
REFRESH = 0.2  # seconds between two versions of a line on a terminal


class Logs:
    """Writes metric rows to `metrics.jsonl` and TensorBoard events; process 0 only.

    A row is {"step": updates done, name: value, ...}; values that are not finite are null.
    """

    def __init__(self, workdir: str | Path):
        self.workdir = Path(workdir)
        self.writer = None
        self.writes = jax.process_index() == 0
        if self.writes:
            self.workdir.mkdir(parents=True, exist_ok=True)
            path = self.workdir / METRICS
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                _replace(path, read(workdir))  # the last row was cut off by a kill

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row; it is in the file when this returns."""
        if not self.writes:
            return
        row = {"step": int(step)} | {name: float(value) for name, value in values.items()}
        with open(self.workdir / METRICS, "a", encoding="utf-8") as file:
            file.write(_line(row))
        if self.writer is None:
            self.writer = self._events(purge=None)
        for name, value in values.items():
            self.writer.add_scalar(name, float(value), int(step))

    def draw(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3] by name, in TensorBoard."""
        if not self.writes:
            return
        if self.writer is None:
            self.writer = self._events(purge=None)
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, int(step), dataformats="HWC")

    def truncate(self, step: int) -> None:
        """Forgets everything after update `step`: rows are cut, TensorBoard hides the events."""
        if not self.writes:
            return
        path = self.workdir / METRICS
        if path.exists():
            _replace(path, [row for row in read(self.workdir) if row["step"] <= step])
        if (self.workdir / EVENTS).exists():
            self.close()
            self.writer = self._events(purge=step + 1)

    def close(self) -> None:
        """Writes what is buffered."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _events(self, *, purge: int | None):
        from tensorboardX import SummaryWriter  # half a second to import; few commands log

        return SummaryWriter(
            str(self.workdir / EVENTS),
            purge_step=purge,
            flush_secs=10,
            filename_suffix=f".{time.time_ns()}",  # two files of one second would be the same
        )


def read(workdir: str | Path) -> list[dict[str, float]]:
    """Rows of a workdir's `metrics.jsonl`, in the order written; null values are NaN.

    A last line that was cut off by a kill is left out; without a file there are no rows.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    del unfinished  # empty where the last row is complete
    rows = [json.loads(line) for line in lines]
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]


def _line(row: Mapping[str, float]) -> str:
    strict = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(strict) + "\n"


def _replace(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes a file anew; it is never seen half written."""
    fresh = path.with_suffix(".fresh")
    with open(fresh, "w", encoding="utf-8") as file:
        file.writelines(map(_line, rows))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class Progress:
    """One line that says how far a run is; process 0 only.

    On a terminal the line is rewritten in place, elsewhere it is printed now and then. Speed and
    time left are those of plain updates: intervals with a compilation and what happens within
    `paused` do not count.

    Args:
      total: updates of the whole run.
      images: images of one update.
      start: updates that were done before.
      stream: where to; None = standard error.
      every: seconds between two lines where the stream is no terminal.
      clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        *,
        images: int,
        start: int = 0,
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.total, self.images, self.step = total, images, start
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.gap = REFRESH if self.terminal else every
        self.clock = clock
        self.writes = jax.process_index() == 0
        self.intervals: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.since, self.shown = clock(), -math.inf
        self.values: dict[str, float] = {}
        self.open = False

    def update(
        self, step: int, values: Mapping[str, float] | None = None, *, compiled: bool = False
    ) -> None:
        """Notes that `step` updates are done.

        Args:
          step: updates done, over all starts of the run.
          values: losses and rates to show; None keeps those shown last.
          compiled: True if a program was compiled since the last call.
        """
        now = self.clock()
        if not compiled and step > self.step:
            self.intervals.append((now - self.since, step - self.step))
        self.since, self.step = now, step
        if values is not None:
            self.values = dict(values)
        if now - self.shown >= self.gap or step >= self.total:
            self.shown = now
            self._show(self.line())

    def speed(self) -> float:
        """Updates a second over the last intervals, 0 while unknown."""
        seconds = sum(interval for interval, _ in self.intervals)
        return sum(count for _, count in self.intervals) / seconds if seconds > 0 else 0.0

    def line(self) -> str:
        """Percent, updates, updates/s, images/s, time left, then the values."""
        parts = [f"{100 * self.step / self.total:5.1f} %", f"{self.step}/{self.total}"]
        if speed := self.speed():
            parts.append(f"{speed:.2f} updates/s")
            parts.append(f"{speed * self.images:.1f} images/s")
            parts.append(f"{_clock((self.total - self.step) / speed)} left")
        parts += [f"{name} {value:.4g}" for name, value in self.values.items()]
        return "  ".join(parts)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the speed what happens within: evaluations, checkpoints."""
        before = self.clock()
        try:
            yield
        finally:
            self.since += self.clock() - before

    def message(self, text: str) -> None:
        """Prints a line of its own."""
        if self.writes:
            self.close()
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the line that was rewritten in place."""
        if self.open:
            print(file=self.stream, flush=True)
            self.open = False

    def _show(self, line: str) -> None:
        if not self.writes:
            return
        if not self.terminal:
            print(line, file=self.stream, flush=True)
            return
        columns = shutil.get_terminal_size().columns
        clear = "\r\x1b[K"  # back to the start, erase what was there
        print(clear + line[: columns - 1], end="", file=self.stream, flush=True)
        self.open = True


def _clock(seconds: float) -> str:
    """75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
