"""What a batch does to the answers for its images: `python -m tests.batching_effect [CONFIG]`.

Noise images go through the config's model with random weights alone and in batches of 2 and 4.
Prints the largest change of class and mask logits, relative to the largest of them.
"""

import sys

import jax
import numpy as np

from lmseg_jax import assembly, configuration, scoring, sharding, state

SIZE = (128, 192)


def run(argv: list[str]) -> None:
    """Prints one line a batch size."""
    config = configuration.load(argv[0] if argv else "demo")
    mesh = sharding.make_mesh(1, 1, multiple=1)
    cards = assembly.load_cards(config)
    network = scoring.Network(
        state.graph(config.model), assembly.vocabulary_of(config, cards), mesh
    )
    weights = jax.jit(lambda: state.weights(config.model, config.seed))()
    network.load(*jax.device_put(weights, sharding.replicated(mesh)))
    rng = np.random.default_rng(0)
    images = {
        "image": rng.integers(0, 256, (4, *SIZE, 3), dtype=np.uint8),
        "segments": np.zeros((4, *SIZE), np.int16),
        "dataset": np.zeros(4, np.int32),
    }
    alone = [network({key: value[i : i + 1] for key, value in images.items()}) for i in range(4)]
    for size in (2, 4):
        changes = {}
        for first in range(0, 4, size):
            found = network({key: value[first : first + size] for key, value in images.items()})
            for key in ("logits", "masks"):
                for i in range(size):
                    one = alone[first + i][key][0]
                    real = np.abs(one) < 1e4  # padded classes hold a number that stands for never
                    change = np.abs(found[key][i] - one)[real].max() / np.abs(one[real]).max()
                    changes[key] = max(changes.get(key, 0), float(change))
        words = ", ".join(f"{key} {value:.1e}" for key, value in changes.items())
        print(f"batch of {size}: largest relative change of {words}", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
