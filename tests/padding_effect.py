"""What padding does to a trained model: `python -m tests.padding_effect --config C --workdir DIR`.

Every evaluation image is segmented as it is and on canvases with more padding at the right and
bottom. Prints the scores, the share of pixels whose class changes, and the mean change of the class
probabilities of the queries. The keys of a run can be set as on its own command line.
"""

import sys
from dataclasses import replace

import jax
import numpy as np

from lmseg_jax import configuration, evaluate, main, scoring
from lmseg_jax.datasets.sample import PADDING

EXTRA = (0, 32, 64, 128)  # pixels of padding at the right and at the bottom


class Recorder:
    """A network that remembers what it answered."""

    def __init__(self, network: scoring.Network):
        self.network, self.local, self.answers = network, network.local, []

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.network(batch)
        self.answers.append(np.asarray(jax.nn.softmax(found["logits"], axis=-1)))
        return found


def padded(prepare, extra: int):
    """`scoring.prepare` with `extra` more rows and columns of padding."""

    def more(sample, rule, **options):
        item = prepare(sample, rule, **options)
        return replace(
            item,
            image=np.pad(item.image, ((0, extra), (0, extra), (0, 0)), constant_values=128),
            segments=np.pad(item.segments, ((0, extra), (0, extra)), constant_values=PADDING),
        )

    return more


def run(argv: list[str]) -> None:
    """Prints one line a dataset and canvas."""
    options = configuration.parse(argv)
    configuration.check(options.config)
    main.start(options)
    network, sets, _ = evaluate.trained(options.config, options.workdir)
    prepare = scoring.prepare
    for data in sets:
        first = None
        for extra in EXTRA:
            scoring.prepare = padded(prepare, extra)
            recorder = Recorder(network)
            scores, pictures = scoring.evaluate_set(
                recorder, data, batch=1, threads=1, pictures=len(data.source)
            )
            labels = np.concatenate([picture.prediction.ravel() for picture in pictures])
            answers = np.concatenate(recorder.answers)
            first = first or {"labels": labels, "answers": answers}
            changed = 100 * np.mean(labels != first["labels"])
            moved = np.mean(np.abs(answers - first["answers"]).sum(axis=-1) / 2)
            print(
                f"{data.card.name} +{extra} pixels: mIoU {scores['miou']:.2f}, "
                f"PQ {scores.get('pq', float('nan')):.2f}, {changed:.2f} % of pixels change, "
                f"class probabilities move by {moved:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    run(sys.argv[1:])
