"""Reads every file of a split and says whether training on it would work."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.files import MissingRoot
from lmseg_jax.datasets.formats import Source, UnmappedLabel, open_source
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError

SHOWN = 10  # problems of one kind that a report spells out


@dataclass(frozen=True)
class Report:
    """What was found in one split.

    Attributes:
      dataset: name of the card.
      split: name of the split.
      expected: images, as the card says.
      found: images, in the folder or list.
      problems: what keeps training from working, one line each.
      warnings: what is allowed, but may be a mistake.
      sizes: "480x360" (width x height) -> images of that size.
      classes: class name -> {"images": ..., "segments": ..., "share": percent of all pixels}.
      void: percent of all pixels that mean nothing.
      seconds: time that the check took.
    """

    dataset: str
    split: str
    expected: int
    found: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    sizes: dict[str, int]
    classes: dict[str, dict[str, float]]
    void: float
    seconds: float

    @property
    def ok(self) -> bool:
        """True if training would run."""
        return not self.problems


@dataclass(frozen=True)
class _Finding:
    """One image, reduced to what the report counts."""

    file: str
    size: tuple[int, int] = (0, 0)  # height, width
    pixels: np.ndarray | None = None  # int64 [K]
    segments: np.ndarray | None = None  # int64 [K]
    error: UserError | None = None


def check(
    card: DatasetCard,
    split: str,
    *,
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Opens every sample of a split, in parallel, and reports counts and every problem.

    Args:
      card: the dataset.
      split: a key of its `splits`.
      root: folder that holds every dataset's tree.
      progress: called with (images done, images in all) after each image.

    Returns:
      A report; a file that is missing, broken, of the wrong size or with unmapped labels is a
      problem in it, not an error.

    Raises:
      MissingRoot: there is no folder to check.
    """
    start = time.monotonic()
    findings = []
    try:
        source = open_source(card, split, root=root)
    except MissingRoot:
        raise
    except UserError as error:
        problems, found = [str(error)], 0
    else:
        found = len(source)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            tasks = pool.map(lambda i: _examine(source, i, count=len(card.taxonomy)), range(found))
            for finding in tasks:
                findings.append(finding)
                if progress is not None:
                    progress(len(findings), found)
        problems = _problems(card, split, findings)
    good = [finding for finding in findings if finding.error is None]
    pixels, segments, images = _totals(good, count=len(card.taxonomy))
    area = sum(finding.size[0] * finding.size[1] for finding in good)
    sizes = Counter("{1}x{0}".format(*finding.size) for finding in good)
    return Report(
        dataset=card.name,
        split=split,
        expected=card.splits.get(split, 0),
        found=found,
        problems=tuple(problems),
        warnings=tuple(_warnings(card, good, images)),
        sizes=dict(sizes.most_common()),
        classes={
            name: {
                "images": int(images[k]),
                "segments": int(segments[k]),
                "share": 100 * float(pixels[k]) / max(1, area),
            }
            for k, name in enumerate(card.taxonomy.names)
        },
        void=100 * float(area - pixels.sum()) / max(1, area),
        seconds=time.monotonic() - start,
    )


def _examine(source: Source, index: int, *, count: int) -> _Finding:
    file = source.files(index)[0]
    try:
        sample = source[index]
    except UserError as error:
        return _Finding(file, error=error)
    return _Finding(
        file,
        size=sample.segments.shape,
        pixels=_pixels(sample, count=count),
        segments=np.bincount(sample.classes, minlength=count),
    )


def _pixels(sample: Sample, *, count: int) -> np.ndarray:
    """Visible pixels of each class, int64 [K]."""
    visible = np.bincount(sample.segments.ravel() + 1, minlength=len(sample.classes) + 1)[1:]
    return np.bincount(sample.classes, weights=visible, minlength=count).astype(np.int64)


def _totals(good: list[_Finding], *, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, segments and images of each class, int64 [K] each."""
    zero = np.zeros((1, count), np.int64)
    pixels = np.stack([*zero, *(finding.pixels for finding in good)])
    segments = np.stack([*zero, *(finding.segments for finding in good)])
    return pixels.sum(axis=0), segments.sum(axis=0), (segments > 0).sum(axis=0)


def _problems(card: DatasetCard, split: str, findings: list[_Finding]) -> list[str]:
    """Unmapped labels first, one line a value; then other errors; then what is wrong as a whole."""
    problems = []
    unmapped: dict[object, list[str]] = {}
    other = []
    for finding in findings:
        if isinstance(finding.error, UnmappedLabel):
            for value in finding.error.values:
                unmapped.setdefault(value, []).append(finding.file)
        elif finding.error is not None:
            other.append(str(finding.error))
    for value, files in sorted(unmapped.items(), key=lambda item: str(item[0])):
        problems.append(
            f"unmapped label {value}: neither a class nor void in {card.path}; in {len(files)} "
            f"images: {_short(files, 3)}"
        )
    problems += other[:SHOWN]
    if len(other) > SHOWN:
        problems.append(f"{len(other) - SHOWN} more files cannot be read")
    if len(findings) != card.splits[split]:
        problems.append(
            f"{card.name}/{split} has {len(findings)} images, but the card says "
            f"{card.splits[split]}: complete the download, or correct [splits] in {card.path}"
        )
    good = [finding for finding in findings if finding.error is None]
    if good and not any(finding.pixels.any() for finding in good):
        problems.append(f"{card.name}/{split}: every pixel is void; nothing can be learnt")
    return problems


def _warnings(card: DatasetCard, good: list[_Finding], images: np.ndarray) -> list[str]:
    warnings = []
    empty = [finding.file for finding in good if not finding.pixels.any()]
    if empty:
        warnings.append(f"{len(empty)} images without a valid pixel: {_short(empty, SHOWN)}")
    absent = [name for name, n in zip(card.taxonomy.names, images, strict=True) if not n]
    if good and absent:
        warnings.append(f"{len(absent)} classes have no pixel: {_short(absent, SHOWN)}")
    return warnings


def _short(items: Iterable[str], limit: int) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
