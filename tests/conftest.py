"""Eight fake CPU devices, strict broadcasting, and a compilation cache for every test."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a network
# Kept programs spare the processes that tests start, and the next run, their compilation.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `from configs import base` and `import lmseg_jax` from a checkout
    sys.path.insert(0, str(ROOT))

from tests.quick import QUICK  # noqa: E402

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

import jax  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # meshes take the first n
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain workers read absl flags

# Files that take minutes, longest first: begun early, they leave no core idle at the end.
LONG = (
    "test_train.py",
    "test_endurance.py",
    "test_step.py",
    "test_bench_step.py",
    "test_finetuning.py",
    "test_own_data.py",
    "test_main.py",
)


def pytest_collection_modifyitems(items):
    """Puts the tests of long files first; the order within a file stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter):
    """Lists which commands of README and docs were run, and which were parsed."""
    passed = terminalreporter.getreports("passed")
    said = [text for report in passed for key, text in report.user_properties if key == "documents"]
    if said:
        terminalreporter.section("commands of README and docs")
        for text in sorted(said, key=lambda text: not text.startswith("run:")):
            terminalreporter.line(text)
