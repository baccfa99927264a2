"""Training goes on past images that cannot be read (`data.on_error = "skip"`).

Example i of a dataset whose file is bad becomes another one: retry r = 1, 2, ... draws an image and
its augmentation from (seed of the dataset, i, r) alone. So what replaces it does not depend on
threads, workers, hosts or where a run starts, and every other example stays as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError

RETRIES = 10  # images that are drawn in place of a bad one

Augmentation = Callable[[Sample, np.random.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Unreadable:
    """Stands where the sample of a bad file would be; `problem` names the file."""

    problem: str


@dataclass(frozen=True)
class Tolerant:
    """A source that gives an `Unreadable` where the user's files are at fault, and only there."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        try:
            return self.source[index]
        except UserError as error:
            return Unreadable(str(error))


@dataclass(frozen=True)
class IfReadable:
    """An augmentation that lets an `Unreadable` pass."""

    augmentation: Augmentation

    def __call__(self, sample: Sample | Unreadable, rng: np.random.Generator) -> Any:
        return sample if isinstance(sample, Unreadable) else self.augmentation(sample, rng)


@dataclass(frozen=True)
class Replace:
    """Puts another crop in the place of an `Unreadable`."""

    name: str
    source: Tolerant
    augmentation: Augmentation
    seed: int

    def __call__(self, example: int, crop: Any) -> dict[str, Any]:
        """The crop itself, or one that replaces it; its "skipped" has what was wrong on the way.

        Raises:
          UserError: none of `RETRIES` other images can be read.
        """
        if not isinstance(crop, Unreadable):
            return crop
        problems = [crop.problem]
        for retry in range(1, RETRIES + 1):
            rng = np.random.default_rng((self.seed, example, retry))
            sample = self.source[int(rng.integers(len(self.source)))]
            if not isinstance(sample, Unreadable):
                return self.augmentation(sample, rng) | {"skipped": tuple(problems)}
            problems.append(sample.problem)
        raise UserError(
            f"{self.name}: an image and {RETRIES} others drawn in its place cannot be read; "
            f"`lmseg data check` lists all that are wrong; the first: {problems[0]}"
        )


def examples(name: str, source: Any, *, seed: int, augmentation: Augmentation) -> grain.MapDataset:
    """The endless list of a dataset's crops, shuffled anew each epoch, without bad files.

    Where all files are good, these are the examples of a run that stops at bad ones, bit for bit.

    Args:
      name: of the dataset, for messages.
      source: samples; what raises a UserError is replaced.
      seed: of shuffling and augmentation, 0..2^32-1.
      augmentation: makes a crop, a dict, of a sample.
    """
    source = Tolerant(source)
    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(IfReadable(augmentation))
        .map_with_index(Replace(name, source, augmentation, seed))
    )


def describe(skipped: dict[str, tuple[str, ...]], told: set[str]) -> list[str]:
    """A line for each dataset with files that were skipped for the first time; `told` keeps them.

    Args:
      skipped: what is wrong with the files that were skipped lately, by dataset.
      told: everything of that kind that was in a line before.
    """
    lines = []
    for name, problems in skipped.items():
        fresh = [problem for problem in dict.fromkeys(problems) if problem not in told]
        told.update(fresh)
        if fresh:
            more = f"; and {len(fresh) - 2} more" if len(fresh) > 2 else ""
            lines.append(f"{name}: skipped {len(fresh)} bad files: {'; '.join(fresh[:2])}{more}")
    return lines
