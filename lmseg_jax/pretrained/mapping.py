"""Foreign weights into our parameter tree, through one table, strict both ways."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmseg_jax.errors import UserError

Tree = dict  # nested dicts; integer keys where the model has a list


def same(array: np.ndarray) -> np.ndarray:
    """No change: vectors, embeddings, matrices used as x @ w."""
    return array


def linear(array: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return array.T


def convolution(array: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def pointwise(array: np.ndarray) -> np.ndarray:
    """1x1 convolution (out, in, 1, 1) -> (in, out)."""
    return array[:, :, 0, 0].T if array.shape[2:] == (1, 1) else array


@dataclass(frozen=True)
class Rule:
    r"""One line of a table.

    Attributes:
      source: regular expression of the whole foreign name.
      path: ours, keys joined by "/", with \1, \2 ... for the groups of `source`.
      layout: change of axes, a function of the array.
    """

    source: str
    path: str
    layout: Callable[[np.ndarray], np.ndarray] = same


def paths(tree: Tree, *, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each leaf of a nested dict with its path, keys joined by "/"."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from paths(value, prefix=f"{prefix}{key}/")
        else:
            yield prefix + str(key), value


def fill(
    tree: Tree,
    tensors: Mapping[str, np.ndarray],
    *,
    rules: Sequence[Rule],
    drop: Sequence[str] = (),
    name: str,
) -> Tree:
    """A tree of the same structure that holds the foreign weights as float32.

    Args:
      tree: nested dict whose leaves have a `shape`; nothing else of them is read.
      tensors: foreign name -> array.
      rules: the table; the first rule that matches a name decides.
      drop: regular expressions of foreign names that are left out on purpose.
      name: what to call the weights in errors.

    Returns:
      A new tree of float32 NumPy arrays.

    Raises:
      UserError: names every foreign tensor without a place, every one of our arrays without a
        value, every pair of unequal shapes, and every tensor that holds no (or no finite) floats,
        all at once.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in paths(tree)}
    found, unused, unequal, odd = {}, [], [], []
    for source, tensor in tensors.items():
        if any(re.fullmatch(pattern, source) for pattern in drop):
            continue
        path, layout = _place(source, rules)
        if path not in wanted:
            unused.append(source)
            continue
        array = np.asarray(layout(np.asarray(tensor)), np.float32)
        if np.asarray(tensor).dtype not in (np.float16, np.float32):
            odd.append(f"{source} {np.asarray(tensor).dtype}")
        elif not np.isfinite(array).all():
            odd.append(f"{source} with NaN or infinity")
        if array.shape != wanted[path]:
            unequal.append(f"{source} {array.shape} for {path} {wanted[path]}")
        found[path] = array
    problems = {
        "without a place in the model": unused,
        "of the model without a value": [path for path in wanted if path not in found],
        "of another shape": unequal,
        "that hold no finite float16 or float32": odd,
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(items)}" for what, items in problems.items() if items)
        raise UserError(f"weights {name} do not fit the model; {text}")
    return _rebuilt(tree, found)


def unfill(tree: Tree, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """The inverse of `fill`: our arrays under their foreign names and layouts.

    Rules have at most one group, and it is a number.
    """
    tensors = {}
    for path, leaf in paths(tree):
        for rule in rules:
            match = re.fullmatch(rule.path.replace(r"\1", r"(\d+)"), path)
            if match:
                name = rule.source.replace(r"(\d+)", r"\1").replace(r"\.", ".")
                tensors[match.expand(name)] = _INVERSE[rule.layout](np.asarray(leaf))
                break
        else:
            raise ValueError(f"no rule for {path}")
    return tensors


_INVERSE = {
    same: same,
    linear: linear,
    convolution: lambda array: array.transpose(3, 2, 0, 1),
    pointwise: lambda array: array.T[:, :, None, None],
}


def _place(source: str, rules: Sequence[Rule]) -> tuple[str | None, Callable]:
    for rule in rules:
        match = re.fullmatch(rule.source, source)
        if match:
            return match.expand(rule.path), rule.layout
    return None, same


def _rebuilt(tree: Tree, found: Mapping[str, np.ndarray], *, prefix: str = "") -> Tree:
    return {
        key: _rebuilt(value, found, prefix=f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else found[f"{prefix}{key}"]
        for key, value in tree.items()
    }
