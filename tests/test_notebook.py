"""notebooks/evaluate.ipynb: every cell runs, on the CPU, with the model that is shipped."""

import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

import lmseg_jax

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "notebooks/evaluate.ipynb"


class ThisPython(KernelManager):
    """Runs cells with the interpreter of the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=arguments, display_name="tests", language="python")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_no_outputs_are_committed(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # so the first cell installs nothing
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    client = nbclient.NotebookClient(
        notebook.copy(),
        timeout=300,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    done = client.execute()
    printed = "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])
    )
    assert "world_patterns" in printed and "checkered object: " in printed
    assert (tmp_path / "panels.png").stat().st_size > 10_000
    assert "safetensors: read back" in printed
    assert list(lmseg_jax.load(tmp_path / "exported").taxonomies) == [
        "world_patterns",
        "world_colors",
        "world_coarse",
    ]
