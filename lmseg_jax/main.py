"""Trains, evaluates or pre-trains what a config describes.

python -m lmseg_jax.main --config configs/demo.py --workdir runs/demo [--config.key=value] [--debug]
"""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lmseg_jax import configuration, heap
from lmseg_jax.cli import guarded
from lmseg_jax.configuration import Options

RUNS = {
    "train": "lmseg_jax.train",
    "evaluate": "lmseg_jax.evaluate",
    "pretrain": "lmseg_jax.pretrain",
    "words": "lmseg_jax.words",
}


def cpu_devices(asked: int, *, multiple: int, cores: int) -> int:
    """How many devices one CPU is divided into.

    Two threads of one device took 0.8 of the time of two devices of one thread (docs/speed.md);
    how many cores one device can feed was not measured beyond two.

    Args:
      asked: this many; 0 = the largest divisor of `multiple` that leaves each two cores.
      multiple: images that every bucket holds a multiple of.
      cores: processor cores this process may use.
    """
    return asked or max(n for n in range(1, max(cores // 2, 1) + 1) if multiple % n == 0)


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(options: Options) -> None:
    """Sets JAX up: processes, simulated CPU devices, compilation cache. No device is touched yet.

    One of several processes keeps its CPU whole: queued programs on more devices can deadlock.
    Where there is an accelerator the CPU's devices are made, too, but not used.
    """
    heap.keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when the runtime is loaded
    import jax

    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR sets it
        folder = Path.home() / ".cache" / "lmseg_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if options.distributed:
        jax.distributed.initialize(
            options.coordinator or None,
            options.processes,
            options.process,
            heartbeat_timeout_seconds=options.heartbeat,
        )
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX notes it and goes on; train.py saves
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        mesh, batching = options.config.mesh, options.config.batching
        count = cpu_devices(
            mesh.cpu_devices,
            multiple=batching.multiple,
            cores=1 if options.distributed else usable_cores(),
        )
        jax.config.update("jax_num_cpu_devices", count)


def run(argv: Sequence[str]) -> int:
    """Reads the command line, checks the config, and hands over to the run of its mode."""
    options = configuration.parse(argv)
    configuration.check(options.config)
    start(options)
    module = importlib.import_module(RUNS[options.config.mode])
    if options.distributed:
        return one_of_several(lambda _: module.run(options.config, options.workdir) or 0, argv)
    return module.run(options.config, options.workdir) or 0


def one_of_several(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs one of a job's processes; after an error it leaves at once, and so the others end, too.

    An ordinary exit would wait for the others, which wait for this one in the midst of an update.
    """
    try:
        status = guarded(command, argv)
    except BaseException:
        traceback.print_exc()
        print("error: this process ended; the same command goes on from there", file=sys.stderr)
        status = 1
    if status not in (0, 130):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for an error the user can mend, or the run's own."""
    return guarded(run, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
