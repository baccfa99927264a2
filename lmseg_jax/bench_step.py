"""Times whole updates of the paper's model, beside the machine's largest matrix products."""

import dataclasses
import math
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import (
    assembly,
    bench_parts,
    bench_text,
    configuration,
    programs,
    sharding,
    state,
)
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.step import Step, run_update

HEADS = ("linear", "text")
GRID = 8  # segments are made of 8 x 8 squares
PRODUCTS = 3  # large matrix products before and after each update


def paper_config(head: str, *, batch: int, slots: int, overrides: tuple[str, ...] = ()):
    """The paper's semantic model with one of the two heads that are timed.

    "text" is `lmseg_semantic` itself: CLIP ResNet-50, names of four datasets. "linear" is
    MaskFormer: ResNet-50 in its ImageNet form, no category guidance, ADE20K's 150 classes.

    Args:
      head: one of HEADS.
      batch: images of an update.
      slots: segments an image may have; unused ones are computed and thrown away.
      overrides: "--config.loss.resolution=quarter" and the like.

    Raises:
      UserError: an override names no key, or values do not fit each other.
    """
    config = configuration.load("lmseg_semantic", overrides)
    if head == "linear":
        config.data.train = ("ade20k",)
        config.model.head, config.model.decoder.order = "linear", "visual"
        config.model.backbone, config.model.pixels = "resnet", "imagenet"
        config.pretrained.text = ""
    config.batching.batch, config.batching.multiple = batch, 1
    config.data.max_targets = slots
    configuration.check(config)
    return config


def random_bucket(
    config: ConfigDict, cards: list[DatasetCard], *, size: int, targets: int
) -> dict[str, np.ndarray]:
    """Noise in which each image has `targets` segments, all of the first dataset."""
    rng = np.random.default_rng(0)
    batch, slots = config.batching.batch, config.data.max_targets
    cells = rng.integers(0, targets, (batch, GRID, GRID)).astype(np.int16)
    classes = np.full((batch, slots), -1, np.int32)
    classes[:, :targets] = rng.integers(0, len(cards[0].taxonomy), (batch, targets))
    side = np.ones((1, size // GRID, size // GRID), np.int16)
    return {
        "image": rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "segments": np.kron(cells, side),
        "classes": classes,
        "dataset": np.zeros(batch, np.int32),
    }


class Update:
    """One update of a model with random weights, compiled and ready to be timed.

    Frozen norms are the identity, because no weights are read; that costs what trained ones cost.
    Everything runs on the first device.

    Args:
      config: of the run; its weights and data are not read, only the names of its cards.
      size: of the square images, a multiple of 32.
      targets: segments of each image, at most `data.max_targets`.

    Attributes:
      gflop: of one update, all programs; see `flops.count`.
      temp_mb: most temporary memory of a program, MiB, as the compiler plans it.
      largest: name of that program.
      compile_s: seconds that compilation took.
    """

    def __init__(self, config: ConfigDict, *, size: int, targets: int):
        self.config, self.size, self.targets = config, size, targets
        self.mesh = sharding.make_mesh(1, 1, multiple=1, devices=jax.devices()[:1])
        self.cards = assembly.load_cards(config)
        self.vocabulary = assembly.vocabulary_of(config, self.cards)
        self.bucket = random_bucket(config, self.cards, size=size, targets=targets)
        self.optimizer = make_optimizer(config.optimizer)
        began = time.perf_counter()
        found = programs.of_update(
            config, self.cards, self.mesh, buckets=[(config.batching.batch, size, size)]
        )
        compiled = {program.name.split()[0]: program.compile() for program in found}
        self.compile_s = time.perf_counter() - began
        self.gflop = sum(program.flops for program in found) / 1e9
        memory = {
            name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()
        }
        self.largest = max(memory, key=memory.get)
        self.temp_mb = memory[self.largest] / 2**20
        names = {"text": "encode_text", "gradient": "gradients"}
        self.step = Step(**{names.get(name, name): program for name, program in compiled.items()})
        _, shardings = assembly.abstract_state(config, self.mesh, vocabulary=self.vocabulary)

        def begin():
            weights = state.weights(config.model, config.seed, vocabulary=self.vocabulary)
            return state.start(*weights, self.optimizer, average=config.optimizer.average > 0)

        self.state = jax.jit(begin, out_shardings=shardings)()
        self.loss = math.nan

    def run(self) -> float:
        """Makes one update; returns its seconds."""
        began = time.perf_counter()
        self.state, metrics = run_update(
            self.step, self.state, [self.bucket], mesh=self.mesh, seed=self.config.seed
        )
        jax.block_until_ready((self.state, metrics))
        seconds = time.perf_counter() - began
        self.loss = float(metrics["loss"])
        return seconds


class Peak:
    """The speed of a large product of f32 matrices; side: of the square ones.

    JAX's default precision, as that of the model's products: f32 on a CPU, lower on accelerators.
    """

    def __init__(self, side: int):
        self.side = side
        self._matrix = jax.random.normal(jax.random.key(0), (side, side))
        self._product = jax.jit(jnp.matmul)
        self._product(self._matrix, self._matrix).block_until_ready()

    def run(self) -> list[float]:
        """GFLOP/s of a few products."""
        found = []
        for _ in range(PRODUCTS):
            began = time.perf_counter()
            self._product(self._matrix, self._matrix).block_until_ready()
            found.append(2 * self.side**3 / 1e9 / (time.perf_counter() - began))
        return found


def measure(config: ConfigDict, *, size: int, targets: int, runs: int, side: int = 2048) -> dict:
    """Everything that `table` prints, as JSON.

    Args:
      config: see `paper_config`; any other will do.
      size: of the square images, a multiple of 32.
      targets: segments of each image.
      runs: timed updates, after one that is not.
      side: of the matrices whose product is the machine's peak.
    """
    update, peak = Update(config, size=size, targets=targets), Peak(side)
    update.run()
    times, speeds = [], [peak.run()]
    for _ in range(runs):
        times.append(update.run())
        speeds.append(peak.run())
    # before the parts, which keep arrays of their own
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss, bytes
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    median, best = statistics.median(times), max(map(max, speeds))
    shares = [
        update.gflop / seconds / statistics.median(before + after)
        for seconds, before, after in zip(times, speeds[:-1], speeds[1:], strict=True)
    ]
    parts = bench_parts.measure(
        config,
        state.graph(config.model, update.vocabulary),
        update.optimizer,
        state=update.state,
        bucket=sharding.batch_to_global(update.bucket, update.mesh),
        vocabulary=update.vocabulary,
        mesh=update.mesh,
        runs=runs,
    )
    found = {
        "device": jax.devices()[0].device_kind,
        "head": config.model.head,
        "backbone": config.model.backbone,
        "resolution": config.loss.resolution,
        "dtype": config.model.dtype,
        "size": size,
        "batch": config.batching.batch,
        "targets": targets,
        "slots": config.data.max_targets,
        "runs": runs,
        "median_s": median,
        "min_s": min(times),
        "max_s": max(times),
        "times_s": times,
        "gflop": update.gflop,
        "peak_gflops": best,
        "fraction": update.gflop / median / best,
        "fraction_in_turns": statistics.median(shares),
        "temp_mb": update.temp_mb,
        "temp_program": update.largest,
        "rss_mb": rss,
        "compile_s": update.compile_s,
        "loss": update.loss,
        "parts_s": parts,
    }
    if config.model.head == "text":
        found["text"] = dataclasses.asdict(bench_text.count(config, update.vocabulary)) | {
            "share": parts["text"] / median
        }
    return found


def table(found: dict) -> str:
    """What was measured, for a person."""
    median, gflop = found["median_s"], found["gflop"]
    lines = [
        f"{found['backbone']}, head {found['head']}, {found['batch']} x {found['size']}x"
        f"{found['size']}, {found['targets']} targets in {found['slots']} slots, loss at "
        f"{found['resolution']} resolution, {found['dtype']}, random weights, on {found['device']}",
        f"an update: median {median:.3f} s of {found['runs']}, {found['min_s']:.3f} to "
        f"{found['max_s']:.3f}; loss {found['loss']:.3f}",
        f"{gflop:.1f} GFLOP at {gflop / median:.1f} GFLOP/s, {found['fraction']:.1%} of "
        f"{found['peak_gflops']:.1f} GFLOP/s, the best f32 matrix product between the updates; "
        f"{found['fraction_in_turns']:.1%} of those right before and after each (medians)",
        f"memory: {found['temp_mb']:.0f} MiB of temporaries in the largest program, "
        f"{found['temp_program']}; {found['rss_mb']:.0f} MiB of the process at most; "
        f"{found['compile_s']:.0f} s to compile",
        "",
        "parts, each compiled by itself (forward and backward where not said otherwise):",
    ]
    for name, seconds in found["parts_s"].items():
        lines.append(f"  {name:16} {1000 * seconds:10.1f} ms  {seconds / median:6.1%} of an update")
    whole = sum(seconds for name, seconds in found["parts_s"].items() if name != "backbone forward")
    lines.append(
        f"  {'sum':16} {1000 * whole:10.1f} ms  {whole / median:6.1%}, forward counted once"
    )
    if "text" in found:
        text = found["text"]
        lines += [
            "",
            f"text path: {1000 * found['parts_s']['text']:.1f} ms, {text['share']:.1%} of an "
            f"update; {text['ours'] / 1e9:.1f} GFLOP against {text['naive'] / 1e9:.1f} for "
            f"{text['names']} names x {text['positions']} positions: "
            f"1/{text['naive'] / text['ours']:.1f}",
        ]
        if "recipe_share" in text:
            lines[-1] += (
                f"; {text['recipe_share']:.1%} of the {text['recipe_update'] / 1e9:.1f} GFLOP of "
                "an update of lmseg_semantic's own images"
            )
    return "\n".join(lines)
