"""From class and mask logits of one image to its label map or its segments, on the host.

Both tasks resize bilinearly with half-pixel centres, clamped at the border and without
antialiasing, and both work in strips of rows: full-size masks of all queries never exist at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

STRIP = 1 << 16  # values of the largest array of a strip: what fits a core's cache ...
ROWS = 8  # ... but no fewer rows, because neighbours share the rows they are mixed from


@dataclass(frozen=True)
class Taps:
    """Where each value of a resized axis comes from: (1 - part) * [low] + part * [high]."""

    low: np.ndarray  # int [target]
    high: np.ndarray  # int [target]
    part: np.ndarray  # float32 [target]


@dataclass(frozen=True)
class View:
    """What the network says of one version of an image.

    Attributes:
      logits: float32 [Q, K + 1], real classes, then background.
      masks: float32 [Q, h, w], before the sigmoid.
      padded: height and width of the network's input.
      network: height and width of the image inside that input, at its top left.
      flipped: True if the network saw the image mirrored, left to right.
    """

    logits: np.ndarray
    masks: np.ndarray
    padded: tuple[int, int]
    network: tuple[int, int]
    flipped: bool = False


def semantic(
    logits: np.ndarray,
    masks: np.ndarray,
    *,
    padded: tuple[int, int],
    network: tuple[int, int],
    size: tuple[int, int],
    resize: str = "scores",
) -> np.ndarray:
    """Class of each pixel.

    score[c] = sum over queries of softmax(logits)[q, c] * sigmoid(mask[q]), c without background;
    mask logits are upsampled to `padded` and cropped to `network`, the scores are resized to
    `size`, and the highest wins, the lowest index among equals. No pixel is void.

    Args:
      logits: float32 [Q, K + 1], real classes, then background.
      masks: float32 [Q, h, w], before the sigmoid.
      padded: height and width of the network's input.
      network: height and width of the image inside that input, at its top left.
      size: height and width of the original image.
      resize: what is resized from `network` to `size`: "scores", as MaskFormer does where the task
        is semantic, or "masks", its mask logits, as it does where the task is panoptic.

    Returns:
      int32 [H, W], class 0..K-1.

    Source: MaskFormer (Cheng et al., 2021), semantic inference.
    """
    return semantic_mean([View(logits, masks, padded, network)], size=size, resize=resize)


def semantic_mean(
    views: Sequence[View], *, size: tuple[int, int], resize: str = "scores"
) -> np.ndarray:
    """Class of each pixel from several versions of one image (test-time augmentation).

    The scores of `semantic` are made for each view at the original size, mirrored back where the
    view is flipped, and averaged; the highest mean wins. Rows of all views are made strip by strip,
    so that no view's scores exist as a whole.

    Args:
      views: at least one, of the same classes.
      size, resize: as for `semantic`.

    Returns:
      int32 [H, W], class 0..K-1.

    Source: MaskFormer (Cheng et al., 2021), semantic inference with test-time augmentation.
    """
    parts = [_scorer(view, size=size, resize=resize) for view in views]
    widest = max(size[1], *(view.network[1] for view in views))
    deepest = max(max(view.logits.shape) for view in views)
    labels = np.empty(size, np.int32)
    for strip in _strips(size[0], deepest * widest):
        scores = parts[0](strip)
        for part in parts[1:]:
            scores += part(strip)
        labels[strip] = scores.argmax(axis=1)  # the sum's is the mean's
    return labels


def semantic_scored(
    view: View, *, size: tuple[int, int], resize: str = "scores"
) -> tuple[np.ndarray, np.ndarray]:
    """Class of each pixel as by `semantic`, int32 [H, W], and how sure it is, float32 [H, W].

    The latter is the share of that class in the sum of all classes' scores, 0..1.
    """
    labels, shares = np.empty(size, np.int32), np.empty(size, np.float32)
    part = _scorer(view, size=size, resize=resize)
    for strip in _strips(size[0], max(view.logits.shape) * max(size[1], view.network[1])):
        scores = part(strip)
        labels[strip] = scores.argmax(axis=1)
        shares[strip] = scores.max(axis=1) / np.maximum(scores.sum(axis=1), 1e-12)
    return labels, shares


def _scorer(view: View, *, size: tuple[int, int], resize: str) -> Callable[[slice], np.ndarray]:
    """Gives rows of the scores at the original size: slice -> [rows, K, W], a new array."""
    weights = np.ascontiguousarray(_softmax(view.logits)[:, :-1].T)  # [K, Q]
    pixels = _reader(view.masks, padded=view.padded, network=view.network, size=size)

    def scores(strip: slice) -> np.ndarray:
        rows, fit = pixels(strip)  # [r, Q, w]
        if resize == "masks":
            found = np.matmul(weights, _sigmoid(fit(rows)))
        else:
            found = fit(np.matmul(weights, _sigmoid(rows)))
        return found[:, :, ::-1] if view.flipped else found

    return scores


def panoptic(
    logits: np.ndarray,
    masks: np.ndarray,
    *,
    padded: tuple[int, int],
    network: tuple[int, int],
    size: tuple[int, int],
    things: np.ndarray,
    object_mask: float,
    overlap: float,
) -> tuple[np.ndarray, list[dict]]:
    """Segments of an image: one for each instance of a thing and for each stuff class.

    Queries whose best class is real and has a probability above `object_mask` are kept; each pixel
    belongs to the kept query of highest probability * sigmoid(mask). In query order, a query
    becomes a segment if it owns pixels and at least the share `overlap` of those where its own
    mask is at least one half; otherwise what it owns stays void. Queries of one stuff class share
    a segment.

    Args:
      logits: float32 [Q, K + 1], real classes, then background.
      masks: float32 [Q, h, w], before the sigmoid; resized to `size` as logits.
      padded: height and width of the network's input.
      network: height and width of the image inside that input, at its top left.
      size: height and width of the original image.
      things: bool [K], which classes have instances.
      object_mask: probability a kept query exceeds, 0..1.
      overlap: share of its own mask that a segment must own, 0..1.

    Returns:
      int32 [H, W], id of each pixel's segment, from 1; 0 = void.
      One dict a segment: `id`, `category` (class 0..K-1), `thing`, `score` (probability of the
      class; of the first query where stuff is shared).

    Source: MaskFormer (Cheng et al., 2021), panoptic inference.
    """
    probabilities = _softmax(logits)
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
    kept = np.flatnonzero((labels < logits.shape[1] - 1) & (scores > object_mask))
    if len(kept) == 0:
        return np.zeros(size, np.int32), []
    read = _reader(masks[kept], padded=padded, network=network, size=size)
    owner = np.empty(size, np.int32)
    own_area = np.zeros(len(kept), np.int64)
    for strip in _strips(size[0], len(kept) * max(padded[1], size[1])):
        rows, fit = read(strip)
        pixels = fit(rows)  # [r, kept, W]
        own_area += np.count_nonzero(pixels >= 0, axis=(0, 2))  # sigmoid >= 1/2
        pixels = _sigmoid(pixels)
        pixels *= scores[kept, None]
        owner[strip] = pixels.argmax(axis=1)
    owned_area = np.bincount(owner.ravel(), minlength=len(kept))

    ids, segments, stuff = np.zeros(len(kept), np.int32), [], {}
    for i, query in enumerate(kept):
        category = int(labels[query])
        if owned_area[i] == 0 or own_area[i] == 0 or owned_area[i] / own_area[i] < overlap:
            continue
        if category in stuff:
            ids[i] = stuff[category]
            continue
        ids[i] = len(segments) + 1
        thing = bool(things[category])
        if not thing:
            stuff[category] = ids[i]
        score = float(scores[query])
        segments.append({"id": int(ids[i]), "category": category, "thing": thing, "score": score})
    return ids[owner], segments


def instances_to_semantic(segments: np.ndarray, info: Sequence[dict]) -> np.ndarray:
    """Class of each pixel of a panoptic result, int32 [H, W], -1 where no listed segment is.

    Args:
      segments: int32 [H, W], ids from 1, 0 = void.
      info: one dict a segment with `id` and `category`.
    """
    highest = max([int(segments.max()), *(segment["id"] for segment in info)])
    table = np.full(highest + 1, -1, np.int32)
    for segment in info:
        table[segment["id"]] = segment["category"]
    return table[segments]


@lru_cache(maxsize=64)
def _taps(source: int, target: int) -> Taps:
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = place.clip(0, source - 1)
    low = place.astype(np.intp)
    part = place - low
    return Taps(low, low + (part > 0), part.astype(np.float32))


def _reader(
    masks: np.ndarray,
    *,
    padded: tuple[int, int],
    network: tuple[int, int],
    size: tuple[int, int],
) -> Callable[[slice], tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """Gives what a strip of the original needs: slice -> rows of masks, and how rows are fitted.

    The rows, [r, Q, network width], are those at the network's size that the strip is mixed from;
    the function turns rows [r, n, network width] of anything into the strip's [rows, n, W].
    """
    upsampled = _upsampler(masks, padded=padded)
    vertical = _taps(network[0], size[0])

    def read(strip: slice):
        low, high = vertical.low[strip], vertical.high[strip]
        first = int(low[0])

        def fit(rows: np.ndarray) -> np.ndarray:
            if size == network:
                return rows
            return _widen(_mix(rows, low - first, high - first, vertical.part[strip]), size[1])

        return upsampled(slice(first, int(high[-1]) + 1))[:, :, : network[1]], fit

    return read


def _upsampler(masks: np.ndarray, *, padded: tuple[int, int]) -> Callable[[slice], np.ndarray]:
    """Gives rows of the masks at the padded size: slice -> [rows, Q, padded width], a new array."""
    vertical = _taps(masks.shape[1], padded[0])
    source = np.ascontiguousarray(masks.transpose(1, 0, 2), np.float32)  # [h, Q, w]

    def rows(wanted: slice) -> np.ndarray:
        mixed = _mix(source, vertical.low[wanted], vertical.high[wanted], vertical.part[wanted])
        return _widen(mixed, padded[1])

    return rows


def _mix(rows: np.ndarray, low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Rows between rows: [r, n, w] -> [len(low), n, w]."""
    below = rows[low]
    step = rows[high]
    step -= below
    step *= part[:, None, None]
    below += step
    return below


def _widen(rows: np.ndarray, width: int) -> np.ndarray:
    """Resizes the last axis: [r, n, w] -> [r, n, width]."""
    r, n, w = rows.shape
    if w == width:
        return rows
    flat = np.ascontiguousarray(rows).reshape(r * n, w)
    return cv2.resize(flat, (width, r * n), interpolation=cv2.INTER_LINEAR).reshape(r, n, width)


def _strips(height: int, values: int) -> Iterator[slice]:
    """Cuts rows into strips, `values` = values of a row."""
    step = max(ROWS, STRIP // values)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """In place where the array is contiguous: a new large array costs more than the arithmetic.

    OpenCV's exp is as exact as NumPy's in float32, and faster where NumPy's is scalar.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    np.negative(flat, out=flat)
    cv2.exp(flat, flat)
    flat += 1
    np.divide(1, flat, out=flat)
    return flat.reshape(logits.shape)
