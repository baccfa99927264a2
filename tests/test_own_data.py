"""The walk-through of docs/datasets.md, as it is written there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lmseg_jax import logs
from lmseg_jax.datasets.card import load_card
from tests.quick import QUICK

ROOT = Path(__file__).resolve().parents[1]
TITLE = "## Your own data in ten minutes"


def blocks():
    """(language, text) of the fenced blocks of the walk-through."""
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    section = text.split(TITLE)[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


def draw_roads(folder):
    """Twenty scenes of sky over a road with a car, laid out as the walk-through says."""
    rng = np.random.default_rng(0)
    colors = np.array([[120, 160, 220], [90, 90, 90], [200, 40, 40]], np.uint8)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(20):
        ids = np.zeros((120, 160), np.uint8)
        ids[rng.integers(50, 80) :] = 1
        x, y = rng.integers(10, 100, 2)
        ids[y : y + 20, x : x + 40] = 2
        photo = colors[ids] + rng.integers(0, 20, (120, 160, 3), np.uint8)
        ids[:, :2] = 255
        Image.fromarray(photo).save(folder / f"images/{number:03}.jpg")
        Image.fromarray(ids).save(folder / f"labels/{number:03}_mask.png")
    (folder / "names.txt").write_text("sky\nroad\ncar\n")


def test_the_walk_through_leads_from_a_folder_to_training_with_a_world(tmp_path):
    draw_roads(tmp_path / "roads")
    programs = tmp_path / "bin"  # `lmseg` and `python` as an installation would give them
    programs.mkdir()
    for name, module in (("lmseg", " -m lmseg_jax.cli"), ("python", "")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=1",
    }
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    ran = 0
    for language, text in blocks():
        if language == "python":
            name = re.match(r"# (\S+\.py)\n", text)[1]
            (tmp_path / name).write_text(text)
        if language == "sh":
            done = subprocess.run(
                ["sh", "-e", "-c", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran == 4
    card = load_card(tmp_path / "roads.toml")
    assert card.taxonomy.names == ("sky", "road", "car")
    assert card.splits == {"train": 18, "val": 2}
    assert (tmp_path / "roads_train.png").is_file()
    (row,) = (row for row in logs.read(tmp_path / "runs/try") if "loss" in row)
    assert row["step"] == 20 and np.isfinite(row["loss"])
    scores = json.loads((tmp_path / "runs/try/scores.json").read_text())
    assert set(scores) == {"roads", "world_colors"}
