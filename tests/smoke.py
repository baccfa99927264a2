"""A short training of the demo with assertions: `python -m tests.smoke`, about two minutes."""

import json
import tempfile
from pathlib import Path

from lmseg_jax import logs, main

UPDATES = 150


def run() -> None:
    """Trains the demo for a few updates and checks that it learned, and learned words."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        arguments = ["--config", "demo", "--workdir", str(workdir)]
        arguments += [f"--config.optimizer.steps={UPDATES}", "--config.optimizer.warmup=20"]
        arguments += ["--config.data.evaluate_limit=12", "--config.log.every=10"]
        status = main.main(arguments)
        assert status == 0, status
        rows = [row for row in logs.read(workdir) if "loss" in row]
        scores = json.loads((workdir / "scores.json").read_text())
        baselines = json.loads((workdir / "baselines.json").read_text())
        cross = json.loads((workdir / "cross.json").read_text())
        pictures = {path.name for path in workdir.glob("*.png")}

    assert [row["step"] for row in rows] == list(range(10, UPDATES + 1, 10))
    first, last = rows[0]["loss"], rows[-1]["loss"]
    assert last < 0.6 * first, f"the loss fell from {first:.2f} to {last:.2f} only"
    assert all(row["loss/nonfinite"] == 0 for row in rows)
    assert rows[-1]["programs"] == rows[1]["programs"], "a program was compiled again"
    for name, score in scores.items():
        majority = baselines[name]["majority"]["miou"]
        assert score["miou"] > majority + 5, f"{name}: mIoU {score['miou']:.1f}, {majority:.1f}"
    assert set(cross) == set(scores)
    assert pictures == {"curves.png", "panels.png", "taxonomies.png"}
    print(f"smoke: the loss fell from {first:.2f} to {last:.2f} in {UPDATES} updates")


if __name__ == "__main__":
    run()
