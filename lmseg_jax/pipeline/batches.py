"""Training batches: a pure function of (seed, update number), read ahead by threads or processes.

Every dataset is an endless list of examples, example i fixed by (seed, name, i): which image comes,
in an order shuffled anew each epoch, and what is drawn to augment it. The plan says which examples
an update takes. So a run can start at any update, with any number of threads, processes and hosts.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline import skipping, transforms
from lmseg_jax.pipeline.augmentation import augment
from lmseg_jax.pipeline.policies import AnyPlan

UPDATES_AHEAD = 2  # how many updates are read before they are asked for
LINGER = 30  # seconds that a loader process stays after SIGTERM

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to the samples of one split; must be picklable where workers are used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Feed:
    """One source of training crops: a dataset, or a part of one with crops of its own shape.

    Attributes:
      name: unique; decides what is drawn (together with the seed).
      source: its samples.
      recipe: how they are augmented.
      dataset: index of the dataset in the batch and in Text.
    """

    name: str
    source: Source
    recipe: Recipe
    dataset: int


@dataclass(frozen=True)
class Update:
    """Everything that one optimizer update reads.

    Attributes:
      step: number of the update, from 0.
      buckets: batches of one shape each: image uint8 [B, H, W, 3], segments int16 [B, H, W]
        (-1 void, -2 padding), classes int32 [B, T] (-1 unused), dataset int32 [B].
      dropped: segments beyond `max_targets` that became void, for each feed with images here.
      skipped: what was wrong with each file that was replaced, likewise; empty where all is well.
    """

    step: int
    buckets: list[Batch]
    dropped: dict[str, int]
    skipped: dict[str, tuple[str, ...]]


class Loader:
    """Reads, augments and batches the crops of any range of updates."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        plan: AnyPlan,
        *,
        seed: int,
        max_targets: int,
        micro: int = 0,
        workers: int = 0,
        threads: int = 2,
        on_error: str = "stop",
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Prepares the loader; nothing is read yet.

        Args:
          feeds: the sources, in the order of the plan.
          plan: which feed gives which images to which update; crops are padded to its shapes.
          seed: of shuffling and augmentation, not negative.
          max_targets: T, segments that a crop may have.
          micro: images of a bucket at most, over all processes; 0 = no limit.
          workers: processes that read ahead; 0 = threads of this process only. They hand over
            crops through shared memory, of which a container may need more than its default.
          threads: of each process; 0 = read when asked.
          on_error: "stop" raises what is wrong with a file, "skip" takes another image.
          process_index: which share of every bucket is this host's.
          process_count: number of hosts; it must divide the plan's `multiple`.

        Raises:
          UserError: a feed is empty, two have the same name, `micro` or `process_count` does not
            fit the plan's `multiple`.
        """
        names = [feed.name for feed in feeds]
        for feed in feeds:
            if names.count(feed.name) > 1:
                raise UserError(f"data.train names {feed.name} twice; use batching.weights instead")
            if not len(feed.source):
                raise UserError(f"{feed.name}: the training split has no images")
        if plan.multiple % process_count:
            raise UserError(
                f"batching.multiple = {plan.multiple} cannot be shared by {process_count} "
                f"processes; use a multiple of {process_count}"
            )
        plan.pieces(0, micro=micro)  # checks micro
        self._feeds = tuple(feeds)
        self._share = Share(plan, micro, process_index, process_count)
        self._workers = workers
        self._threads = threads
        self._examples = [
            _examples(
                feed,
                seed,
                augmentation=Augment(feed.recipe, shape, max_targets),
                on_error=on_error,
            )
            for feed, shape in zip(feeds, plan.shapes, strict=True)
        ]
        self._named = [
            _examples(feed, seed, augmentation=name_of, on_error=on_error) for feed in feeds
        ]

    def iterate(self, start: int, stop: int) -> Iterator[Update]:
        """Yields the updates start..stop-1; each is the same whatever `start` is.

        Raises:
          UserError: as raised by a source, in the update that needs the sample; where bad files
            are skipped, only if ten others cannot be read either.
        """
        crops = self._read(start, stop)
        try:
            for step in range(start, stop):
                yield self._gather(step, crops)
        finally:
            crops.close()

    def names(self, step: int) -> dict[str, list[str]]:
        """The images of one update, over all processes: names of samples by feed.

        They are read again for it. Where bad files are skipped, these are those that came instead.
        """
        whole = Share(self._share.plan, self._share.micro, 0, 1)
        found = {}
        for source, example in (place for places in whole.pieces(step) for place in places):
            name = self._named[source][example]["name"]
            found.setdefault(self._feeds[source].name, []).append(name)
        return found

    def _read(self, start: int, stop: int) -> grain.DatasetIterator:
        """The crops of this host in the order in which batches need them."""
        order = Order(self._share, start, stop)
        crops = grain.MapDataset.select_from_datasets(self._examples, order)
        ahead = UPDATES_AHEAD * self._share.rows
        workers = min(self._workers, len(order))
        if not workers:
            ready = max(ahead, self._threads) if self._threads else 0
            return iter(crops.to_iter_dataset(grain.ReadOptions(self._threads, ready)))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands absl flags to its workers
        # Crops are batched after they have left the workers: batches never depend on their number.
        return iter(
            crops.to_iter_dataset(grain.ReadOptions(self._threads, self._threads)).mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-ahead // workers)),
                worker_init_fn=start_worker,
            )
        )

    def _gather(self, step: int, crops: Iterator[dict[str, Any]]) -> Update:
        buckets, dropped, skipped = [], {}, {}
        for places in self._share.pieces(step):
            feeds = [self._feeds[source] for source, _ in places]
            rows = [next(crops) for _ in places]
            batch = {
                key: np.stack([row[key] for row in rows])
                for key in ("image", "segments", "classes")
            }
            batch["dataset"] = np.array([feed.dataset for feed in feeds], np.int32)
            buckets.append(batch)
            for feed, row in zip(feeds, rows, strict=True):
                dropped[feed.name] = dropped.get(feed.name, 0) + int(row["dropped"])
                skipped[feed.name] = skipped.get(feed.name, ()) + row["skipped"]
        return Update(step, buckets, dropped, skipped)


def _examples(
    feed: Feed, seed: int, *, augmentation: skipping.Augmentation, on_error: str
) -> grain.MapDataset:
    """The endless list of what an augmentation makes of a feed's samples."""
    seed = feed_seed(seed, feed.name)
    if on_error == "skip":
        return skipping.examples(feed.name, feed.source, seed=seed, augmentation=augmentation)
    source = grain.MapDataset.source(feed.source)
    return source.seed(seed).shuffle().repeat(None).random_map(augmentation)


@dataclass(frozen=True)
class Augment:
    """`augment` with its settings, in the form that Grain calls and pickles."""

    recipe: Recipe
    shape: tuple[int, int]
    max_targets: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        crop = augment(sample, self.recipe, max_targets=self.max_targets, rng=rng)
        image, segments = transforms.pad(crop.image, crop.segments, size=self.shape)
        return {
            "image": image,
            "segments": segments,
            "classes": crop.classes,
            "dropped": crop.dropped,
            "skipped": (),
        }


def name_of(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    """Stands for `Augment` where only the name of a sample is asked for; nothing is drawn."""
    del rng
    return {"name": sample.name}


@dataclass(frozen=True)
class Share:
    """This host's contiguous part of every piece of the plan."""

    plan: AnyPlan
    micro: int
    process_index: int
    process_count: int

    @property
    def rows(self) -> int:
        """Images that this host reads for one update."""
        return self.plan.batch // self.process_count

    def pieces(self, step: int) -> list[tuple[tuple[int, int], ...]]:
        """(source, example) of each image of each bucket of an update."""
        result = []
        for piece in self.plan.pieces(step, micro=self.micro):
            size = len(piece) // self.process_count
            first = self.process_index * size
            result.append(piece.rows[first : first + size])
        return result


class Order(grain.transforms.DatasetSelectionMap):
    """Crop j of a range of updates -> (source, example), for Grain."""

    def __init__(self, share: Share, start: int, stop: int):
        self._share = share
        self._start = start
        self._updates = max(0, stop - start)

    def __len__(self) -> int:
        return self._updates * self._share.rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        update, row = divmod(index, self._share.rows)
        for places in self._share.pieces(self._start + update):
            if row < len(places):
                return places[row]
            row -= len(places)
        raise IndexError(index)


def feed_seed(seed: int, name: str) -> int:
    """Seed of one feed, 0..2^32-1: equal seeds would draw equal augmentations for two datasets."""
    words = [seed, *name.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])


def start_worker(worker: int, workers: int) -> None:
    """Runs at each worker's start: no OpenCV threads that compete, and no life without the run.

    A worker whose parent was killed would otherwise wait for it forever.
    """
    cv2.setNumThreads(0)
    # Ctrl-C reaches all processes, and so does Slurm's SIGTERM; the run decides what follows
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_later(*_) -> None:
    """Leaves the run time to save; who waits for this process to end does not wait for ever."""
    last = threading.Timer(LINGER, os._exit, (1,))
    last.daemon = True
    last.start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
