"""The `lmseg` script: the name of a subcommand leads to its module."""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import lmseg_jax
from lmseg_jax import heap
from lmseg_jax.errors import UserError

COMMANDS = {
    "app": ("lmseg_jax.app", "a page on which images are segmented in any words"),
    "bench": ("lmseg_jax.bench", "measure the speed of loader, update, matcher and answer"),
    "convert": ("lmseg_jax.convert", "read CLIP, ImageNet or MaskFormer weights"),
    "data": (
        "lmseg_jax.data_command",
        "write a card, check a dataset, look at samples, list cards",
    ),
    "experiments": ("lmseg_jax.experiments", "the comparisons of the paper: runs, tables, plots"),
    "export": ("lmseg_jax.export", "write a trained model for others to use"),
    "figure": ("lmseg_jax.figure", "draw embeddings, costs, or one image in several taxonomies"),
    "plan": ("lmseg_jax.plan", "what a run would take on devices that need not be here"),
    "predict": ("lmseg_jax.predict", "segment images in any words"),
    "score": ("lmseg_jax.score", "score the saved predictions of any model"),
    "taxonomy": ("lmseg_jax.taxonomy_command", "compare label sets, and join them in one card"),
}

DEBUG = "--debug"
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or a user's share of it


def guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command; an error that the user can mend becomes one line and exit status 2.

    Ctrl-C becomes one line and status 130. With `--debug` among the arguments both are raised with
    their traceback. Output into a pipe that was closed ends the command with status 141, a full
    disk with one line and status 2.
    """
    try:
        status = command(argv)
        sys.stdout.flush()
        return status
    except UserError as error:
        if DEBUG in argv:
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if DEBUG in argv:
            raise
        print("stopped; the same command starts again from what was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in FULL or DEBUG in argv:
            raise
        print(f"error: {error}; make room, then the same command goes on", file=sys.stderr)
        return 2


def usage() -> str:
    """What `lmseg --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lmseg COMMAND [ARGUMENTS] [--debug]",
            "",
            *lines,
            "",
            "lmseg COMMAND --help says more. Training: python -m lmseg_jax.main --help",
        ]
    )


def run(argv: Sequence[str]) -> int:
    """Finds the subcommand and hands it the other arguments."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(lmseg_jax.__version__)
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"lmseg {argv[0]}: no such command; there are: {', '.join(COMMANDS)}")
    heap.keep_freed_memory()
    module = importlib.import_module(COMMANDS[argv[0]][0])
    return module.main([argument for argument in argv[1:] if argument != DEBUG]) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for an error the user can mend, or the subcommand's own."""
    return guarded(run, sys.argv[1:] if argv is None else argv)


def start(name: str) -> NoReturn:
    """Ends `python -m lmseg_jax.<module>` as `lmseg NAME` with the same arguments ends."""
    sys.exit(main([name, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
