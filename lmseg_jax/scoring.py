"""Segments evaluation sets with one set of weights and scores them."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import metrics, postprocess, sharding
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.recipe import TestRule
from lmseg_jax.datasets.sample import PADDING, Sample, semantic_map
from lmseg_jax.models.lmseg import MULTIPLE
from lmseg_jax.pipeline import transforms
from lmseg_jax.state import merge

WAITING = 64  # images that may wait for others of their size before they are segmented
SHAPES = 64  # compiled programs that a network keeps; each takes megabytes


@dataclass(frozen=True)
class EvaluationSet:
    """Images to segment and the words to ask for.

    Attributes:
      source: random access to Samples, annotated in the card's taxonomy.
      card: whose names are asked and whose thresholds hold.
      dataset: the card's row of the Text.
      scenes: the card that the images come from, whose test rule resizes them; None = `card`.
    """

    source: Sequence[Sample]
    card: DatasetCard
    dataset: int
    scenes: DatasetCard | None = None

    @property
    def test(self) -> TestRule:
        return (self.scenes or self.card).test


@dataclass(frozen=True)
class Picture:
    """One image with its truth and prediction, for panels."""

    sample: Sample
    prediction: np.ndarray
    segments: np.ndarray | None

    @property
    def truth(self) -> np.ndarray:
        return semantic_map(self.sample)


class Network:
    """The final predictions of a model, compiled once an image shape; the last 64 shapes are kept.

    Works on this process's own devices: parameters are gathered once by `load`, images of equal
    shape are dealt out over the devices.
    """

    def __init__(self, graphdef: nnx.GraphDef, vocabulary: dict[str, np.ndarray], mesh: Mesh):
        self.local = mesh if jax.process_count() == 1 else sharding.local_mesh()
        self.mesh = mesh

        def text_of(params, frozen):
            model = merge(graphdef, params, frozen)
            return model.encode_text(
                jnp.asarray(vocabulary["tokens"]),
                jnp.asarray(vocabulary["index"]),
                jnp.asarray(vocabulary["valid"]),
            )

        def predict(params, frozen, text, batch):
            model = merge(graphdef, params, frozen)
            valid = batch["segments"] != PADDING
            found = model(batch["image"], text, batch["dataset"], valid=valid, last=True)
            return {"logits": found["logits"][0], "masks": found["masks"][0]}

        self._text_of, self._predict = jax.jit(text_of), jax.jit(predict)
        self._programs: OrderedDict[tuple[int, ...], jax.stages.Compiled] = OrderedDict()

    def load(self, params: dict, frozen: dict) -> None:
        """Takes new weights and embeds the names once."""
        if self.local is not self.mesh:
            gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(self.mesh))
            whole = jax.tree.map(
                lambda x: np.asarray(x.addressable_data(0)), gather((params, frozen))
            )
            params, frozen = jax.device_put(whole, sharding.replicated(self.local))
        self.params, self.frozen = params, frozen
        self.text = self._text_of(params, frozen)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """image u8 [B, H, W, 3], segments i16 [B, H, W] (-2 padding), dataset i32 [B] ->
        logits f32 [B, Q, K], masks f32 [B, Q, H/4, W/4] of the last layer."""
        shape = batch["image"].shape
        operands = (
            self.params,
            self.frozen,
            self.text,
            sharding.batch_to_global(batch, self.local),
        )
        if shape not in self._programs:
            self._programs[shape] = self._predict.lower(*operands).compile()
            if len(self._programs) > SHAPES:
                self._programs.popitem(last=False)
        self._programs.move_to_end(shape)
        return jax.device_get(self._programs[shape](*operands))


@dataclass(frozen=True)
class Version:
    """How an image is changed before the network sees it: both sides times `scale`, mirrored."""

    scale: float = 1.0
    flipped: bool = False


PLAIN = Version()


def versions(*, flip: bool, scales: Sequence[float]) -> list[Version]:
    """The versions of an image that are averaged: each scale (none = 1), each also mirrored."""
    return [
        Version(scale, flipped)
        for scale in dict.fromkeys(map(float, scales or (1.0,)))
        for flipped in ((False, True) if flip else (False,))
    ]


@dataclass(frozen=True)
class Prepared:
    """A sample at the network's size, in a canvas whose sides are multiples of 32."""

    sample: Sample
    image: np.ndarray
    segments: np.ndarray
    network: tuple[int, int]
    version: Version = PLAIN
    index: int = 0


def prepare(sample: Sample, rule: TestRule, *, version: Version = PLAIN) -> Prepared:
    """Resizes by a card's test rule and pads right and bottom.

    Another scale resizes the resized image once more, to `scale` times the rule's short side and
    limit of the long side, as MaskFormer's test-time augmentation does.
    """
    image = transforms.test_resize(sample.image, rule)
    if version.scale != 1:
        image = transforms.test_resize(image, rule.times(version.scale))
    if version.flipped:
        image = image[:, ::-1]
    h, w = image.shape[:2]
    rows, columns = -h % MULTIPLE, -w % MULTIPLE
    return Prepared(
        sample,
        np.pad(image, ((0, rows), (0, columns), (0, 0)), constant_values=128),
        np.pad(np.zeros((h, w), np.int16), ((0, rows), (0, columns)), constant_values=PADDING),
        (h, w),
        version,
    )


def batches(items: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Groups of equal canvas shape, `size` long or less.

    Shorter are the last of each shape, and the oldest where more than 64 images wait for others.
    """
    waiting: dict[tuple[int, ...], list[Prepared]] = {}
    for item in items:
        group = waiting.setdefault(item.image.shape, [])
        group.append(item)
        if len(group) == size:
            yield waiting.pop(item.image.shape)
        elif sum(map(len, waiting.values())) > WAITING:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def evaluate_set(
    network: Network,
    data: EvaluationSet,
    *,
    batch: int,
    threads: int,
    pictures: int = 0,
    flip: bool = False,
    scales: Sequence[float] = (),
) -> tuple[dict, list[Picture]]:
    """Scores of one set, in percent, merged over all processes.

    With `flip` or `scales` the label maps are those of the averaged scores of several versions of
    the image (`postprocess.semantic_mean`). Segments are always those of the plain image: queries
    of different versions do not correspond to each other, and MaskFormer averages none either.

    Args:
      network: with weights loaded.
      data: the set; this process takes every n-th image.
      batch: images a device and call.
      threads: that read images and paint predictions.
      pictures: how many of this process's first images to return with their predictions.
      flip: average with the mirrored image.
      scales: factors of the test size whose scores are averaged; () = only the test size.

    Returns:
      The mIoU family, for panoptic cards also the PQ family; and the pictures.
    """
    card = data.card
    taxonomy = card.taxonomy
    panoptic = card.task == "panoptic"
    semantic_score = metrics.SemanticMetric(taxonomy.names)
    panoptic_score = metrics.PanopticMetric(taxonomy.names, taxonomy.things)
    size = batch * network.local.size
    mine = range(jax.process_index(), len(data.source), jax.process_count())
    found: dict[int, Picture] = {}
    names = len(taxonomy) + 1  # background last; further columns are other datasets' padding
    averaged = versions(flip=flip, scales=scales)
    asked = averaged if not panoptic or PLAIN in averaged else [PLAIN, *averaged]

    def read(index: int) -> list[Prepared]:
        sample = data.source[index]
        return [replace(prepare(sample, data.test, version=v), index=index) for v in asked]

    def paint(answers: dict[Version, tuple[Prepared, np.ndarray, np.ndarray]]):
        views = {
            version: postprocess.View(
                logits[:, :names], masks, item.image.shape[:2], item.network, version.flipped
            )
            for version, (item, logits, masks) in answers.items()
        }
        item = answers[asked[0]][0]
        size = item.sample.image.shape[:2]
        labels = postprocess.semantic_mean(
            [views[version] for version in averaged],
            size=size,
            resize="masks" if panoptic else "scores",
        )
        if not panoptic:
            return item, labels, None, None
        plain = views[PLAIN]
        segments, info = postprocess.panoptic(
            plain.logits,
            plain.masks,
            padded=plain.padded,
            network=plain.network,
            size=size,
            things=taxonomy.things,
            object_mask=card.object_mask,
            overlap=card.overlap,
        )
        return item, labels, segments, info

    with ThreadPoolExecutor(threads) as pool:

        def items():
            pending = []
            for i in mine:
                pending.append(pool.submit(read, i))
                if len(pending) >= 2 * size + threads:
                    yield from pending.pop(0).result()
            while pending:
                yield from pending.pop(0).result()

        waiting = {}  # answers of images whose other versions are still to come
        for group in batches(items(), size):
            full = group + [group[-1]] * (size - len(group))
            output = network(
                {
                    "image": np.stack([item.image for item in full]),
                    "segments": np.stack([item.segments for item in full]),
                    "dataset": np.full(size, data.dataset, np.int32),
                }
            )
            whole = []
            for item, logits, masks in zip(group, output["logits"], output["masks"], strict=False):
                answers = waiting.setdefault(item.index, {})
                answers[item.version] = item, logits, masks
                if len(answers) == len(asked):
                    whole.append(waiting.pop(item.index))
            for item, labels, segments, info in pool.map(paint, whole):
                sample = item.sample
                semantic_score.update(labels, semantic_map(sample))
                if panoptic:
                    panoptic_score.update(
                        segments,
                        info,
                        sample.segments,
                        sample.classes,
                        sample.area,
                        sample.crowd,
                        name=sample.name,
                    )
                if item.index < pictures * jax.process_count():
                    found[item.index] = Picture(sample, labels, segments)
    scores = merged(semantic_score).compute()
    if panoptic:
        scores |= merged(panoptic_score).compute()
    return scores, [found[index] for index in sorted(found)]


def averaging(config: ConfigDict) -> dict:
    """The arguments of `evaluate_set` that say what is averaged."""
    return {"flip": config.evaluation.flip, "scales": tuple(config.evaluation.scales)}


def merged(metric):
    """The metric summed over processes."""
    if jax.process_count() == 1:
        return metric
    arrays = multihost_utils.process_allgather(metric.arrays())
    return metric.from_arrays(jax.tree.map(lambda x: x.sum(axis=0), arrays))


def evaluate_all(
    network: Network, sets: Sequence[EvaluationSet], config: ConfigDict
) -> tuple[dict[str, dict], dict[str, list[Picture]]]:
    """{dataset: scores} and {dataset: pictures} of every set."""
    scores, pictures = {}, {}
    for data in sets:
        scores[data.card.name], pictures[data.card.name] = evaluate_set(
            network,
            data,
            batch=config.evaluation.batch,
            threads=config.data.threads,
            pictures=config.evaluation.pictures,
            **averaging(config),
        )
    return scores, pictures


def cross_table(
    network: Network,
    worlds: Sequence[DatasetCard],
    sets: Sequence[EvaluationSet],
    relabel: Callable[[DatasetCard, DatasetCard], Sequence[Sample]],
    config: ConfigDict,
) -> dict[str, dict[str, dict[str, float]]]:
    """Each world's scenes scored in each taxonomy: {scenes: {words: {miou, pq}}}.

    Args:
      network: with weights loaded.
      worlds: whose scenes are segmented.
      sets: whose words are asked; their images have no part in it.
      relabel: (scenes, words) -> the scenes of the first card annotated in the second's taxonomy.
      config: of the run.
    """
    table = {}
    for scenes in worlds:
        table[scenes.name] = {}
        for words in sets:
            source = relabel(scenes, words.card)
            data = EvaluationSet(source, words.card, words.dataset, scenes=scenes)
            scores, _ = evaluate_set(
                network,
                data,
                batch=config.evaluation.batch,
                threads=config.data.threads,
                **averaging(config),
            )
            table[scenes.name][words.card.name] = {
                key: scores[key] for key in ("miou", "pq") if key in scores
            }
    return table
