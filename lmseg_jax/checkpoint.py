"""Checkpoints on disk; the only file that knows Orbax.

A folder holds one sub-folder an update, `<step>/state` with the arrays and `<step>/run` with JSON.
A checkpoint appears under its number only when it is complete.
"""

import contextlib
import functools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from logging import CRITICAL, getLogger
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from lmseg_jax import heap
from lmseg_jax.errors import UserError

UNFINISHED = "*.orbax-checkpoint-tmp*"  # what a killed process leaves behind
# Bytes of a slice from which replicas share the writing of an array; each shape is one more
# program to compile, so a small array is written by its first replica.
SHARED = 2**22


class Checkpoints:
    """The checkpoints of one run, written while training goes on.

    Args:
      folder: where they live; made if it is not there.
      keep: the newest that are kept.
      every: updates between two of them.
    """

    def __init__(self, folder: str | Path, *, keep: int, every: int):
        self.folder = Path(folder).resolve()
        self.every = every
        self.writing = False
        self._remove_unfinished()
        _tell_once()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = _manager(self.folder, options)

    def save(self, step: int, state, run: dict, *, force: bool = False) -> bool:
        """Starts to write a checkpoint if one is due; the arrays may be donated afterwards.

        Args:
          step: updates made so far.
          state: any tree of global arrays, NumPy arrays and numbers.
          run: JSON-able facts saved beside it, such as the fingerprint.
          force: write although `step` is no multiple of `every`.

        Returns:
          Whether it is being written; False too if this step is there already.

        Raises:
          UserError: this checkpoint or the one before it cannot be written.
        """
        if self.writing and not self.manager.is_saving_in_progress():
            self.wait()  # takes no time: a failure is told now, not when the next is due
            heap.give_back_freed_memory()
        if (step % self.every and not force) or step in self.manager.all_steps():
            return False
        saved = {path: _saveable(leaf) for path, leaf in _flat(state).items() if np.size(leaf)}
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_nested(saved)), run=ocp.args.JsonSave(run)
        )
        with self._failures():
            self.writing = self.manager.save(step, args=arguments, force=True)
        return self.writing

    def latest(self) -> int | None:
        """Update number of the newest complete checkpoint, None if there is none."""
        return latest(self.folder)

    def restore(self, step: int, abstract_state):
        """The state saved at `step`, in the structure and with the shardings of `abstract_state`.

        Args:
          step: one of the saved updates.
          abstract_state: tree of `jax.ShapeDtypeStruct` with sharding; other leaves come back as
            NumPy arrays. The mesh may differ from the one that saved.

        Raises:
          UserError: the checkpoint holds another tree, shape or dtype.
        """
        self.wait()
        wanted = _flat(abstract_state)
        _compare(wanted, _stored(self.manager, step), self.folder / str(step))
        target = {path: _target(leaf) for path, leaf in wanted.items() if np.size(leaf)}
        target = _nested(target)
        options = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(target, restore_args=options))
        found = _flat(self.manager.restore(step, args=arguments)["state"])
        leaves = [found[path] if path in found else _empty(wanted[path]) for path in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def read_run(self, step: int) -> dict:
        """The facts saved beside the state of `step`."""
        self.wait()
        return _read_run(self.manager, step)

    def wait(self) -> None:
        """Returns when everything saved so far is complete on disk.

        Raises:
          UserError: it cannot be written.
        """
        self.writing = False
        with self._failures():
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        self.manager.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what storage reports into a UserError; older checkpoints stay."""
        try:
            yield
        except Exception as error:  # of the system or the library's storage, by what is wrong
            self._remove_unfinished()
            newest = self.latest()
            onward = "from the start" if newest is None else f"from update {newest}"
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); "
                f"mend that, and the same command goes on {onward}"
            ) from error

    def _remove_unfinished(self) -> None:
        """Removes what a killed or failed process left behind."""
        if jax.process_index() == 0:
            for leftover in self.folder.glob(UNFINISHED):
                shutil.rmtree(leftover, ignore_errors=True)


def read_weights(
    folder: str | Path, *, step: int | None = None, names=("params", "frozen"), expected=None
) -> dict:
    """Some top-level parts of a saved state as NumPy arrays; nothing else is read.

    Args:
      folder: the checkpoints of a run.
      step: which one; None = the newest.
      names: top-level names of the saved state.
      expected: tree of the same top-level names whose leaves have shape and dtype; what comes back
        has its structure. None = nested dicts, keys of digits only become integers.

    Raises:
      UserError: there is no such checkpoint, or it is one of another model.
    """
    folder = Path(folder).resolve()
    step = _existing(folder, step)
    manager = _manager(folder, _reading())
    stored = _stored(manager, step)
    stored = {path: leaf for path, leaf in stored.items() if path.split("/")[0] in names}
    if expected is not None:
        wanted = _flat({name: expected[name] for name in names})
        _compare(wanted, stored, folder / str(step))
    item = _nested({path: np.empty(leaf.shape, leaf.dtype) for path, leaf in stored.items()})
    arguments = ocp.args.PyTreeRestore(
        item,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
        partial_restore=True,
    )
    found = manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
    manager.close()
    if expected is None:
        return _integer_keys(found)
    found = _flat(found)
    leaves = [found[path] if path in found else _empty(wanted[path]) for path in wanted]
    return jax.tree.unflatten(jax.tree.structure({name: expected[name] for name in names}), leaves)


def write_tree(folder: str | Path, tree) -> None:
    """Writes nested dicts of NumPy arrays as one Orbax checkpoint, in a folder of its own.

    Args:
      folder: must not be there yet.
      tree: keys are names or whole numbers; branches without a leaf are not kept.
    """
    logging.set_verbosity(logging.ERROR)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(Path(folder).resolve(), args=ocp.args.PyTreeSave(_nested(_flat(tree))))


def is_tree(folder: str | Path) -> bool:
    """Whether a folder is a checkpoint that `write_tree` wrote, whole or broken later."""
    return (Path(folder) / "_CHECKPOINT_METADATA").is_file()


def read_tree(folder: str | Path) -> dict:
    """What `write_tree` wrote, as NumPy arrays; keys of digits only become integers.

    Raises:
      UserError: there is no such checkpoint, or it is broken.
    """
    logging.set_verbosity(logging.ERROR)
    folder = Path(folder).resolve()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            stored = reader.metadata(folder).item_metadata.tree
            options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            found = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=options))
    except Exception as error:  # of the library, its storage and its JSON, by what is broken
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: no complete checkpoint ({reason}); write it again") from error
    return _integer_keys(found)


def compare(expected, found, *, where: str | Path) -> None:
    """Raises UserError at the first array of one tree that the other does not have alike.

    Args:
      expected: tree of arrays or `jax.ShapeDtypeStruct`.
      found: tree of arrays.
      where: file or folder of `found`, for the message.
    """
    _compare(_flat(expected), _flat(found), Path(where))


def latest(folder: str | Path) -> int | None:
    """Update number of the newest complete checkpoint in a folder, None if there is none."""
    steps = [int(path.name) for path in Path(folder).glob("*") if path.name.isdigit()]
    return max(steps, default=None)


def read_run(folder: str | Path, *, step: int | None = None) -> dict:
    """The facts saved beside a checkpoint, the newest if `step` is None.

    Raises:
      UserError: there is no such checkpoint.
    """
    folder = Path(folder).resolve()
    step = _existing(folder, step)
    manager = _manager(folder, _reading())
    run = _read_run(manager, step)
    manager.close()
    return run


def _tell_once() -> None:
    """From now on a save that fails is told by what is raised alone, see `_failures`.

    The first write that fails ends the event loop. A hundred others, in threads of the library's
    storage, then find it closed, or nobody asks for their result, and Python would print so each
    time.
    """
    getLogger("asyncio").setLevel(CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _tell:
        sys.unraisablehook = functools.partial(_tell, sys.unraisablehook)


def _tell(hook, unraisable) -> None:
    """Passes on what cannot be raised, except that storage called an event loop that is closed."""
    trace = unraisable.exc_traceback
    by_storage = trace and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    if not (by_storage and unraisable.exc_type is RuntimeError):
        hook(unraisable)


def _manager(folder: Path, options) -> ocp.CheckpointManager:
    """Opens a folder without the library's notes; what is an error is raised, too."""
    logging.set_verbosity(logging.FATAL)
    kinds = ocp.type_handlers
    registry = kinds.create_type_handler_registry(
        (jax.Array, kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED)),
        (np.ndarray, kinds.NumpyHandler()),
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "run": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, item_handlers=handlers, options=options)


def _reading() -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)


def _read_run(manager: ocp.CheckpointManager, step: int) -> dict:
    return manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]


def _existing(folder: Path, step: int | None) -> int:
    """The step asked for, or the newest."""
    if not folder.is_dir() or latest(folder) is None:
        raise UserError(f"{folder}: no checkpoint there; train first, or name another folder")
    if step is None:
        return latest(folder)
    if not (folder / str(step)).is_dir():
        raise UserError(f"{folder}: no checkpoint of update {step}; the newest is {latest(folder)}")
    return step


def _flat(tree) -> dict:
    """Leaves by their path, names joined by "/"; so no container type reaches the disk."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(flat: dict) -> dict:
    """Nested dicts with string keys from leaves by path."""
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _integer_keys(tree):
    """Nested dicts with "0", "1", ... turned back to integers."""
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


def _saveable(leaf):
    """Numbers become NumPy arrays: every process may write those."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _target(leaf):
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)


def _empty(leaf):
    """An array of no elements, which is never written."""
    array = np.zeros(np.shape(leaf), leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    return array if sharding is None else jax.device_put(array, sharding)


def _stored(manager: ocp.CheckpointManager, step: int) -> dict:
    """Shape and dtype of every saved array by path."""
    tree = manager.item_metadata(step)["state"]
    tree = getattr(tree, "tree", tree)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in _flat(dict(tree)).items()
    }


def _reason(error: Exception) -> str:
    """What the operating system says where it is at fault, else the error's first line."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number:
        return os.strerror(number)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _compare(wanted: dict, stored: dict, where: Path) -> None:
    """Raises UserError at the first path that differs."""

    def words(leaves: dict, path: str) -> str:
        if path not in leaves or not np.size(leaves[path]):
            return "nothing"
        leaf = _target(leaves[path])
        return f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"

    for path in [*wanted, *(path for path in stored if path not in wanted)]:
        here, there = words(wanted, path), words(stored, path)
        if here != there:
            raise UserError(
                f"{where}: a checkpoint of another model: {path} is {there} there,"
                f" {here} in this run; use the config that made it, or another --workdir"
            )
