"""Several runs of `lmseg experiments` at a time, each on cores of its own."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lmseg_jax.suites import Row

STOPPED = 130  # exit status of a run that was asked to stop


def run_all(
    missing: Sequence[tuple[int, Row]], run: Callable[[int, int, Row], int], *, jobs: int
) -> int:
    """Makes runs, `jobs` at a time; what scores another row's model waits for that row.

    On Linux each has a share of the cores of its own: small models gain little from more than one.

    Args:
      missing: seed and row of each.
      run: (number from 1, seed, row) -> exit status.
      jobs: 1 to the number of cores.

    Returns:
      0, or the exit status of a run that was stopped; no other is begun then.
    """
    chains = {}
    for number, (seed, row) in enumerate(missing, start=1):
        chains.setdefault((seed, row.of or row.name), []).append((number, seed, row))
    stopped, ready, free = threading.Event(), threading.Event(), shares(jobs)

    def settle() -> None:
        if cores := free.pop():
            os.sched_setaffinity(0, cores)  # of this thread, and of the processes it starts

    def follow(chain: Sequence[tuple[int, int, Row]]) -> int:
        ready.wait()  # a thread that Ctrl-C meets while it is made would be waited for by nobody
        for number, seed, row in chain:
            if stopped.is_set():
                return STOPPED
            try:
                status = run(number, seed, row)
            except BaseException:
                stopped.set()
                raise
            if status:
                stopped.set()
                return status
        return 0

    with ThreadPoolExecutor(jobs, initializer=settle) as pool:
        try:
            begun = [pool.submit(follow, chain) for chain in chains.values()]
            ready.set()
            statuses = [future.result() for future in begun]
        except KeyboardInterrupt:  # it came to the runs, too, which now save what they have
            stopped.set()
            ready.set()
            return STOPPED
    return max(statuses, default=0)


def shares(jobs: int) -> list[set[int]]:
    """The cores of each of some runs at a time; empty sets where it is the system that decides."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return [set()] * jobs
    cores = np.array_split(sorted(os.sched_getaffinity(0)), jobs)
    return [set(share.tolist()) for share in cores]
