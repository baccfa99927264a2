"""What users get wrong: one line that says what to do, exit status 2, no traceback."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmseg_jax import checkpoint, main

CONFIG = str(Path(__file__).parent / "runs" / "worlds.py")

CARD = """
name = "tiny"
task = "semantic"
format = "label_png"
about = {{ source = "drawn by a test", license = "Apache-2.0" }}
void = [255]
classes = [
  {{ id = 0, name = "ground", thing = false, color = [90, 90, 90] }},
  {{ id = 1, name = "disc", thing = false, color = [200, 0, 0] }},
]

[files]
folder = "tiny"
images = "{{split}}/{{name}}.png"
labels = "{{split}}_labels/{{name}}.png"

[splits]
train = {count}
val = {count}

[augmentation]
short_sides = [64]
max_side = 64
crop = [64, 64]
color = false
flip = "none"
order = ["resize", "crop"]

[test]
short_side = 64
max_side = 64
"""


@pytest.fixture
def tiny(tmp_path):
    """A card and its files: two images a split."""
    for split in ("train", "val"):
        for folder in (split, f"{split}_labels"):
            (tmp_path / "tiny" / folder).mkdir(parents=True)
        for name in ("a", "b"):
            image = np.full((64, 64, 3), 100, np.uint8)
            Image.fromarray(image).save(tmp_path / "tiny" / split / f"{name}.png")
            label = np.eye(64, dtype=np.uint8)
            Image.fromarray(label).save(tmp_path / "tiny" / f"{split}_labels" / f"{name}.png")
    card = tmp_path / "tiny.toml"
    card.write_text(CARD.format(count=2))
    return tmp_path


@pytest.fixture(autouse=True)
def set_up_already(monkeypatch):
    monkeypatch.setattr(main, "start", lambda options: None)


def error(capsys, workdir, *arguments):
    status = main.main(["--config", CONFIG, "--workdir", str(workdir), *arguments])
    printed = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in printed.err
    line = printed.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


ON_ONE = "--config.mesh.data=1"


def on_tiny(folder):
    return [
        f"--config.data.train={folder / 'tiny.toml'}",
        f"--config.data.root={folder}",
        "--config.batching.batch=2",
        ON_ONE,
    ]


def test_a_missing_card(capsys, tmp_path):
    line = error(capsys, tmp_path / "run", "--config.data.train=wrlds", ON_ONE)
    assert "wrlds" in line and "world_patterns" in line


def test_a_missing_root(capsys, tiny):
    line = error(capsys, tiny / "run", *on_tiny(tiny), "--config.data.root=nowhere")
    assert "data.root" in line and "nowhere" in line


def test_an_unmapped_label_id_names_file_and_id(capsys, tiny):
    for name in ("a", "b"):
        label = np.full((64, 64), 7, np.uint8)
        Image.fromarray(label).save(tiny / "tiny" / "train_labels" / f"{name}.png")
    line = error(capsys, tiny / "run", *on_tiny(tiny))
    assert "7" in line and "train_labels/" in line


def test_an_image_and_a_label_of_different_size(capsys, tiny):
    for name in ("a", "b"):
        label = np.zeros((64, 60), np.uint8)
        Image.fromarray(label).save(tiny / "tiny" / "train_labels" / f"{name}.png")
    line = error(capsys, tiny / "run", *on_tiny(tiny))
    assert "train_labels/" in line and "64" in line and "60" in line


def test_an_empty_split(capsys, tiny):
    for path in (tiny / "tiny" / "val").iterdir():
        path.unlink()
    line = error(capsys, tiny / "run", *on_tiny(tiny))
    assert "val" in line and "tiny" in line


def test_frozen_norms_without_weights(capsys, tmp_path):
    line = error(capsys, tmp_path / "run", "--config.model.resnet.norm=frozen")
    assert "model.resnet.norm" in line and "pretrained.image" in line


def test_a_mesh_that_does_not_divide_multiple(capsys, tmp_path):
    line = error(capsys, tmp_path / "run", "--config.mesh.data=3")
    assert "mesh.data" in line and "batching.multiple" in line


def test_a_checkpoint_of_another_model(capsys, tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1, every=1)
    checkpoints.save(1, {"params": {"other": np.zeros(3)}, "frozen": {}, "average": {}}, {})
    checkpoints.close()
    line = error(capsys, tmp_path / "run", "--config.mode=evaluate", ON_ONE)
    assert "another model" in line and str(tmp_path / "run") in line


def test_a_folder_without_a_checkpoint(capsys, tmp_path):
    line = error(capsys, tmp_path / "run", "--config.mode=evaluate", ON_ONE)
    assert "no checkpoint" in line
