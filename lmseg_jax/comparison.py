"""Where taxonomies meet: classes of one meaning, near ones, and what label maps have shown."""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmseg_jax.taxonomy import Category, Taxonomy, plain

KINDS = ("equal name", "same words", "synonym", "same pixels")  # the surest first
MARKS = {"merged", "stuff"}  # COCO hangs them on names to tell versions of a class apart
LEAST = 0.001  # part of all pixels that a class needs before its label maps are judged

Place = tuple[int, int]  # number of the taxonomy, index of the class
Group = dict[int, int]  # number of a taxonomy -> index of its class: classes that are one


@dataclass(frozen=True)
class Link:
    """Two classes of two taxonomies that mean the same.

    Attributes:
      one, other: the classes.
      kind: one of `KINDS`.
      word: what says so.
    """

    one: Place
    other: Place
    kind: str
    word: str


@dataclass(frozen=True)
class Near:
    """Two groups whose names resemble each other.

    Attributes:
      one, other: numbers of the groups.
      cosine: of the embeddings of their names, -1..1; None where one of them means nothing.
      words: share of their words that both have, 0..1; see `shared_words`.
    """

    one: int
    other: int
    cosine: float | None
    words: float


@dataclass(frozen=True)
class Part:
    """A class that shares pixels with a class of another taxonomy.

    Attributes:
      index: of this class.
      share: part of the other class's pixels that it takes, 0..1.
      inside: part of its own pixels that lie in the other class, 0..1.
    """

    index: int
    share: float
    inside: float


@dataclass(frozen=True)
class Split:
    """A class whose pixels several classes of another taxonomy share.

    Attributes:
      index: of the class.
      pixels: of the class.
      parts: the others, the largest first.
    """

    index: int
    pixels: int
    parts: tuple[Part, ...]

    @property
    def nested(self) -> bool:
        """Whether most of each part lies inside: a finer division, not another point of view."""
        return all(part.inside >= 0.5 for part in self.parts)


@functools.cache
def words_of(name: str) -> frozenset[str]:
    """The words of a name without signs, plurals and COCO's marks "merged" and "stuff"."""
    words = re.sub(r"[\W_]+", " ", plain(name)).split()
    kept = {_singular(word) for word in words} - MARKS
    return frozenset(kept or words)


def shared_words(one: str, other: str) -> float:
    """Words that two names have in common, divided by the words that either has, 0..1."""
    a, b = words_of(one), words_of(other)
    return len(a & b) / max(1, len(a | b))


def same_names(taxonomies: Sequence[Taxonomy]) -> list[Link]:
    """Classes whose names say that they are one: equal, of the same words, or by a synonym's words.

    Returns:
      The surest first; of two classes only their surest link.
    """
    found = []
    for one, a in _classes(taxonomies):
        for other, b in _classes(taxonomies):
            if one[0] < other[0] and (link := _link(a, b)):
                found.append(Link(one, other, *link))
    return sorted(found, key=lambda link: (KINDS.index(link.kind), link.one, link.other))


def group(taxonomies: Sequence[Taxonomy], links: Sequence[Link]) -> tuple[list[Group], list[Link]]:
    """Joins what links say is one class; two classes of one taxonomy never become one.

    Args:
      taxonomies: all of them.
      links: the surest first.

    Returns:
      The groups, each class in one, in the order of their first classes; and the links that would
      have made one class of two: in one taxonomy something is divided that the other has whole.
    """
    home = {place: {place[0]: place[1]} for place, _ in _classes(taxonomies)}
    refused = []
    for link in links:
        a, b = home[link.one], home[link.other]
        if a is b:
            continue
        if a.keys() & b.keys():
            refused.append(link)
            continue
        a.update(b)
        home.update({place: a for place in b.items()})
    groups = list({id(found): found for found in home.values()}.values())
    return [dict(sorted(found.items())) for found in groups], refused


def near_names(
    names: Sequence[str], groups: Sequence[Group], *, embeddings: np.ndarray, known: np.ndarray
) -> list[Near]:
    """Every pair of groups of different taxonomies.

    Args:
      names: of each group.
      groups: see `group`.
      embeddings: f32 [groups, D], of length one.
      known: bool [groups], whose embeddings mean something.
    """
    cosines = embeddings @ embeddings.T
    both = known[:, None] & known
    return [
        Near(
            j,
            i,
            float(cosines[j, i]) if both[j, i] else None,
            shared_words(names[j], names[i]),
        )
        for i, one in enumerate(groups)
        for j, other in enumerate(groups[:i])
        if len(one.keys() | other.keys()) > 1
    ]


def count_together(one: np.ndarray, other: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """Pixels of each class of one label map that have each class of the other, int64 `sizes`.

    Args:
      one, other: int [H, W], two label maps of one image; negative pixels are left out.
      sizes: number of classes of each.
    """
    both = (one >= 0) & (other >= 0)
    flat = one[both].astype(np.int64) * sizes[1] + other[both]
    return np.bincount(flat, minlength=sizes[0] * sizes[1]).reshape(sizes)


def overlap(table: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of classes, f64 [A, B], 0..1; 0 where neither occurs."""
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return table / np.maximum(union, 1)


def splits(table: np.ndarray, *, share: float) -> list[Split]:
    """Classes of the rows that cover several classes of the columns.

    Args:
      table: int [A, B], see `count_together`, summed over images.
      share: part of a row's pixels, 0..1, that a column takes at least to be listed.

    Returns:
      Those with two columns or more, the largest first; classes of less than a thousandth of all
      pixels are left out.
    """
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    found = []
    for i in np.argsort(-rows, kind="stable"):
        if rows[i] < max(1, LEAST * table.sum()):
            continue
        parts = [
            Part(int(j), float(table[i, j] / rows[i]), float(table[i, j] / columns[j]))
            for j in np.argsort(-table[i], kind="stable")
            if table[i, j] >= share * rows[i] and table[i, j]
        ]
        if len(parts) > 1:
            found.append(Split(int(i), int(rows[i]), tuple(parts)))
    return found


def seen(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [A] and bool [B]: which classes have enough pixels, a thousandth, to be judged."""
    least = max(1, LEAST * table.sum())
    return table.sum(axis=1) >= least, table.sum(axis=0) >= least


def same_pixels(table: np.ndarray, taxonomies: tuple[int, int], *, iou: float) -> list[Link]:
    """Classes whose label maps agree, whatever their names.

    Args:
      table: int [A, B], see `count_together`.
      taxonomies: their numbers.
      iou: least intersection over union, 0..1.
    """
    values, (rows, columns) = overlap(table), seen(table)
    a, b = taxonomies
    return [
        Link((a, int(i)), (b, int(j)), "same pixels", f"IoU {100 * values[i, j]:.0f}")
        for i, j in np.argwhere(values >= iou)
        if rows[i] and columns[j]
    ]


def _classes(taxonomies: Sequence[Taxonomy]) -> Iterator[tuple[Place, Category]]:
    for m, taxonomy in enumerate(taxonomies):
        for i, category in enumerate(taxonomy.categories):
            yield (m, i), category


def _link(a: Category, b: Category) -> tuple[str, str] | None:
    """Kind and word of the surest link between two classes."""
    if plain(a.name) == plain(b.name):
        return "equal name", a.name
    if words_of(a.name) == words_of(b.name):
        return "same words", " ".join(sorted(words_of(a.name)))
    one, other = ({words_of(word) for word in (c.name, *c.synonyms)} for c in (a, b))
    if common := sorted(" ".join(sorted(words)) for words in one & other):
        return "synonym", common[0]
    return None


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
