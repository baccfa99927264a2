"""Whole runs as a user starts them: to the same bits, whatever happens on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmseg_jax import configuration, logs, train, words
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from tests.prepared import png, prepare

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "runs" / "worlds.py"
LAST = 8  # updates of the config

pytestmark = pytest.mark.slow


def start(workdir, *arguments, **options):
    command = [sys.executable, "-m", "lmseg_jax.main", "--config", str(CONFIG)]
    command += ["--workdir", str(workdir), "--config.mesh.cpu_devices=2", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "xla"))
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process, *, status=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out + err


def digest(printed):
    return next(line for line in printed.splitlines() if "sha256" in line).split()[-1]


def wait_for(workdir, update):
    """Returns when the run has logged this update."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if any(row["step"] >= update for row in logs.read(workdir)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"update {update} was not reached")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(folder):
    return finish(start(folder / "undisturbed", "--config.checkpoint.keep=3"))  # 4, 6 and 8


def test_a_killed_run_goes_on_to_the_same_bits_at_another_worker_count(folder, undisturbed):
    """The undisturbed run has no loader processes; `make endurance` kills twenty such runs."""
    workdir = folder / "killed"
    workers = 2
    moment = random.Random(workers).randint(1, LAST - 2)
    process = start(workdir, f"--config.data.workers={workers}")
    wait_for(workdir, moment)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # ends when the workers, who hold the same pipes, have ended
    assert digest(finish(start(workdir, f"--config.data.workers={workers}"))) == digest(undisturbed)
    losses = [row["step"] for row in logs.read(workdir) if "loss" in row]
    assert losses == list(range(1, LAST + 1))
    plain = {row["step"]: row["loss"] for row in logs.read(folder / "undisturbed") if "loss" in row}
    assert {r["step"]: r["loss"] for r in logs.read(workdir) if "loss" in r} == plain


def test_a_run_that_was_killed_in_its_evaluation_makes_it_when_it_goes_on(folder, undisturbed):
    """What such a run leaves: the update is saved and logged, its scores are not."""
    plain, workdir, half = folder / "undisturbed", folder / "unscored", 4
    shutil.copytree(plain, workdir)
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > half:
            shutil.rmtree(path)
    rows = [row for row in logs.read(plain) if row["step"] <= half and "loss" in row]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = finish(start(workdir))
    assert f"from update {half}" in printed
    assert digest(printed) == digest(undisturbed)
    key = "score/world_shapes/miou"
    scores = [
        [(row["step"], row[key]) for row in logs.read(run) if key in row]
        for run in (plain, workdir)
    ]
    assert scores[0] == scores[1] and scores[0][0][0] == half


def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(folder, undisturbed):
    """By SIGTERM; that of a terminal is the next test's."""
    workdir = folder / "stopped"
    process = start(workdir)
    wait_for(workdir, 1)
    process.send_signal(signal.SIGTERM)
    printed = finish(process, status=130)
    assert "the same command goes on from there" in printed
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert f"stopped after update {max(steps)} of {LAST}" in printed
    assert digest(finish(start(workdir))) == digest(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_may_reach_loader_processes_too_and_the_run_saves(folder, number):
    workdir = folder / f"all_{number}"
    process = start(workdir, "--config.data.workers=2", start_new_session=True)
    wait_for(workdir, 1)
    os.killpg(process.pid, number)  # as a terminal sends Ctrl-C, and Slurm SIGTERM
    printed = finish(process, status=130)
    assert "the same command goes on from there" in printed
    assert "Traceback" not in printed


def test_a_dataset_has_the_loss_of_its_own_images():
    one = {"loss": 3.0, "final": 1.0, "layers": [1.0, 2.0], "datasets": [1.0, 2.0, 0.0]}
    one |= {"images": [1.0, 3.0, 0.0], "matched": 6.0, "no_object": 20.0, "gradient_norm": 5.0}
    two = one | {"loss": 5.0, "layers": [2.0, 3.0], "datasets": [0.0, 5.0, 0.0]}
    two |= {"images": [0.0, 4.0, 0.0]}
    metrics = [{key: np.asarray(value) for key, value in each.items()} for each in (one, two)]
    assert train.mean_of(metrics, datasets=("a", "b", "c"), queries=10) == {
        "loss": 4.0,
        "loss/final": 1.0,
        "loss_of_layer/1": 1.5,
        "loss_of_layer/2": 2.5,
        "loss_of_dataset/a": 4.0,  # a loss of 1 by a quarter of one of two updates
        "loss_of_dataset/b": 4.0,  # 7 by seven quarters; c has no image and no loss
        "queries/matched": 12 / 80,
        "queries/no_object": 40 / 80,
        "gradient_norm": 5.0,
    }


def test_a_run_writes_scores_metrics_events_and_what_it_was_made_of(folder, undisturbed):
    workdir = folder / "undisturbed"
    scores = json.loads((workdir / "scores.json").read_text())
    assert set(scores) == {"world_patterns", "world_shapes"}
    assert {"miou", "pq", "sq", "rq", "pq_things", "pq_stuff", "iou"} <= set(scores["world_shapes"])
    assert all(0 <= score["miou"] <= 100 for score in scores.values())
    made_of = json.loads((workdir / "run.json").read_text())
    assert made_of["config"]["optimizer"]["steps"] == LAST
    assert 'name = "world_shapes"' in made_of["cards"]["world_shapes"]
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "curves.png").stat().st_size > 0
    row = next(row for row in logs.read(workdir) if "loss" in row)
    told = {"loss_of_layer/1", "loss_of_dataset/world_shapes", "queries/matched", "rate/backbone"}
    told |= {"queries/no_object", "temperature", "gradient_norm/backbone", "images_per_second"}
    assert told <= set(row)
    key = "score/world_shapes/miou"
    evaluated = {row["step"]: row[key] for row in logs.read(workdir) if key in row}
    assert list(evaluated) == [4, LAST]
    means = scores["world_shapes"]["mean_of_last"]
    assert means["evaluations"] == 2
    assert means["miou"] == pytest.approx(sum(evaluated.values()) / 2)


def test_evaluation_of_the_checkpoint_gives_the_same_scores(folder, undisturbed):
    workdir = folder / "undisturbed"
    trained = json.loads((workdir / "scores.json").read_text())
    (workdir / "scores.json").unlink()
    finish(start(workdir, "--config.mode=evaluate"))
    assert json.loads((workdir / "scores.json").read_text()) == trained


def test_a_checkpoint_is_asked_for_names_that_training_had_not(
    folder, undisturbed, monkeypatch, capsys
):
    measured = []

    def noted(*arguments, **settings):
        measured.append(evaluate_set(*arguments, **settings))
        return measured[0]

    evaluate_set = words.evaluate_set
    monkeypatch.setattr(words, "evaluate_set", noted)
    asked = {"mode": "words", "data.train": "world_words", "mesh.data": 1}
    asked["data.evaluate"] = "world_words,world_words_unseen"
    config = configuration.load(str(CONFIG), [f"--config.{k}={v}" for k, v in asked.items()])
    configuration.check(config)
    assert words.run(config, folder / "undisturbed") == 0
    found = json.loads((folder / "undisturbed" / "words.json").read_text())
    assert set(found) == {"step", "world_words_unseen"} and found["step"] == LAST
    names = found["world_words_unseen"]["names"]
    assert [len(names), sum(entry["unseen"] for entry in names.values())] == [30, 6]
    ((scores, pictures),) = measured  # counted on the way, not from the label maps
    assert len(pictures) == found["world_words_unseen"]["images"] == 2
    there = {name: entry["iou"] for name, entry in names.items() if entry["iou"] is not None}
    assert there and there == pytest.approx({name: scores["iou"][name] for name in there})
    assert "24 seen" in capsys.readouterr().out


def test_a_workdir_of_another_config_is_refused_with_the_difference(folder, undisturbed):
    printed = finish(start(folder / "undisturbed", "--config.optimizer.rate=0.5"), status=2)
    line = printed.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "optimizer.rate" in line and "0.001" in line and "0.5" in line
    assert "Traceback" not in printed


def test_a_dataset_of_tfds_and_a_world_are_trained_together_past_bad_files(folder, undisturbed):
    scenes = open_source(load_card("world_shapes"), "train", root="", limit=8)
    samples = [scenes[i] for i in range(len(scenes))]
    images = [png(sample.image) for sample in samples]
    labels = [png((semantic_map(sample) + 1).astype(np.uint8)) for sample in samples]
    labels[2] = labels[5] = png(np.full((96, 96), 200, np.uint8))
    examples = list(zip(images, labels, strict=True))
    card = prepare(folder, {"train": examples, "validation": examples[:2]})
    # As many classes as the world it stands for: the programs of the other runs serve.
    names = f"--config.data.train=world_patterns,{card}"
    settings = [f"--config.data.root={folder}", "--config.data.on_error=skip"]
    printed = finish(start(folder / "tfds", names, *settings))
    rows = [row for row in logs.read(folder / "tfds") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, LAST + 1))
    assert np.isfinite([row["loss"] for row in rows]).all()
    # 16 examples, two epochs of the eight: each bad one comes twice.
    assert sum(row.get("skipped/prepared", 0) for row in rows) >= 4
    assert all("skipped/world_patterns" not in row for row in rows)
    for number in (2, 5):
        assert f"example {number} of train, feature labels/segmentation: unmapped" in printed
    scores = json.loads((folder / "tfds" / "scores.json").read_text())
    assert scores.keys() == {"world_patterns", "prepared"}
