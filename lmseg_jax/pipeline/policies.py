"""Plans that draw datasets by weight: `batching.policy` "one_dataset" and "padded".

Both are pure functions of (seed, update): every draw can be made again at any update, by any
number of workers and hosts, and images of a source are still handed out epoch by epoch.
"""

from collections.abc import Sequence

import numpy as np

from lmseg_jax.pipeline.buckets import Piece, Plan, check_sizes, cut

BLOCK = 1024  # draws that come from one generator


class Draws:
    """An endless list of independent draws of sources; draw i is a pure function of (seed, i)."""

    def __init__(self, shares: Sequence[float], *, seed: int):
        """Args: shares: probability of each of the M sources; seed: not negative."""
        self._edges = np.cumsum(shares)[:-1]
        self._sources = len(shares)
        self._seed = seed
        self._blocks = {0: np.zeros(self._sources, np.int64)}  # chosen before each block

    def chosen(self, first: int, count: int) -> list[int]:
        """Sources of the draws first, first + 1, .., first + count - 1."""
        start = first // BLOCK
        blocks = [self._draw(block) for block in range(start, (first + count - 1) // BLOCK + 1)]
        rest = first - start * BLOCK
        return np.concatenate(blocks)[rest : rest + count].tolist()

    def before(self, index: int) -> list[int]:
        """How often each source was chosen by the draws 0, .., index - 1."""
        block, rest = divmod(index, BLOCK)
        known = block
        while known not in self._blocks:
            known -= 1
        # several threads may fill in the same blocks, with the same numbers
        for number in range(known, block):
            self._blocks[number + 1] = self._blocks[number] + self._count(self._draw(number))
        return (self._blocks[block] + self._count(self._draw(block)[:rest])).tolist()

    def _draw(self, block: int) -> np.ndarray:
        numbers = np.random.default_rng((self._seed, block)).random(BLOCK)
        return np.searchsorted(self._edges, numbers, side="right")

    def _count(self, drawn: np.ndarray) -> np.ndarray:
        return np.bincount(drawn, minlength=self._sources)


class OneDataset:
    """Each update draws one source by its share and takes all of its images from it.

    In the authors' release each worker draws one dataset a step. Here the update does, because a
    plan must not depend on the mesh. The loss of an update is divided by the update's own masks, so
    each update weighs the same, whether its dataset has many masks an image or few; where datasets
    share an update, each mask weighs the same.

    Attributes:
      shapes, shares, batch, multiple: as of `Plan`.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        shares: Sequence[float],
        *,
        batch: int,
        multiple: int,
        seed: int,
    ):
        """Makes the plan.

        Args:
          shapes: (height, width) of each source's crops, M sources.
          shares: probability of each source.
          batch: images of an update.
          multiple: divides it.
          seed: of the draws.

        Raises:
          UserError: `multiple` does not divide `batch`.
        """
        check_sizes(batch, multiple)
        self.shapes = [tuple(shape) for shape in shapes]
        self.shares = np.array(shares, np.float64)
        self.batch = batch
        self.multiple = multiple
        self._draws = Draws(shares, seed=seed)

    def describe(self) -> str:
        """What an update takes, for people."""
        return f"{self.batch} images an update, all of one dataset that is drawn by weight"

    def pieces(self, update: int, *, micro: int = 0) -> list[Piece]:
        """As `Plan.pieces`, of one source."""
        (source,) = self._draws.chosen(update, 1)
        first = self.batch * self._draws.before(update)[source]
        rows = [(source, first + i) for i in range(self.batch)]
        return cut(rows, micro=micro, multiple=self.multiple)

    def programs(self, *, micro: int = 0) -> list[tuple[int, int, int]]:
        """As `Plan.programs`."""
        sizes = {len(piece) for piece in self.pieces(0, micro=micro)}
        return sorted((size, *shape) for size in sizes for shape in set(self.shapes))


class Padded(OneDataset):
    """Each image of an update is drawn from all sources by their shares; all have one shape.

    The canvas is as high as the highest and as wide as the widest crop; crops lie at its top left,
    the rest is padding. This is the paper's mixing to the letter, and one program. `Plan` has the
    same expectation, less variance and no such padding.

    Attributes:
      shapes: the canvas, for every source.
      waste: percent of the canvas that crops leave empty, on average.

    Source: LMSeg Sec. 3.5.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        shares: Sequence[float],
        *,
        batch: int,
        multiple: int,
        seed: int,
    ):
        """Makes the plan; arguments and errors as of `OneDataset`."""
        canvas = tuple(max(sides) for sides in zip(*shapes, strict=True))
        super().__init__([canvas] * len(shapes), shares, batch=batch, multiple=multiple, seed=seed)
        areas = np.prod(shapes, axis=1)
        self.waste = float(100 * (1 - areas @ self.shares / np.prod(canvas)))

    def describe(self) -> str:
        """What an update takes, for people."""
        height, width = self.shapes[0]
        return (
            f"{self.batch} images an update, each drawn from all datasets by weight, on a canvas "
            f"of {height}x{width} that crops leave {self.waste:.0f} % empty"
        )

    def pieces(self, update: int, *, micro: int = 0) -> list[Piece]:
        """As `Plan.pieces`; one bucket of all sources."""
        first = update * self.batch
        given, rows = self._draws.before(first), []
        for source in self._draws.chosen(first, self.batch):
            rows.append((source, given[source]))
            given[source] += 1
        return cut(rows, micro=micro, multiple=self.multiple)


DRAWN = {"one_dataset": OneDataset, "padded": Padded}

AnyPlan = Plan | OneDataset
