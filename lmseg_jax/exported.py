"""An export on disk: what `lmseg export` writes and `lmseg_jax.load` reads (docs/export.md).

`manifest.json` says what the arrays are and has the SHA-256 of every other file. The arrays are in
`weights/` (Orbax), in `model.safetensors`, or in both. A text tower that equals a shipped one is
not stored again: the manifest names it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from lmseg_jax import checkpoint, report
from lmseg_jax.datasets.recipe import TestRule
from lmseg_jax.errors import UserError
from lmseg_jax.label_space import LabelSpace
from lmseg_jax.pretrained import mapping, safetensors_file, sources, weights
from lmseg_jax.pretrained.mapping import Tree
from lmseg_jax.taxonomy import Category, Taxonomy

FORMAT, VERSION = "lmseg-export", 1
MANIFEST = "manifest.json"
FORMS = {"orbax": "weights", "safetensors": "model.safetensors"}  # where each has its arrays
TEXT = "text/embeddings"  # f32 [M, K, D], always float32
TOWER = "frozen/text_encoder/"
AGAIN = "export the model again"


@dataclass(frozen=True)
class Exported:
    """A model as an export holds it.

    Attributes:
      model: `config.model` of its run, as JSON.
      arrays: by path, "params/...", "frozen/..." and `TEXT`.
      spaces: label spaces of training by name.
      text_free: True if nothing of it reads words.
      origin: where it comes from, as JSON.
      tower: name and SHA-256 of the shipped weights that its text tower is; None = in `arrays`.
    """

    model: dict
    arrays: Mapping[str, np.ndarray]
    spaces: dict[str, LabelSpace]
    text_free: bool = False
    origin: dict = field(default_factory=dict)
    tower: tuple[str, str] | None = None

    @property
    def text(self) -> np.ndarray | None:
        """Embeddings of the names, f32 [M, K, D]; None where names are numbers."""
        return self.arrays.get(TEXT)


def is_one(folder: Path) -> bool:
    """Whether a folder holds an export, whole or broken later."""
    try:
        return json.loads((folder / MANIFEST).read_text())["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def write(folder: Path, found: Exported, *, forms: Sequence[str], half: bool = False) -> dict:
    """Writes the arrays of an export.

    Args:
      folder: there, and holding nothing of these names.
      found: what to write.
      forms: keys of `FORMS`.
      half: store the safetensors file in float16, but for the embeddings of names.

    Returns:
      The manifest, which `seal` completes and writes.

    Raises:
      UserError: a value is too large for float16.
    """
    arrays, tower = _without_shipped_tower(found)
    if "orbax" in forms:
        checkpoint.write_tree(folder / FORMS["orbax"], _nested(arrays))
    if "safetensors" in forms:
        kept = {name: _stored(name, array, half=half) for name, array in arrays.items()}
        metadata = {"format": FORMAT, "manifest": MANIFEST}
        place = folder / FORMS["safetensors"]
        safetensors.numpy.save_file(kept, place, metadata=metadata)
        place.chmod(0o644)  # the library's files are their owner's only
    return {
        "format": FORMAT,
        "version": VERSION,
        "arrays": {form: FORMS[form] for form in FORMS if form in forms},
        "half": half,
        "text_free": found.text_free,
        "text_tower": tower and {"name": tower[0], "sha256": tower[1]},
        "model": found.model,
        "taxonomies": {name: dataclasses.asdict(space) for name, space in found.spaces.items()},
        "origin": found.origin,
    }


def seal(folder: Path, manifest: dict) -> None:
    """Adds the digests of all other files to the manifest and writes it."""
    digests = _digests(folder, [path for path in folder.rglob("*") if path.is_file()])
    digests.pop(MANIFEST, None)
    report.write_json(folder / MANIFEST, manifest | {"files": digests})


def read(folder: Path, *, form: str | None = None) -> Exported:
    """The export of a folder; its arrays are compared with their digests.

    Args:
      folder: that `is_one`.
      form: key of `FORMS` that it holds; None = the first it holds.

    Raises:
      UserError: it is of another version, or broken.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["version"] != VERSION:
            raise UserError(
                f"{path}: is version {manifest['version']}, this program reads version {VERSION};"
                f" {AGAIN}"
            )
        form = form or next(iter(manifest["arrays"]))
        place = folder / FORMS[form]
        listed = dict(manifest["files"])
        model, origin = dict(manifest["model"]), dict(manifest["origin"])
        spaces = {name: _space(entry) for name, entry in manifest["taxonomies"].items()}
        tower, text_free = manifest["text_tower"], bool(manifest["text_free"])
        tower = tower and (str(tower["name"]), str(tower["sha256"]))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise UserError(f"{path}: broken ({error!r}); {AGAIN}") from error
    _check(folder, place, listed)
    if form == "orbax":
        arrays = dict(mapping.paths(checkpoint.read_tree(place)))
    else:
        arrays, _ = safetensors_file.read(place)
        arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return Exported(model, arrays, spaces, text_free, origin, tower or None)


def filled(shapes: tuple[Tree, Tree], found: Exported, *, where: Path) -> tuple[Tree, Tree]:
    """(params, frozen) of an export in the structure of `shapes`.

    Raises:
      UserError: an array is missing, has another shape, or the text tower is one that this version
        does not ship.
    """
    wanted = {"params": shapes[0], "frozen": shapes[1]}
    arrays = {name: array for name, array in found.arrays.items() if name != TEXT}
    if found.tower:
        name, digest = found.tower
        if name not in sources.SHIPPED or _digest(sources.find(name)) != digest:
            raise UserError(
                f"{where / MANIFEST}: needs the text tower of {name} with SHA-256 {digest[:12]}...,"
                f" which this lmseg_jax does not ship; use the version that exported it, or {AGAIN}"
            )
        tower = weights.fill_text(weights.read(name), shapes[1]["text_encoder"])
        arrays |= {TOWER + path: leaf for path, leaf in mapping.paths(tower)}
    checkpoint.compare(wanted, _nested(arrays), where=where)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return arrays.get(name, np.zeros(shape.shape, shape.dtype))  # those without elements

    tree = jax.tree_util.tree_map_with_path(leaf, wanted)
    return tree["params"], tree["frozen"]


def arrays_of(params: Tree, frozen: Tree, *, text: np.ndarray | None) -> dict[str, np.ndarray]:
    """`Exported.arrays` of a model."""
    tree = {"params": params, "frozen": frozen} | ({} if text is None else {"text": text})
    found = {name: np.asarray(leaf) for name, leaf in mapping.paths(tree) if np.size(leaf)}
    if text is not None:
        found[TEXT] = found.pop("text")
    return found


def _nested(arrays: Mapping[str, np.ndarray]) -> Tree:
    tree = {}
    for path, array in arrays.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = array
    return tree


def _stored(name: str, array: np.ndarray, *, half: bool) -> np.ndarray:
    if not half or name == TEXT:
        return np.ascontiguousarray(array)
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise UserError(
            f"--half: {name} has values above 65504, which float16 cannot hold; leave --half out"
        )
    return np.ascontiguousarray(array, np.float16)


def _without_shipped_tower(
    found: Exported,
) -> tuple[dict[str, np.ndarray], tuple[str, str] | None]:
    """The arrays without a text tower that is shipped, and which one that is."""
    tower = {name: array for name, array in found.arrays.items() if name.startswith(TOWER)}
    for source in sources.SHIPPED if tower else ():
        shipped = weights.read(source)
        if any(found.model["text"][key] != size for key, size in shipped.text_config.items()):
            continue
        filled = weights.fill_text(shipped, _nested(tower)["frozen"]["text_encoder"])
        if all(np.array_equal(tower[TOWER + path], leaf) for path, leaf in mapping.paths(filled)):
            rest = {name: array for name, array in found.arrays.items() if name not in tower}
            return rest, (source, _digest(sources.find(source)))
    return dict(found.arrays), None


def _space(entry: dict) -> LabelSpace:
    """The label space that `dataclasses.asdict` wrote."""
    taxonomy, test = entry["taxonomy"], entry["test"]
    categories = tuple(
        Category(
            id=int(row["id"]),
            name=str(row["name"]),
            thing=bool(row["thing"]),
            color=tuple(int(value) for value in row["color"]),
            synonyms=tuple(str(word) for word in row["synonyms"]),
        )
        for row in taxonomy["categories"]
    )
    return LabelSpace(
        Taxonomy(str(taxonomy["name"]), categories, tuple(int(i) for i in taxonomy["void"])),
        test and TestRule(int(test["short_side"]), int(test["max_side"])),
        float(entry["object_mask"]),
        float(entry["overlap"]),
        str(entry["task"]),
    )


def _check(folder: Path, place: Path, listed: Mapping[str, str]) -> None:
    """Compares the files of one form with their digests in the manifest."""
    paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    found = _digests(folder, paths)
    name = place.relative_to(folder).as_posix()
    wanted = {k: v for k, v in listed.items() if k == name or k.startswith(f"{name}/")}
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            what = "missing" if key not in found else "not what was exported"
            raise UserError(f"{folder / key}: is {what}; copy the export again, or {AGAIN}")
    if not wanted:
        raise UserError(f"{folder / MANIFEST}: lists no {name}; {AGAIN}")


def _digests(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of files by their path below a folder, sorted."""
    return {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(paths)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
