"""A built wheel, used from a folder that knows nothing of the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def relative(folder, pattern):
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_a_wheel_carries_sources_assets_configs_and_cards(wheel):
    expected = relative("lmseg_jax", "*.py")
    expected |= relative("lmseg_jax/assets", "*")
    expected |= {f"lmseg_jax/{name}" for name in relative("configs", "*.py")}
    expected |= {f"lmseg_jax/{name}" for name in relative("data", "*")}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= names
    shipped = {f"lmseg_jax/assets/worlds/{name}" for name in ("manifest.json", "model.safetensors")}
    assert shipped <= names
    assert not [name for name in names if name.startswith(("tests", "configs", "data"))]


@pytest.mark.slow
def test_configs_and_cards_are_found_by_name_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import lmseg_jax\n"
        "from lmseg_jax import configuration\n"
        "from lmseg_jax.datasets.card import load_card\n"
        "config = configuration.load('demo', ['--config.seed=5'])\n"
        "configuration.check(config)\n"
        "model = lmseg_jax.load('worlds')\n"
        "assert list(model.taxonomies) == list(config.data.train), model.taxonomies\n"
        "print(lmseg_jax.__file__, config.seed, *(load_card(n).name for n in config.data.train))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, seed, *cards = done.stdout.split()
    assert Path(place).is_relative_to(site)
    assert seed == "5"
    assert cards == ["world_patterns", "world_colors", "world_coarse"]
