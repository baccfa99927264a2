"""What every annotation format produces: one image with its segments."""

from dataclasses import dataclass

import numpy as np

VOID = -1  # a pixel that no segment describes: unlabelled, ignored, or crowd
PADDING = -2  # a pixel that is not part of the image; exists in batches only


@dataclass(frozen=True)
class Sample:
    """One annotated image, on the host.

    A semantic sample has one segment for each class that occurs, a panoptic one has one for each
    instance and for each stuff class.

    Attributes:
      image: uint8 [H, W, 3], RGB.
      segments: int32 [H, W], index into the three lists below, -1 where void.
      classes: int32 [S], class index 0..K-1 of each segment in its card.
      area: int32 [S], official area in pixels, used by metrics.
      crowd: bool [S], True for a group of instances that are not told apart.
      dataset: name of the card.
      name: stem that identifies the image in its dataset.
    """

    image: np.ndarray
    segments: np.ndarray
    classes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    dataset: str
    name: str


def semantic_map(sample: Sample) -> np.ndarray:
    """Class of each pixel, int32 [H, W], -1 where void."""
    table = np.append(sample.classes, VOID).astype(np.int32)  # index -1 reads the last row
    return table[sample.segments]


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where neighbours are equal: labels are long runs, so looking up one pixel of each is quick.

    Args:
      values: [N], at least one.

    Returns:
      int64 [R] index of the first value of each run, int64 [R] their lengths.
    """
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return starts, np.diff(starts, append=len(values))
