"""One update of the paper's model with all four crops: `python -m tests.paper_update`.

Random images and weights, one image of each dataset (batch 4, multiple 1); about 17 GiB and ten
minutes on two cores. Prints seconds, peak memory and the loss, and checks that they are finite.
"""

import resource
import time

import jax
import numpy as np

from configs import lmseg_semantic
from lmseg_jax import assembly, configuration, sharding, state
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.step import make_step, run_update


def random_bucket(seed: int, card, *, dataset: int, targets: int) -> dict[str, np.ndarray]:
    """One image of the card's crop size: a grid of 64-pixel squares, classes drawn from its own."""
    rng = np.random.default_rng(seed)
    height, width = card.train.crop
    cells = rng.integers(0, 12, (height // 64, width // 64)).astype(np.int16)
    classes = np.full((1, targets), -1, np.int32)
    classes[0, :12] = rng.choice(len(card.taxonomy), 12, replace=False)
    return {
        "image": rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8),
        "segments": np.kron(cells, np.ones((64, 64), np.int16))[None],
        "classes": classes,
        "dataset": np.full(1, dataset, np.int32),
    }


def run() -> None:
    """Builds the model and makes the update."""
    config = lmseg_semantic.get_config()
    config.batching.batch, config.batching.multiple = 4, 1
    config.pretrained.image = config.pretrained.text = ""
    config.model.resnet.norm = "group"  # frozen norms need weights
    configuration.check(config)
    cards = assembly.load_cards(config)
    mesh = sharding.make_mesh(1, 1, multiple=1)
    began = time.perf_counter()
    first, shardings = assembly.initial_state(config, mesh)
    step = make_step(
        config,
        state.graph(config.model),
        make_optimizer(config.optimizer),
        vocabulary=assembly.vocabulary_of(config, cards),
        mesh=mesh,
        shardings=shardings,
    )
    print(f"initial weights: {time.perf_counter() - began:.0f} s", flush=True)
    buckets = [
        random_bucket(i, card, dataset=i, targets=config.data.max_targets)
        for i, card in enumerate(cards)
    ]
    for bucket in buckets:
        print("bucket", bucket["image"].shape, flush=True)
    began = time.perf_counter()
    after, metrics = run_update(step, first, buckets, mesh=mesh, seed=0)
    metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"one update with compilation: {seconds:.0f} s, peak {peak:.1f} GiB, {metrics}")
    assert int(after.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert step.programs() == 4 + len({bucket["image"].shape for bucket in buckets})


if __name__ == "__main__":
    run()
