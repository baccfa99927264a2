"""Memory that a computation has freed is there for the next one, until it is given back."""

import subprocess
import sys

import pytest

from lmseg_jax.heap import GLIBC

pytestmark = pytest.mark.skipif(not GLIBC, reason="the settings are those of glibc")

GIVEN_BACK = """
import re
from pathlib import Path
import numpy as np
from lmseg_jax import heap

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

heap.keep_freed_memory()
before = resident()
arrays = [np.ones(2**20) for _ in range(32)]
between = arrays[::8]
del arrays
kept = resident()
heap.give_back_freed_memory()
print(before, kept, resident())
"""
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


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_what_is_free_goes_back_to_the_system_when_asked():
    """32 arrays of 8 MiB, of which four stay, among those that are freed."""
    done = subprocess.run(
        [sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True
    )
    before, kept, after = map(float, done.stdout.split())
    assert kept > before + 240
    assert after < before + 48
