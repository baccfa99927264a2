"""Reads every file of a split and says whether training on it would work."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.files import MissingRoot
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.source import Source, UnmappedLabel
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import plain
from lmseg_jax.tokenizer import BACKGROUND, longest_name, vocabulary

SHOWN = 10  # problems of one kind that a report spells out
MAX_TARGETS = 100  # data.max_targets of configs/base.py


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
      failed: file -> why it cannot be used; all of them, where `problems` has the first ones.
      sizes: "480x360" (width x height) -> images of that size.
      classes: class name -> {"images": ..., "segments": ..., "share": percent of all pixels}.
      void: percent of all pixels that mean nothing.
      segments: of an image, without crowds: {"p50": ..., "p99": ..., "max": ...}; percentiles are
        numbers that occur.
      max_targets: segments that a crop may have.
      digests: digest of an image's pixels -> file, the first of each.
      seconds: time that the check took.
    """

    dataset: str
    split: str
    expected: int
    found: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    failed: dict[str, str]
    sizes: dict[str, int]
    classes: dict[str, dict[str, float]]
    void: float
    segments: dict[str, int]
    max_targets: int
    digests: dict[str, str]
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
    pixels: np.ndarray | None = None  # int64 [k], of each class that occurs
    classes: np.ndarray | None = None  # int64 [k], index of these classes
    segments: np.ndarray | None = None  # int64 [k], their segments
    targets: int = 0  # segments that training may see: crowds are left out
    digest: str = ""  # of the image's pixels
    error: UserError | None = None


def check(
    card: DatasetCard,
    split: str,
    *,
    root: str | Path,
    max_targets: int = MAX_TARGETS,
    others: Sequence[Report] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Opens every sample of a split, in parallel, and reports counts and every problem.

    Args:
      card: the dataset.
      split: a key of its `splits`.
      root: folder that holds every dataset's tree.
      max_targets: segments that a crop may have, `data.max_targets` of the run.
      others: reports of other splits; an image that is in one of them, too, is a warning.
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
            for finding in pool.map(lambda index: _examine(source, index), range(found)):
                findings.append(finding)
                if progress is not None:
                    progress(len(findings), found)
        problems = _problems(card, split, findings)
    good = [finding for finding in findings if finding.error is None]
    pixels, segments, images = _totals(good, count=len(card.taxonomy))
    area = sum(finding.size[0] * finding.size[1] for finding in good)
    sizes = Counter("{1}x{0}".format(*finding.size) for finding in good)
    targets = sorted(finding.targets for finding in good)
    digests, twice = _distinct(good)
    return Report(
        dataset=card.name,
        split=split,
        expected=card.splits.get(split, 0),
        found=found,
        problems=tuple(problems),
        warnings=(
            *_warnings(card, good, images),
            *_crowded(good, max_targets=max_targets),
            *_repeated(digests, twice, others=others),
        ),
        failed={finding.file: str(finding.error) for finding in findings if finding.error},
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
        segments={
            key: int(np.percentile(targets, q, method="higher")) if targets else 0
            for key, q in (("p50", 50), ("p99", 99), ("max", 100))
        },
        max_targets=max_targets,
        digests=digests,
        seconds=time.monotonic() - start,
    )


def _examine(source: Source, index: int) -> _Finding:
    file = source.files(index)[0]
    try:
        sample = source[index]
    except UserError as error:
        return _Finding(file, error=error)
    visible = np.bincount(sample.segments.ravel() + 1, minlength=len(sample.classes) + 1)[1:]
    classes, place, segments = np.unique(sample.classes, return_inverse=True, return_counts=True)
    # Pixels, not bytes of files: so every source can be asked, also one without files.
    digest = hashlib.blake2b(repr(sample.image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(sample.image))
    return _Finding(
        file,
        size=sample.segments.shape,
        pixels=np.bincount(place, weights=visible, minlength=len(classes)).astype(np.int64),
        classes=classes,
        segments=segments,
        targets=int(np.count_nonzero(~sample.crowd)),
        digest=digest.hexdigest(),
    )


def _totals(good: list[_Finding], *, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, segments and images of each class, int64 [K] each."""
    pixels, segments, images = np.zeros((3, count), np.int64)
    for finding in good:
        pixels[finding.classes] += finding.pixels
        segments[finding.classes] += finding.segments
        images[finding.classes] += 1
    return pixels, segments, images


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
    problems += _unreadable(card)
    if len(findings) != card.splits[split]:
        problems.append(
            f"{card.name}/{split} has {len(findings)} images, but the card says "
            f"{card.splits[split]}: complete the download, or correct [splits] in {card.path}"
        )
    good = [finding for finding in findings if finding.error is None]
    if good and not any(finding.pixels.any() for finding in good):
        problems.append(f"{card.name}/{split}: every pixel is void; nothing can be learnt")
    return problems


def _unreadable(card: DatasetCard) -> list[str]:
    """A problem if the text encoder cannot read a name: training would stop at it."""
    # A token is a byte or more, so most names need no tokenizer, which takes seconds to load.
    doubtful = [
        name
        for name in card.taxonomy.names
        if len(name.encode()) > longest_name() or plain(name) in ("", BACKGROUND)
    ]
    try:
        if doubtful:
            vocabulary([doubtful])
    except UserError as error:
        return [f"{card.path}: {error}"]
    return []


def _warnings(card: DatasetCard, good: list[_Finding], images: np.ndarray) -> list[str]:
    warnings = []
    empty = [finding.file for finding in good if not finding.pixels.any()]
    if empty:
        warnings.append(f"{len(empty)} images without a valid pixel: {_short(empty, SHOWN)}")
    absent = [name for name, n in zip(card.taxonomy.names, images, strict=True) if not n]
    if good and absent:
        warnings.append(f"{len(absent)} classes have no pixel: {_short(absent, SHOWN)}")
    return warnings


def _crowded(good: list[_Finding], *, max_targets: int) -> list[str]:
    """A warning if images have more segments than a crop may have."""
    many = sorted((f for f in good if f.targets > max_targets), key=lambda f: -f.targets)
    if not many:
        return []
    listed = _short([f"{f.file} ({f.targets})" for f in many], 3)
    return [
        f"{len(many)} images have more than data.max_targets = {max_targets} segments: {listed}; "
        "a crop that shows more loses the smallest of them"
    ]


def _distinct(good: list[_Finding]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Digest -> first file of each image; and (file, the one it repeats)."""
    digests, twice = {}, []
    for finding in good:
        first = digests.setdefault(finding.digest, finding.file)
        if first != finding.file:
            twice.append((finding.file, first))
    return digests, twice


def _repeated(
    digests: dict[str, str], twice: list[tuple[str, str]], *, others: Sequence[Report]
) -> list[str]:
    """A warning for each split that has images of this one, and one for images that come twice."""
    warnings = []
    for other in others:
        same = [
            f"{file} = {other.digests[key]}"
            for key, file in digests.items()
            if key in other.digests
        ]
        if same:
            warnings.append(
                f"{len(same)} images are in {other.split} as well: {_short(same, 3)}; scores on "
                "what was trained on say little"
            )
    if twice:
        same = _short([f"{file} = {first}" for file, first in twice], 3)
        warnings.append(f"{len(twice)} images repeat another one of this split: {same}")
    return warnings


def _short(items: Iterable[str], limit: int) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
