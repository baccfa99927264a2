"""What needs no learning worth the name: scores that a model must leave far behind.

Three predictors of the class of a pixel, fitted in seconds. A dataset on which they do well is too
easy to support any claim, so demos and results print them beside the model.
"""

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy.spatial import cKDTree

from lmseg_jax.datasets.sample import VOID, Sample, semantic_map
from lmseg_jax.errors import UserError
from lmseg_jax.metrics import SemanticMetric
from lmseg_jax.taxonomy import Taxonomy

_LONGEST = 320  # larger images are reduced to this long side
_PIXELS = 60_000  # drawn from the training images, in all
_REFERENCES = 20_000  # of them remembered by the colour lookup
_NEIGHBOURS = 15
_LEVELS = 32  # of each channel in the colour lookup
_REACH = 3  # a patch is 7 x 7
_HIDDEN = 64
_STEPS = 600
_BATCH = 1024
_CHUNK = 16_384  # pixels classified at once

Predictor = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> int32 [H, W]


class Source(Protocol):
    """Anything that gives annotated images by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def trivial_baselines(
    train: Source,
    evaluate: Source,
    taxonomy: Taxonomy,
    *,
    images: int = 200,
    seed: int = 0,
) -> dict[str, dict]:
    """Scores of three predictors that look at one pixel, or at 7 x 7 of them, at a time.

    - "majority": always the class that has most pixels in training.
    - "colour": vote of the 15 nearest of 20,000 training pixels in RGB (table of 32^3 colours).
    - "patches": a perceptron (147-64-64-K) on the patch around the pixel.

    Args:
      train: what they are fitted on; `images` of it, evenly spread.
      evaluate: what they are scored on; at most `images` of it, evenly spread. Images above 320
        pixels are reduced first, here and in training.
      taxonomy: names the classes that both sources use.
      images: how many images of each source are read at most.
      seed: of the pixels drawn and of the perceptron.

    Returns:
      For each predictor `{"miou": ..., "iou": {class: ...}}` in percent, without void pixels;
      classes that do not occur in the evaluation truth have None and no part in the mean.

    Raises:
      UserError: no training image has a labelled pixel.
    """
    rng = np.random.default_rng(seed)
    quota = max(1, _PIXELS // max(1, min(images, len(train))))
    counts, patches, classes = _draw_pixels(
        _spread(train, images), len(taxonomy), quota=quota, rng=rng
    )
    if not counts.any():
        raise UserError(
            f"{taxonomy.name}: the training images have no labelled pixel; check its labels"
        )
    center = patches[:, _REACH, _REACH]
    predictors = {
        "majority": _majority(counts),
        "colour": _colour_lookup(center[:_REFERENCES], classes[:_REFERENCES]),
        "patches": _patch_perceptron(patches, classes, len(taxonomy), rng=rng),
    }
    metrics = {name: SemanticMetric(taxonomy.names) for name in predictors}
    for image, truth in _spread(evaluate, images):
        for name, predict in predictors.items():
            metrics[name].update(predict(image), truth)
    scores = {name: metric.compute() for name, metric in metrics.items()}
    return {name: {key: found[key] for key in ("miou", "iou")} for name, found in scores.items()}


def _spread(source: Source, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image and class map of at most `images` images from all over the source, reduced if large."""
    for index in np.linspace(0, len(source) - 1, min(images, len(source))).round().astype(int):
        sample = source[int(index)]
        image, truth = sample.image, semantic_map(sample)
        factor = _LONGEST / max(truth.shape)
        if factor < 1:
            size = (round(truth.shape[1] * factor), round(truth.shape[0] * factor))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            truth = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST)
        yield image, truth


def _windows(image: np.ndarray) -> np.ndarray:
    """The patch around each pixel, a view uint8 [H, W, 7, 7, 3]; the border is mirrored."""
    around = np.pad(image, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="symmetric")
    view = np.lib.stride_tricks.sliding_window_view(around, (2 * _REACH + 1,) * 2, axis=(0, 1))
    return view.transpose(0, 1, 3, 4, 2)


def _draw_pixels(
    pairs: Iterator[tuple[np.ndarray, np.ndarray]],
    classes: int,
    *,
    quota: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class, int64 [K]; patches [N, 7, 7, 3] and classes [N], `quota` an image."""
    side = 2 * _REACH + 1
    counts = np.zeros(classes, np.int64)
    patches, truths = [np.empty((0, side, side, 3), np.uint8)], [np.empty(0, np.int32)]
    for image, truth in pairs:
        rows, columns = np.nonzero(truth != VOID)
        counts += np.bincount(truth[rows, columns], minlength=classes)
        chosen = rng.permutation(len(rows))[:quota]
        patches.append(_windows(image)[rows[chosen], columns[chosen]])
        truths.append(truth[rows[chosen], columns[chosen]])
    order = rng.permutation(sum(len(part) for part in truths))
    return counts, np.concatenate(patches)[order], np.concatenate(truths)[order]


def _majority(counts: np.ndarray) -> Predictor:
    return lambda image: np.full(image.shape[:2], counts.argmax(), np.int32)


def _colour_lookup(colors: np.ndarray, classes: np.ndarray) -> Predictor:
    """Table of the class that most of the nearest training colours have."""
    side = 256 // _LEVELS
    steps = np.arange(_LEVELS) * side + (side - 1) / 2
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    # A little fixed noise keeps equal colours from making the tree degenerate.
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, colors.shape)
    near = cKDTree(colors + spread).query(grid, k=min(_NEIGHBOURS, len(colors)))[1]
    votes = np.zeros((len(grid), int(classes.max()) + 1), np.int32)
    np.add.at(votes, (np.arange(len(grid))[:, None], classes[near.reshape(len(grid), -1)]), 1)
    table = votes.argmax(axis=1).astype(np.int32).reshape((_LEVELS,) * 3)

    def predict(image):
        red, green, blue = np.moveaxis(image // side, -1, 0)
        return table[red, green, blue]

    return predict


def _logits(layers: list[tuple[Array, Array]], patches: Array) -> Array:
    """Class scores float32 [N, K] of patches uint8 [N, 147]."""
    x = (patches.astype(jnp.float32) - 127.5) / 64
    for kernel, bias in layers[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    kernel, bias = layers[-1]
    return x @ kernel + bias[None]


@functools.partial(jax.jit, static_argnames="steps")
def _fit(layers, patches, classes, key, *, steps: int):
    """Adam on random batches; returns the fitted layers."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def loss(layers, batch):
        logits = _logits(layers, patches[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes[batch]).mean()

    def step(carry, key):
        layers, state = carry
        batch = jax.random.randint(key, (_BATCH,), 0, len(classes))
        updates, state = optimizer.update(jax.grad(loss)(layers, batch), state)
        return (optax.apply_updates(layers, updates), state), None

    start = (layers, optimizer.init(layers))
    return jax.lax.scan(step, start, jax.random.split(key, steps))[0][0]


@jax.jit
def _classify(layers, patches):
    return _logits(layers, patches).argmax(axis=-1)


def _patch_perceptron(
    patches: np.ndarray, classes: np.ndarray, count: int, *, rng: np.random.Generator
) -> Predictor:
    flat = patches.reshape(len(patches), -1)
    widths = [flat.shape[1], _HIDDEN, _HIDDEN, count]
    layers = [
        (
            (rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32),
            np.zeros(b, np.float32),
        )
        for a, b in pairwise(widths)
    ]
    key = jax.random.key(int(rng.integers(2**31)))
    layers = _fit(layers, flat, classes, key, steps=_STEPS)

    def predict(image):
        pixels = _windows(image).reshape(-1, flat.shape[1])
        result = np.empty(len(pixels), np.int32)
        for first in range(0, len(pixels), _CHUNK):
            chunk = pixels[first : first + _CHUNK]
            padded = np.pad(chunk, ((0, _CHUNK - len(chunk)), (0, 0)))
            result[first : first + _CHUNK] = np.asarray(_classify(layers, padded))[: len(chunk)]
        return result.reshape(image.shape[:2])

    return predict
