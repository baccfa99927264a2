"""How the C library hands out memory, which decides what large CPU buffers cost."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Tells glibc not to give memory back to the system whenever a computation ends.

    XLA's CPU programs take their buffers anew in each call, and touching fresh pages costs: without
    it the demo trained 54 images/s instead of 44, and an update of the paper's model at 256 had
    60,000 page faults instead of 265,000 (docs/speed.md). From here on buffers come from heaps,
    whatever their size. The heaps stay several: with a single arena for all threads the demo's
    updates took twice the time. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # of mallopt(3)
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)
