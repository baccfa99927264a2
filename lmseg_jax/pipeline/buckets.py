"""Which dataset gives how many images to which update, and how they are cut into buckets.

This is the policy "stratified"; those that draw datasets are in `pipeline.policies`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np

from lmseg_jax.errors import UserError

LONGEST_CYCLE = 10_000  # updates after which the weights must have been met exactly
MOST_COMBINATIONS = 1_000  # more ways to choose the datasets of an update are not enumerated
FINEST_WEIGHT = 1_000  # a weight is read as the nearest fraction with at most this denominator


@dataclass(frozen=True)
class Piece:
    """Images of one gradient call, over all processes; all are of one shape.

    Attributes:
      rows: (source, example) of each image: index of the source that gives it, and how many images
        of that source come before it, counted over the whole run.
    """

    rows: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.rows)


class Plan:
    """How many images each source gives to each update; a pure function of the arguments.

    Images are handed out in units of `multiple`. With U = batch / multiple units an update and
    normalised weights w_k, source k gets floor(U w_k) units in every update. The R units that are
    left go to R different sources, source k with frequency f_k = U w_k - floor(U w_k):

    - all f_k > 0 are equal: every choice of R sources in rotation, each equally often;
    - otherwise systematic sampling: with F_k = f_1 + .. + f_k, update t chooses source k if a whole
      number lies in (F_{k-1} + s_t, F_k + s_t], where s_t runs through the multiples of 1 / D in
      [0, 1) and D is the common denominator of all f_k.

    Either way every update has `batch` images and after `cycle` updates each source has given
    exactly its share. Compared with independent draws the expected gradient is the same and its
    variance between datasets is smaller.

    Attributes:
      shapes: (height, width) of each source's crops.
      shares: float64 [M], part of all images that each source gives.
      batch: images of an update.
      multiple: divides every count.
      cycle: updates after which counts repeat.

    Source: the expectation is that of Sec. 3.5; systematic sampling, Madow (1949).
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        weights: Sequence[float],
        *,
        batch: int,
        multiple: int,
    ):
        """Makes the plan.

        Args:
          shapes: (height, width) of each source's crops, M sources.
          weights: M positive numbers, their scale is free; empty = uniform.
          batch: images of an update.
          multiple: every count is a multiple of it.

        Raises:
          UserError: `multiple` does not divide `batch`; weights are missing, not positive or not
            met within 10,000 updates.
        """
        check_sizes(batch, multiple)
        self.shapes = [tuple(shape) for shape in shapes]
        self.batch = batch
        self.multiple = multiple
        units = [batch // multiple * share for share in _shares(weights, len(self.shapes))]
        table = np.array([math.floor(unit) for unit in units]) + _extra(units)  # [cycle, M]
        self.cycle = len(table)
        self._counts = multiple * table.astype(np.int64)
        self._before = np.zeros((self.cycle + 1, len(self.shapes)), np.int64)
        np.cumsum(self._counts, axis=0, out=self._before[1:])
        self.shares = self._before[-1] / self._before[-1].sum()

    def describe(self) -> str:
        """What an update takes, for people."""
        return f"{self.batch} images an update, shares repeat every {self.cycle} updates"

    def counts(self, update: int) -> np.ndarray:
        """int64 [M], images that each source gives to this update."""
        return self._counts[update % self.cycle].copy()

    def offsets(self, update: int) -> np.ndarray:
        """int64 [M], images that each source has given before this update."""
        cycles, rest = divmod(update, self.cycle)
        return cycles * self._before[-1] + self._before[rest]

    def pieces(self, update: int, *, micro: int = 0) -> list[Piece]:
        """The buckets of an update in the order of the sources, each cut into pieces.

        Args:
          micro: a piece has at most this many images; 0 = one piece a bucket.

        Raises:
          UserError: `micro` is not a multiple of `multiple`.
        """
        pieces = []
        offsets = self.offsets(update).tolist()
        for source, count in enumerate(self.counts(update).tolist()):
            rows = [(source, offsets[source] + i) for i in range(count)]
            pieces += cut(rows, micro=micro, multiple=self.multiple)
        return pieces

    def programs(self, *, micro: int = 0) -> list[tuple[int, int, int]]:
        """Every (images, height, width) that a gradient call of this plan can have, sorted."""
        return sorted(
            {
                (len(piece), *self.shapes[piece.rows[0][0]])
                for update in range(self.cycle)
                for piece in self.pieces(update, micro=micro)
            }
        )


def check_sizes(batch: int, multiple: int) -> None:
    """Raises UserError unless `multiple` divides `batch`, both at least 1."""
    if multiple < 1 or batch < 1 or batch % multiple:
        raise UserError(
            f"batching.batch = {batch} is not a multiple of batching.multiple = {multiple}; "
            "change one of them so that it divides"
        )


def cut(rows: Sequence[tuple[int, int]], *, micro: int, multiple: int) -> list[Piece]:
    """A bucket in pieces of at most `micro` images; 0 = one piece.

    Raises:
      UserError: `micro` is not a multiple of `multiple`.
    """
    if micro < 0 or micro % multiple:
        raise UserError(
            f"batching.micro = {micro} is not a multiple of batching.multiple = {multiple}; "
            "use 0 or a multiple of it"
        )
    size = micro or max(1, len(rows))
    return [Piece(tuple(rows[first : first + size])) for first in range(0, len(rows), size)]


def split_shares(weights: Sequence[float], parts: Sequence[Sequence[int]]) -> list[float]:
    """Share of each source where datasets are drawn: its dataset's, by numbers of images.

    Args:
      weights: of the datasets, M positive numbers; empty = uniform.
      parts: images of each source of each dataset, one or two numbers for each of the M.

    Returns:
      One share for each source, dataset by dataset; their sum is 1.

    Raises:
      UserError: as `Plan` on weights that are missing or not positive.
    """
    shares = zip(_shares(weights, len(parts)), parts, strict=True)
    return [float(share * size / sum(sizes)) for share, sizes in shares for size in sizes]


def split_weights(weights: Sequence[float], parts: Sequence[Sequence[int]]) -> list[float]:
    """Weights of all sources where a dataset may come in two: its weight, by numbers of images.

    So every image of a dataset is equally likely. Without such a dataset the weights stay as they
    are. Otherwise they become whole numbers whose sum is at most 10,000, so that `Plan` meets them
    within as many updates: the shares of two parts are rounded to multiples of 1 / (10,000 // b),
    where b is the common denominator of the datasets' shares. For three equal datasets that is
    1/3333 of the dataset.

    Args:
      weights: of the datasets, M positive numbers; empty = uniform.
      parts: images of each source of each dataset, one or two numbers for each of the M.

    Returns:
      One weight for each source, dataset by dataset.

    Raises:
      UserError: as `Plan`.
    """
    if all(len(sizes) == 1 for sizes in parts):
        return list(weights)
    shares = _shares(weights, len(parts))
    common = math.lcm(*(share.denominator for share in shares))
    finest = LONGEST_CYCLE // common
    if finest < 2:
        raise UserError(
            f"batching.weights = {tuple(weights)}: shares of {common} parts leave no room to weigh "
            "lying and upright images; use rounder weights, such as 4, 2, 1, 3"
        )
    result = []
    for share, sizes in zip(shares, parts, strict=True):
        units = int(share * common * finest)
        if len(sizes) == 1:
            result.append(units)
        else:
            first = min(max(1, round(units * sizes[0] / sum(sizes))), units - 1)
            result += [first, units - first]
    return result


def _shares(weights: Sequence[float], sources: int) -> list[Fraction]:
    """Weights as exact fractions that sum to 1."""
    weights = list(weights) or [1] * sources
    if len(weights) != sources:
        raise UserError(
            f"batching.weights has {len(weights)} numbers for {sources} datasets; "
            "give one for each of data.train, or none for uniform"
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"batching.weights = {tuple(weights)}: every weight must be positive")
    exact = [Fraction(weight).limit_denominator(FINEST_WEIGHT) for weight in weights]
    if not all(exact):
        raise UserError(
            f"batching.weights = {tuple(weights)}: a weight is below {1 / FINEST_WEIGHT / 2}; "
            "multiply all of them by the same number"
        )
    return [weight / sum(exact) for weight in exact]


def _extra(units: list[Fraction]) -> np.ndarray:
    """Units beyond the whole ones, 0 or 1, int64 [cycle, M]; columns have the means units % 1."""
    parts = [unit % 1 for unit in units]
    left = int(sum(parts))
    candidates = [source for source, part in enumerate(parts) if part]
    if not left:
        return np.zeros((1, len(units)), np.int64)
    equal = len({parts[source] for source in candidates}) == 1
    if equal and math.comb(len(candidates), left) <= MOST_COMBINATIONS:
        return _rotate(candidates, left, len(units))
    return _systematic(parts)


def _rotate(candidates: list[int], chosen: int, sources: int) -> np.ndarray:
    """Every choice of `chosen` candidates once, those who waited longest first."""
    choices = np.zeros((math.comb(len(candidates), chosen), sources), np.int64)
    for row, choice in enumerate(combinations(candidates, chosen)):
        choices[row, list(choice)] = 1
    ordered, used = [], np.zeros(sources, np.int64)
    while len(choices):
        next_row = int(np.argmin(choices @ used))  # the first one where several are equal
        ordered.append(choices[next_row])
        used += choices[next_row]
        choices = np.delete(choices, next_row, axis=0)
    return np.array(ordered)


def _systematic(parts: list[Fraction]) -> np.ndarray:
    """Systematic sampling from every start once; neighbouring updates start far from each other."""
    cycle = math.lcm(*(part.denominator for part in parts))
    if cycle > LONGEST_CYCLE:
        raise UserError(
            f"batching.weights would be met exactly only after {cycle} updates, more than "
            f"{LONGEST_CYCLE}; use rounder weights, such as 4, 2, 1, 3"
        )
    edges = np.cumsum([0] + [int(part * cycle) for part in parts])  # F_k, in units of 1 / cycle
    stride = max(1, round(0.618 * cycle))  # the golden section spreads the starts best
    while math.gcd(stride, cycle) > 1:
        stride += 1
    starts = np.arange(cycle) * stride % cycle
    return np.diff((edges + starts[:, None]) // cycle, axis=1)
