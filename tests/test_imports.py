"""The table of layers, and who may use which library."""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Highest first; a module imports from its own layer and from lower ones.
LAYERS = {
    "commands": (
        "main cli bench bench_loader pillow_recipe data_command plan score convert predict"
        " bench_step bench_parts bench_text bench_matcher bench_inference export app"
        " experiments experiment_jobs experiment_tables experiment_plots suites"
        " figure taxonomy_command"
    ),
    "runs": "train evaluate pretrain pretrain_captions pretrain_classifier segmenter words",
    "parts": (
        "assembly baselines checkpoint contact_sheet flops label_space logs losses metrics"
        " optimizer postprocess programs report scoring segmentation sharding state step visualize"
        " charts comparison taxonomy_report upsampling"
        " pipeline models pretrained exported finetuning loading prediction_files stablehlo"
    ),
    "pieces": "matcher tokenizer configuration configuration_rules datasets",
    "ground": "taxonomy errors heap",
}
HEIGHT = {
    name: height for height, names in enumerate(reversed(LAYERS.values())) for name in names.split()
}

# Names on the package index where they differ from those that are imported.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "huggingface_hub": "huggingface-hub",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}

SOURCES = sorted((ROOT / "lmseg_jax").rglob("*.py"))
NAMES = ["/".join(path.relative_to(ROOT / "lmseg_jax").parts) for path in SOURCES]


@functools.cache
def imported(path):
    """Dotted names of everything that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def libraries(path):
    """Top-level packages that a file imports, the standard library left out."""
    return {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)


def part(path):
    """The file's own entry in the table: a module's name, or its folder's."""
    return path.relative_to(ROOT / "lmseg_jax").with_suffix("").parts[0]


def test_every_module_has_a_layer():
    unknown = {part(path) for path in SOURCES} - set(HEIGHT) - {"__init__"}
    assert not unknown, f"not in the table of layers: {sorted(unknown)}"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_modules_import_only_downward(path):
    if path == ROOT / "lmseg_jax" / "__init__.py":
        return  # the package's face may show anything
    for name in imported(path):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == "lmseg_jax" and target in HEIGHT:
            assert HEIGHT[target] <= HEIGHT[part(path)], f"{name} lies above {path.name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("orbax", "checkpoint"),
        ("grain", "pipeline"),
        ("tensorflow_datasets", "datasets"),
        ("transformers", "tokenizer"),
        ("tensorboardX", "logs"),
    ],
)
def test_some_libraries_belong_to_one_place(library, allowed):
    users = {part(path) for path in SOURCES if library in libraries(path)}
    assert users <= {allowed}


def test_loading_data_needs_no_device():
    for path in SOURCES:
        if part(path) in ("datasets", "pipeline"):
            assert not libraries(path) & {"jax", "jaxlib", "flax", "optax"}, path


def test_nothing_needs_torch_or_tensorflow():
    for path in SOURCES:
        assert not libraries(path) & {"torch", "tensorflow"}, path


def test_configs_import_nothing_of_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        assert libraries(path) <= {"configs", "ml_collections"}, path


def test_every_library_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [x for key in extras if key != "test" for x in extras[key]]
    declared = {re.split(r"[<>=\[ ]", line)[0] for line in lines}
    used = set().union(*map(libraries, SOURCES)) - {"lmseg_jax"}
    assert {DISTRIBUTIONS.get(name, name) for name in used} <= declared


def test_the_tests_have_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name, lines in extras.items():
        assert set(lines) <= set(extras["test"]), name
