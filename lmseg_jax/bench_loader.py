"""Times the parts of the loader, and the same work done by Pillow, image by image."""

import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import assembly
from lmseg_jax.errors import UserError
from lmseg_jax.pillow_recipe import PillowDecoder, pillow_pair, pillow_steps
from lmseg_jax.pipeline import augmentation
from lmseg_jax.pipeline.batches import Batch, Feed, Loader
from lmseg_jax.pipeline.buckets import Plan

STAGES = ("read", "decode", "geometry", "colour", "collate")
SIDES = ("here", "pillow")
BATCH = 8  # crops that are stacked at once
FARTHEST = 16.0  # grey levels in the mean between both sides' crops: more is not the same work
AGREEING = 0.99  # least share of equal segments: Pillow rounds some pixel centres to the other side


def measure(config: ConfigDict, *, images: int, runs: int) -> dict:
    """Everything that `table` prints, as JSON.

    Each run takes the same images and draws on both sides, one side after the other, on one core.
    Times are those of the processor, in ms an image, of which the median over the runs is given;
    the ratio is the median of the runs' ratios. At last the loader itself is run, with one thread
    and with `data.threads`, in images a second of the clock.

    Args:
      config: its training data is measured.
      images: of each dataset in each run.
      runs: how many.

    Raises:
      UserError: data is missing, or the two sides do not produce the same crops.
    """
    cards = assembly.load_cards(config)
    feeds = assembly.training_feeds(config, cards)
    plan = assembly.training_plan(config, feeds)
    shares = plan.shares.tolist()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        found = {feed.name: _measure_feed(feed, config, images=images, runs=runs) for feed in feeds}
        loader = _measure_loader(config, feeds, plan, images=images, runs=runs)
    finally:
        cv2.setNumThreads(threads)
    return {
        "cores": os.cpu_count(),
        "images": images,
        "runs": runs,
        "feeds": found,
        "mix": _mix(found, shares),
        "loader": loader,
    }


def table(found: dict) -> str:
    """What was measured, for a person."""
    lines = [
        f"medians of {found['runs']} alternating runs over {found['images']} images of each "
        f"dataset; one of {found['cores']} cores, ms an image",
        "",
        f"{'':30} {'':7}" + "".join(f"{stage:>9}" for stage in STAGES) + "    total  images/s",
    ]
    for name, row in {**found["feeds"], "mix": found["mix"]}.items():
        for side in SIDES:
            cells = "".join(f"{row[side][stage]:9.2f}" for stage in STAGES)
            total = row[side]["total"]
            start = f"{name if side == 'here' else '':30} {side:7}"
            lines.append(f"{start}{cells}{total:9.2f}{1000 / total:10.1f}")
        apart = ""
        if "grey_levels" in row:
            equal = 100 * row["equal_segments"]
            apart = f"; crops {row['grey_levels']:.1f} levels apart, {equal:.1f} % of labels equal"
        lines.append(f"{'':30} ratio {row['ratio']:.2f}{apart}")
    lines += ["", "the loader on the mix, images/s of the clock:"]
    for threads, speed in found["loader"].items():
        lines.append(f"  {threads} thread{'s' * (threads != '1')}: {speed:.1f}")
    speeds = list(found["loader"].values())
    if len(speeds) > 1:
        lines[-1] += f", {speeds[-1] / speeds[0]:.2f} times as many"
    return "\n".join(lines)


class _Clock:
    """Sums the processor time of this thread by stage."""

    def __init__(self):
        self.milliseconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.thread_time()

    def lap(self, stage: str) -> float:
        """Adds what passed since the last lap to a stage."""
        now = time.thread_time()
        passed, self._last = 1000 * (now - self._last), now
        self.milliseconds[stage] += passed
        return passed


def _measure_feed(feed: Feed, config: ConfigDict, *, images: int, runs: int) -> dict:
    """Median times of both sides, the ratio, and how much their crops differ."""
    indices = (np.arange(images) * max(1, len(feed.source) // images)) % len(feed.source)
    times, difference = {side: [] for side in SIDES}, {}
    for run in range(runs):
        batches = {}
        for side in SIDES:
            clock = _Clock()
            batches[side] = _run(feed, config, indices.tolist(), seed=run, side=side, clock=clock)
            spent = {stage: clock.milliseconds[stage] / images for stage in STAGES}
            times[side].append(spent | {"total": sum(spent.values())})
        difference = difference or _compare(feed.name, batches)
    row = {
        side: {
            key: statistics.median(run[key] for run in times[side]) for key in (*STAGES, "total")
        }
        for side in SIDES
    }
    pairs = zip(times["here"], times["pillow"], strict=True)
    ratios = [pillow["total"] / here["total"] for here, pillow in pairs]
    return {**row, "ratio": statistics.median(ratios), "ratios": ratios, **difference}


def _run(
    feed: Feed, config: ConfigDict, indices: Sequence[int], *, seed: int, side: str, clock: _Clock
) -> list[Batch]:
    """Batches of crops of these images, by one side."""
    rng = np.random.default_rng(seed)
    decoder = PillowDecoder() if side == "pillow" else contextlib.nullcontext
    steps = (pillow_steps if side == "pillow" else augmentation.steps)(feed.recipe)
    batches, crops = [], []
    for number, index in enumerate(indices, start=1):
        paths = [Path(config.data.root, name) for name in feed.source.files(index)]
        paths = [path for path in paths if path.is_file()]
        clock.lap("collate")
        for path in paths:
            path.read_bytes()
        read = clock.lap("read")
        with decoder():
            sample = feed.source[index]
        clock.lap("decode")
        clock.milliseconds["decode"] -= read  # the source has read the files once more
        if side == "pillow":
            image, segments = pillow_pair(sample, decoder)
        else:
            image, segments = sample.image, sample.segments.astype(np.int16)
        for name, step in steps:
            image, segments = step(image, segments, feed.recipe, rng)
            clock.lap("colour" if name == "color" else "geometry")
        crops.append(
            augmentation.finish(
                np.asarray(image),
                np.asarray(segments).astype(np.int16, copy=False),
                sample=sample,
                recipe=feed.recipe,
                max_targets=config.data.max_targets,
            )
        )
        if len(crops) == BATCH or number == len(indices):
            keys = ("image", "segments", "classes")
            batches.append({key: np.stack([getattr(crop, key) for crop in crops]) for key in keys})
            crops = []
        clock.lap("collate")
    return batches


def _compare(name: str, batches: dict[str, list[Batch]]) -> dict[str, float]:
    """Mean difference of grey levels and share of equal segments between the sides.

    Raises:
      UserError: the sides did not do the same work.
    """
    levels, agreeing = [], []
    for here, pillow in zip(*(batches[side] for side in SIDES), strict=True):
        if here["image"].shape != pillow["image"].shape:
            raise UserError(f"{name}: crops of different shapes; this is a mistake of the bench")
        levels.append(np.abs(here["image"].astype(int) - pillow["image"]).mean())
        agreeing.append(np.mean(here["segments"] == pillow["segments"]))
    found = {"grey_levels": float(np.mean(levels)), "equal_segments": float(np.mean(agreeing))}
    if found["grey_levels"] > FARTHEST or found["equal_segments"] < AGREEING:
        raise UserError(f"{name}: the crops differ, {found}; this is a mistake of the bench")
    return found


def _mix(found: dict[str, dict], shares: Sequence[float]) -> dict:
    """The mean over feeds as the plan mixes them."""
    rows = list(zip(found.values(), shares, strict=True))
    mixed = {
        side: {
            key: sum(share * row[side][key] for row, share in rows) for key in (*STAGES, "total")
        }
        for side in SIDES
    }
    return {**mixed, "ratio": mixed["pillow"]["total"] / mixed["here"]["total"]}


def _measure_loader(
    config: ConfigDict, feeds: Sequence[Feed], plan: Plan, *, images: int, runs: int
) -> dict[str, float]:
    """Images a second of the real loader, by number of threads."""
    updates = max(1, -(-images * len(feeds) // plan.batch))
    speeds = {threads: [] for threads in sorted({1, max(1, config.data.threads)})}
    for _ in range(runs):
        for threads, found in speeds.items():
            loader = Loader(
                feeds,
                plan,
                seed=config.seed,
                max_targets=config.data.max_targets,
                micro=config.batching.micro,
                threads=threads,
                on_error=config.data.on_error,
            )
            start = time.perf_counter()
            for _ in loader.iterate(0, updates):
                pass
            found.append(updates * plan.batch / (time.perf_counter() - start))
    return {str(threads): statistics.median(found) for threads, found in speeds.items()}
