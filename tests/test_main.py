import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lmseg_jax import main
from lmseg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def runs(monkeypatch):
    """Stand-ins for the runs, which note how they were called; JAX is set up already."""
    called = []
    for mode, name in main.RUNS.items():
        module = types.ModuleType(name)
        module.run = lambda config, workdir, mode=mode: called.append((mode, config.mode, workdir))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(main, "start", lambda options: None)
    return called


@pytest.mark.parametrize("mode", ["train", "evaluate", "pretrain", "words"])
def test_the_mode_of_the_config_chooses_the_run(runs, mode):
    argv = ["--config", "demo", "--workdir", "runs/x", f"--config.mode={mode}"]
    assert main.main(argv) == 0
    assert runs == [(mode, mode, Path("runs/x"))]


def test_the_status_of_a_run_is_that_of_the_program(runs, monkeypatch):
    monkeypatch.setattr(sys.modules["lmseg_jax.train"], "run", lambda config, workdir: 130)
    assert main.main(["--config=demo", "--workdir=x"]) == 130


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=demo", "--workdir=x", "--config.sed=1"], "--config.sed: no such key"),
        (["--config=demo", "--workdir=x", "--config.seed=-1"], "config.seed = -1: is below 0"),
        (["--config=demo", "--workdir=x", "--config.pretrained.image="], "frozen norms need weig"),
        (["--config=nothing", "--workdir=x"], "--config nothing: no such file"),
        (["--config=demo"], "required: --workdir"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_2(runs, capsys, argv, message):
    assert main.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1
    assert runs == []


def test_debug_raises_the_error(runs):
    with pytest.raises(UserError):
        main.main(["--config=demo", "--workdir=x", "--config.seed=-1", "--debug"])


@pytest.mark.parametrize(
    ("asked", "multiple", "cores", "expected"),
    [
        (0, 8, 2, 1),
        (0, 8, 1, 1),
        (0, 8, 64, 8),
        (0, 6, 8, 3),
        (0, 1, 16, 1),
        (0, 8, 7, 2),
        (4, 8, 2, 4),
    ],
)
def test_a_cpu_is_divided_into_the_most_devices_of_two_cores_that_fit(
    asked, multiple, cores, expected
):
    assert main.cpu_devices(asked, multiple=multiple, cores=cores) == expected


def test_a_fresh_process_gets_the_devices_asked_for(tmp_path):
    script = (
        "import sys, types, jax\n"
        "from lmseg_jax import main\n"
        "module = types.ModuleType('lmseg_jax.train')\n"
        "module.run = lambda config, workdir: print(\n"
        "    jax.device_count(), jax.config.jax_compilation_cache_dir)\n"
        "sys.modules['lmseg_jax.train'] = module\n"
        "sys.exit(main.main(['--config=demo', '--workdir=x', '--config.mesh.cpu_devices=3']))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "HOME": "/home/me",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "/home/me/.cache/lmseg_jax/xla"]


def test_one_of_several_processes_leaves_at_once_after_an_error():
    """A thread that goes on would hold an ordinary exit back, as JAX's farewell to the others."""
    program = (
        "import threading, time; from lmseg_jax import main\n"
        "threading.Thread(target=time.sleep, args=(300,)).start()\n"
        "def fail(argv): raise RuntimeError('no room')\n"
        "main.one_of_several(fail, [])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "no room" in done.stderr
    assert "error: this process ended; the same command goes on from there" in done.stderr
