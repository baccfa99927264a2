"""`lmseg score`: scores the saved predictions of any model (docs/scoring.md)."""

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmseg_jax import report
from lmseg_jax.datasets.card import DatasetCard, load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.predictions import (
    PanopticPredictions,
    SemanticPredictions,
    open_predictions,
)
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.datasets.source import Source
from lmseg_jax.errors import UserError
from lmseg_jax.metrics import PanopticMetric, SemanticMetric


class Score:
    """The sums of a card's task: images are added, scores of parts merged, percents computed."""

    def __init__(self, card: DatasetCard):
        names = card.taxonomy.names
        self.semantic = SemanticMetric(names)
        self.panoptic = None
        if card.task == "panoptic":
            self.panoptic = PanopticMetric(names, card.taxonomy.things)

    def merge(self, other: "Score") -> None:
        """Adds what another score of the same card has counted."""
        self.semantic.merge(other.semantic)
        if self.panoptic is not None:
            self.panoptic.merge(other.panoptic)

    def compute(self) -> dict:
        """The mIoU family, for panoptic cards also the PQ family; see `metrics`."""
        scores = self.semantic.compute()
        return scores if self.panoptic is None else scores | self.panoptic.compute()

    @property
    def nothing(self) -> float:
        """Share of the pixels with truth that no class of the card was predicted for, 0..1."""
        matrix = self.semantic.state["matrix"]
        return float(matrix[-1].sum() / max(1, matrix.sum()))


def score_images(
    card: DatasetCard,
    source: Source,
    predictions: SemanticPredictions | PanopticPredictions,
    *,
    indices: Iterable[int],
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Counts some images of a split; no more than two a thread are held at any time.

    Args:
      card: of the truth.
      source: the split.
      predictions: of its images.
      indices: which of them; scores of disjoint parts add up to that of all by `Score.merge`.
      threads: that read and count.
      progress: called with the number of images done, after each.

    Raises:
      UserError: a file is broken, or the sizes of a prediction and its truth differ.
    """

    def count(index: int) -> Score:
        sample, found = source[index], predictions[index]
        if found.labels.shape != sample.segments.shape:
            sizes = ["{1}x{0}".format(*x.shape) for x in (found.labels, sample.segments)]
            raise UserError(
                f"{found.path} is {sizes[0]}, but the truth of {source.files(index)[0]} is "
                f"{sizes[1]}; predictions must have the size of the original image"
            )
        one = Score(card)
        one.semantic.update(found.labels, semantic_map(sample))
        if one.panoptic is not None:
            one.panoptic.update(
                found.segments,
                found.info,
                sample.segments,
                sample.classes,
                sample.area,
                sample.crowd,
                name=sample.name,
            )
        return one

    total, done, pending = Score(card), 0, deque()
    with ThreadPoolExecutor(threads) as pool:

        def take() -> None:
            nonlocal done
            total.merge(pending.popleft().result())
            done += 1
            if progress is not None:
                progress(done)

        try:
            for index in indices:
                if len(pending) == 2 * threads:
                    take()
                pending.append(pool.submit(count, index))
            while pending:
                take()
        finally:
            pool.shutdown(cancel_futures=True)
    return total


def main(argv: Sequence[str]) -> int:
    """Scores a folder of predictions, prints a table and writes it as JSON if asked to.

    Raises:
      UserError: a flag, the card, the data or a prediction is missing or wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg score", description=__doc__, allow_abbrev=False)
    parser.add_argument("--card", required=True, help="name of a shipped card, or a .toml file")
    parser.add_argument("--split", required=True, help="split of the card, such as val")
    parser.add_argument(
        "--predictions",
        required=True,
        help="folder: label PNGs named by the image's stem, or predictions.json with its PNGs",
    )
    parser.add_argument("--root", default="", help="folder that holds every dataset's tree")
    parser.add_argument("--json", default="", metavar="FILE", help="write the scores here, too")
    parser.add_argument("--limit", type=int, default=0, help="only the first n images; 0 = all")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=threads, help="that read and count")
    options = parser.parse_args(argv)
    for flag, least in (("limit", 0), ("threads", 1)):
        if getattr(options, flag) < least:
            raise UserError(f"--{flag} is {getattr(options, flag)}; expected at least {least}")
    target = Path(options.json)
    if options.json and (target.is_dir() or not target.parent.is_dir()):
        raise UserError(f"--json {target}: no file can be written there; name one in a folder")

    card = load_card(options.card)
    source = open_source(card, options.split, root=options.root)
    count = min(options.limit or len(source), len(source))
    predictions = open_predictions(options.predictions, card, source, count=count)
    bar = report.ImageProgress(f"{card.name}/{options.split}")
    found = score_images(
        card,
        source,
        predictions,
        indices=range(count),
        threads=options.threads,
        progress=lambda done: bar(done, count),
    )
    scores = found.compute()
    print(report.format_details(scores))
    print(f"\n{card.name}/{options.split}: {count} images")
    if count != card.splits[options.split]:
        print(f"the card expects {card.splits[options.split]} images: this is a part of the split")
    if predictions.strays:
        print(f"{predictions.strays} predictions belong to no image of this split")
    if found.nothing:
        print(f"{100 * found.nothing:.1f} % of the pixels hold no class of the card: wrong")
    report.write_asked(options.json, scores)
    return 0


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("score")
