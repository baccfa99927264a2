"""Memory that a computation has freed is there for the next one, however large."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc"
)

PAGES = 2**16  # 256 MiB, far above what glibc keeps by itself
FAULTS = """
import resource, sys
import numpy as np
from lmseg_jax.heap import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(int(sys.argv[2]) * 4096, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fill()
print(fill())
"""


def faults(mode):
    """Page faults of filling 256 MiB that were filled and freed before."""
    command = [sys.executable, "-c", FAULTS, mode, str(PAGES)]
    # huge pages, where the system gives them to everybody, make few faults of many
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_large_buffer_is_not_faulted_in_twice():
    assert faults("keep") < PAGES / 100 < faults("as it comes")
