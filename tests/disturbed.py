"""A run that meets with an accident: `python -m tests.disturbed ACCIDENT NUMBER [FLAGS OF MAIN]`.

ACCIDENT is one of
  operation: SIGKILL at the n-th file operation below the checkpoints after a save has begun
  moment:    SIGKILL n milliseconds after the first update has begun
  full:      from the second save on no file may be larger than n bytes
  compiles:  none; what is compiled between the n-th update and the last is printed
"""

import itertools
import os
import resource
import signal
import sys
import threading

import jax

from lmseg_jax import assembly, main, train
from lmseg_jax.checkpoint import Checkpoints

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # Python's audit events
COMPILATION = "/jax/core/compile/backend_compile_duration"  # also of a program that was kept
COMPILED = "compiled among the updates:"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_each_save(begin) -> None:
    """Calls `begin(checkpoints)` when the trainer is about to write a checkpoint."""

    class Watched(Checkpoints):
        def save(self, step, state, run, *, force=False):
            if force or step % self.every == 0:
                begin(self)
            return super().save(step, state, run, force=force)

    train.Checkpoints = Watched


def operation(number: int) -> None:
    saving, counted = threading.Event(), itertools.count(1)

    def watch(event, arguments):
        if saving.is_set() and event in OPERATIONS and assembly.CHECKPOINTS in str(arguments[0]):
            if next(counted) == number:
                die()

    at_each_save(lambda checkpoints: saving.set())
    sys.addaudithook(watch)


def moment(milliseconds: int) -> None:
    gradient, begun = train.gradient, threading.Event()

    def watched(*arguments, **settings):
        if not begun.is_set():
            begun.set()
            threading.Timer(milliseconds / 1000, die).start()
        return gradient(*arguments, **settings)

    train.gradient = watched


def full(size: int) -> None:
    saves = itertools.count(1)

    def begin(checkpoints):
        if next(saves) > 1:
            checkpoints.wait()  # the first is whole
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    at_each_save(begin)


def compiles(number: int) -> None:
    updating = threading.Event()

    class Watched(train.Loader):
        def iterate(self, first, last):
            for update in super().iterate(first, last):
                if update.step + 1 == number:
                    updating.set()
                yield update
            updating.clear()

    def tell(event, seconds, **named):
        if updating.is_set() and event == COMPILATION:
            print(f"{COMPILED} {named}", flush=True)

    train.Loader = Watched
    jax.monitoring.register_event_duration_secs_listener(tell)


ACCIDENTS = {"operation": operation, "moment": moment, "full": full, "compiles": compiles}

if __name__ == "__main__":
    accident, number, *flags = sys.argv[1:]
    ACCIDENTS[accident](int(number))
    sys.exit(main.main(flags))
