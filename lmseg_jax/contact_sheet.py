"""Contact sheets of a dataset: images beside their labels, as stored and as training sees them."""

from collections.abc import Sequence

import cv2
import numpy as np

from lmseg_jax import visualize
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.sample import PADDING, VOID, Sample
from lmseg_jax.pipeline.augmentation import Crop

LONG_SIDE = 360  # of one picture, pixels
LONG_SIDE_OF_CROPS = 300  # likewise, where crops stand beside
CLASSES = 40  # a legend with more than this shows only what occurs on the sheet
# Labels that are no class: what the legend calls them, and the stripes that cover the grey image.
STRIPES = {VOID: ("(void: black stripes)", 0), PADDING: ("(padding: white stripes)", 255)}


def contact_sheet(
    card: DatasetCard,
    samples: Sequence[Sample],
    *,
    title: str,
    crops: Sequence[Sequence[Crop]] = (),
) -> np.ndarray:
    """One picture of images beside their labels, with the colour of every class.

    Args:
      card: gives names and colours.
      samples: what is drawn, two a row; with crops one a row.
      title: the line on top.
      crops: training crops of each sample, drawn beside it; as many for each.

    Returns:
      uint8 [H, W, 3].
    """
    maps, rows = [], []
    for i, sample in enumerate(samples):
        long_side = LONG_SIDE_OF_CROPS if crops else LONG_SIDE
        height, width = sample.segments.shape
        words = f"{width}x{height}, {len(sample.classes)} segments: {sample.name}"
        views = [(words, sample.image, sample.segments, sample.classes)]
        for crop in crops[i] if crops else ():
            height, width = crop.segments.shape
            classes = crop.classes[crop.classes >= 0]
            words = f"crop {width}x{height}, {len(classes)} segments"
            views.append((words, crop.image, crop.segments, classes))
        row = []
        for words, image, segments, classes in views:
            maps.append(_labels(segments, classes))
            row.append(_pair(card, words, image, maps[-1], segments, long_side=long_side))
        rows.append(row)
    if not crops:
        rows = [[cell for row in rows[i : i + 2] for cell in row] for i in range(0, len(rows), 2)]
    body = visualize.grid(rows, gap=10)
    width = body.shape[1]
    parts = [visualize.title_bar(title, width), _legend(card, maps, width=width), body]
    return visualize.grid([[part] for part in parts], gap=6)


def _labels(segments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Class of each pixel, int32 [H, W], -1 void, -2 padding."""
    table = np.array([*classes, PADDING, VOID], np.int32)  # read from the end by -2 and -1
    return table[segments]


def _pair(
    card: DatasetCard,
    words: str,
    image: np.ndarray,
    labels: np.ndarray,
    segments: np.ndarray,
    *,
    long_side: int,
) -> np.ndarray:
    """Image | tinted image, under a line of words."""
    height, width = labels.shape
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.resize(image, size, interpolation=how)
    y = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    x = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    labels, segments = labels[y[:, None], x], segments[y[:, None], x]
    tinted = visualize.overlay(image, labels, card.taxonomy.colors, alpha=0.75, segments=segments)
    for value, (_, stripes) in STRIPES.items():
        tinted = np.where((labels == value)[..., None], _striped(image, stripes), tinted)
    pair = visualize.grid([[image, tinted]], gap=4)
    return visualize.grid([[visualize.title_bar(words, pair.shape[1])], [pair]], gap=0)


def _striped(image: np.ndarray, stripes: int) -> np.ndarray:
    """The image in grey under diagonal stripes, uint8 [H, W, 3]: no class looks like it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    y, x = np.indices(grey.shape)
    return np.where((x + y) % 8 < 3, stripes, grey).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _legend(card: DatasetCard, maps: Sequence[np.ndarray], *, width: int) -> np.ndarray:
    """Colours of all classes, of a long list those that occur, and of what is no class."""
    present = set().union(*(np.unique(labels).tolist() for labels in maps))
    used = list(range(len(card.taxonomy)))
    if len(used) > CLASSES:
        used = sorted(value for value in present if value >= 0)
    names = [card.taxonomy.names[k] for k in used]
    colors = card.taxonomy.colors[used].tolist()
    for value, (words, stripes) in STRIPES.items():
        if value in present:
            names.append(words)
            colors.append([stripes] * 3)
    return visualize.legend(names, np.array(colors, np.uint8), width=width)
