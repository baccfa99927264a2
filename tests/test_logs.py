import io
import json
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from lmseg_jax import logs


def events(folder):
    """(step, name, value) of each scalar and (step, "purge", 0) of each restart, in order."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                found.append((event.step, "purge", 0.0))
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_a_row_is_in_the_file_at_once(tmp_path):
    log = logs.Logs(tmp_path / "new")
    log.write(20, {"loss": 1.5, "rate": 1e-3})
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == (
        '{"step": 20, "loss": 1.5, "rate": 0.001}\n'
    )
    log.close()


def test_rows_come_back_in_order(tmp_path):
    log = logs.Logs(tmp_path)
    log.write(1, {"loss": 2.0})
    log.write(2, {"miou": 50})
    log.close()
    assert logs.read(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "miou": 50.0}]


def test_a_value_that_is_not_finite_stays_strict_json(tmp_path):
    log = logs.Logs(tmp_path)
    log.write(1, {"loss": math.nan, "norm": math.inf})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": None,
        "norm": None,
    }
    assert math.isnan(logs.read(tmp_path)[0]["loss"])


def test_pictures_are_in_tensorboard(tmp_path):
    log = logs.Logs(tmp_path)
    log.draw(7, {"examples/a": np.zeros((4, 6, 3), np.uint8)})
    log.close()
    assert events(tmp_path / "tensorboard") == [(7, "examples/a", 0.0)]
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"PNG" in data


def test_tensorboard_gets_the_same_values(tmp_path):
    log = logs.Logs(tmp_path)
    log.write(3, {"loss": 0.5})
    log.close()
    assert events(tmp_path / "tensorboard") == [(3, "loss", 0.5)]


def test_rows_past_the_restored_update_are_cut(tmp_path):
    log = logs.Logs(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"loss": step})
    log.truncate(20)
    log.write(30, {"loss": 3.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in logs.read(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, 3.0),
    ]
    assert events(tmp_path / "tensorboard") == [
        (10, "loss", 10.0),
        (20, "loss", 20.0),
        (30, "loss", 30.0),
        (21, "purge", 0.0),
        (30, "loss", 3.0),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["metrics.jsonl"]


def test_cutting_an_empty_workdir_does_nothing(tmp_path):
    logs.Logs(tmp_path).truncate(5)
    assert logs.read(tmp_path) == []


def test_a_row_cut_off_by_a_kill_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert logs.read(tmp_path) == [{"step": 1, "loss": 2.0}]
    log = logs.Logs(tmp_path)
    log.write(2, {"loss": 1.0})
    log.close()
    assert [row["step"] for row in logs.read(tmp_path)] == [1, 2]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    log = logs.Logs(tmp_path / "new")
    log.write(1, {"loss": 1.0})
    log.truncate(0)
    log.close()
    stream = io.StringIO()
    progress = logs.Progress(10, images=1, stream=stream)
    progress.update(1)
    progress.message("hello")
    assert not (tmp_path / "new").exists() and stream.getvalue() == ""


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def make(clock, stream, **options):
    return logs.Progress(200, images=12, stream=stream, clock=clock, **options)


def test_a_line_says_how_far_how_fast_and_how_long(clock):
    stream = io.StringIO()
    progress = make(clock, stream)
    clock.now += 0.5
    progress.update(1, {"loss": 1.23456, "rate": 1e-3})
    assert stream.getvalue() == (
        "  0.5 %  1/200  2.00 updates/s  24.0 images/s  1:40 left  loss 1.235  rate 0.001\n"
    )


def test_elsewhere_than_on_a_terminal_lines_are_rare_and_the_last_is_shown(clock):
    stream = io.StringIO()
    progress = make(clock, stream, every=30)
    for step in range(1, 201):
        clock.now += 1.0
        progress.update(step)
    shown = [int(line.split()[2].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert shown == [1, 31, 61, 91, 121, 151, 181, 200]


def test_on_a_terminal_one_line_is_rewritten(clock):
    stream = Terminal()
    progress = make(clock, stream)
    for step in (1, 2, 3):
        clock.now += 0.15
        progress.update(step)
    progress.message("saved")
    assert stream.getvalue().count("\r\x1b[K") == 2  # 0.15 s later is too soon
    assert stream.getvalue().endswith("left\nsaved\n")


def test_compilation_and_pauses_are_no_part_of_the_speed(clock):
    progress = make(clock, io.StringIO())
    clock.now += 40.0
    progress.update(1, compiled=True)
    assert progress.speed() == 0.0
    assert "updates/s" not in progress.line()
    clock.now += 0.25
    progress.update(2)
    with progress.paused():
        clock.now += 100.0
    clock.now += 0.25
    progress.update(3)
    assert progress.speed() == pytest.approx(4.0)


def test_a_resumed_run_counts_its_own_updates_only(clock):
    progress = make(clock, io.StringIO(), start=100)
    clock.now += 1.0
    progress.update(102)
    assert progress.speed() == pytest.approx(2.0)


def test_values_stay_until_there_are_new_ones(clock):
    progress = make(clock, io.StringIO())
    progress.update(1, {"loss": 2.0})
    progress.update(2)
    assert progress.line().endswith("loss 2")


def test_hours_are_shown_where_there_are_some(clock):
    progress = make(clock, io.StringIO())
    clock.now += 30.0
    progress.update(1)
    assert "1:39:30 left" in progress.line()
