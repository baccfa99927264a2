"""How the C library hands out memory, which decides what large CPU buffers cost.

Both functions leave C libraries other than glibc alone.
"""

import ctypes
import platform

GLIBC = platform.libc_ver()[0] == "glibc"


def keep_freed_memory() -> None:
    """Tells glibc not to give memory back to the system whenever a computation ends.

    XLA's CPU programs take their buffers anew in each call, and touching fresh pages costs: without
    it the demo trained 54 images/s instead of 44, and an update of the paper's model at 256 had
    60,000 page faults instead of 265,000 (docs/speed.md). From here on buffers come from heaps,
    whatever their size. The heaps stay several: with a single arena for all threads the demo's
    updates took twice the time.
    """
    if GLIBC:
        trim_threshold, mmap_max = -1, -4  # of mallopt(3)
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)


def give_back_freed_memory() -> None:
    """Gives the system what is free at this moment, whole pages of every heap; 30 ms for 3 GB.

    For after work that is done seldom and by threads of its own, like the writing of a checkpoint:
    each thread fills another heap, so without it a process would grow until all of them have held
    the most that a thread needs (docs/scale.md).
    """
    if GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
