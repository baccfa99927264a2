"""A checkpoint that `lmseg convert` wrote: `weights/` (arrays) and `manifest.json` (what they are).

The manifest is written last, so a folder without one is no checkpoint.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from lmseg_jax import checkpoint, report, state
from lmseg_jax.errors import UserError
from lmseg_jax.pretrained.mapping import Tree

FORMAT, VERSION = "lmseg-converted", 1
MANIFEST, WEIGHTS = "manifest.json", "weights"


@dataclass(frozen=True)
class Converted:
    """Foreign weights under our own paths.

    Attributes:
      source: format, name and size of what was read.
      model: `config.model` as JSON; of a pretrained tower only the keys that its weights decide.
      params, frozen: nested dicts of float32 arrays, as in `state.TrainState`.
      taxonomies: {name: {"names": [...], "things": [bool, ...] or None where that is unknown}}.
      test: {"short_side", "max_side"} that images are resized to, or None.
    """

    source: dict
    model: dict
    params: Tree
    frozen: Tree
    taxonomies: dict[str, dict] = field(default_factory=dict)
    test: dict | None = None

    def joined(self) -> Tree:
        """`params` and `frozen` as one nested dict."""
        return state.join(self.params, self.frozen)


def is_one(folder: Path) -> bool:
    """Whether a folder holds such a checkpoint."""
    return (folder / MANIFEST).is_file()


def write(folder: Path, found: Converted, *, force: bool = False) -> None:
    """Writes the checkpoint, reads it back, compares, and only then writes the manifest.

    Args:
      folder: made if it is not there.
      found: what to write.
      force: replace a checkpoint that is there.

    Raises:
      UserError: the folder holds something and `force` is off, or something else under our names.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for --output")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise UserError(f"{folder}: is not empty; name another --output, or add --force")
        if (folder / WEIGHTS).exists() and not checkpoint.is_tree(folder / WEIGHTS):
            raise UserError(f"{folder / WEIGHTS}: is no checkpoint of ours; name another --output")
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)
    tree = {"params": found.params, "frozen": found.frozen}
    checkpoint.write_tree(folder / WEIGHTS, tree)
    if not _equal(checkpoint.read_tree(folder / WEIGHTS), tree):
        raise UserError(f"{folder}: does not hold what was written; check the disk and try again")
    report.write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "version": VERSION,
            "source": found.source,
            "model": found.model,
            "taxonomies": found.taxonomies,
            "test": found.test,
        },
    )


def read(folder: Path) -> Converted:
    """The checkpoint of a folder.

    Raises:
      UserError: it holds none, one of another version, or a broken one.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder}: has no {MANIFEST}, so lmseg convert did not finish here; run it again, or"
            " name another folder"
        )
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise UserError(
                f"{path}: is {manifest['format']} version {manifest['version']}, this program reads"
                f" {FORMAT} version {VERSION}; convert the weights again"
            )
        facts = {key: manifest[key] for key in ("source", "model", "taxonomies", "test")}
        if not all(isinstance(facts[key], dict) for key in ("source", "model", "taxonomies")):
            raise TypeError("a table is missing")
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: broken ({error}); convert the weights again") from error
    tree = checkpoint.read_tree(folder / WEIGHTS)
    return Converted(params=tree.get("params", {}), frozen=tree.get("frozen", {}), **facts)


def _equal(read: Tree, written: Tree) -> bool:
    """Same paths and same bits; branches without a leaf do not count."""
    one, other = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (read, written)
    )
    return one.keys() == other.keys() and all(
        one[path].dtype == leaf.dtype and np.array_equal(one[path], leaf)
        for path, leaf in other.items()
    )
