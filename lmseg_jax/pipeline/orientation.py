"""Images that no crop cuts to one shape: lying and upright ones become two feeds, each padded.

This happens where a recipe has `detr_crop` (COCO panoptic); every other feed stays as it is.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.augmentation import draw_final_size
from lmseg_jax.pipeline.batches import Feed, Source

DRAWS = 2_000  # augmentations by which the expected padding is estimated


@dataclass(frozen=True)
class Part:
    """Some samples of a source, in its order.

    Attributes:
      source: the whole.
      indices: int64 [N], which samples of it.
      sizes: int64 [N, 2], height and width of each, as it is read.
    """

    source: Source
    indices: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.indices[index])]

    def files(self, index: int) -> tuple[str, ...]:
        """File names of one sample."""
        return self.source.files(int(self.indices[index]))


def by_orientation(feed: Feed, *, on_error: str = "stop") -> list[Feed]:
    """The feed itself, or its lying and its upright images as two feeds with canvases of their own.

    An image is upright if it is higher than wide. Sizes are read once, here: by the source's
    `size(index)` where it has one (file headers), else from the samples.

    Args:
      feed: a dataset.
      on_error: "stop" raises what is wrong with an image; "skip" counts it as lying, and training
        skips it when its turn comes.

    Returns:
      One feed, or two with "/landscape" and "/portrait" behind the name; none without images.

    Raises:
      UserError: an image cannot be read, and `on_error` is "stop".
    """
    if feed.recipe.detr_crop is None or not len(feed.source):
        return [feed]
    sizes = image_sizes(feed.source, unreadable=feed.recipe.crop if on_error == "skip" else None)
    upright = sizes[:, 0] > sizes[:, 1]
    square = feed.recipe.crop[0] == feed.recipe.crop[1]
    parts = {"": upright | ~upright} if square else {"/landscape": ~upright, "/portrait": upright}
    feeds = []
    for word, chosen in parts.items():
        if chosen.any():
            indices = np.flatnonzero(chosen)
            source = Part(feed.source, indices, sizes[indices])
            recipe = feed.recipe.oriented(*source.sizes[0].tolist())
            feeds.append(replace(feed, name=feed.name + word, source=source, recipe=recipe))
    return feeds


def image_sizes(source: Source, *, unreadable: tuple[int, int] | None = None) -> np.ndarray:
    """Height and width of every image of a source, int64 [N, 2].

    Args:
      source: its `size(index)` is asked where it has one.
      unreadable: what stands for images that cannot be read; None = they are errors.

    Raises:
      UserError: an image cannot be read.
    """

    def size(index: int) -> tuple[int, int]:
        try:
            if hasattr(source, "size"):
                return source.size(index)
            return source[index].image.shape[:2]
        except UserError:
            if unreadable is None:
                raise
            return unreadable

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return np.array(list(pool.map(size, range(len(source)))), np.int64)


def padding(feed: Feed) -> float:
    """`expected_padding` of a feed whose source is a `Part`."""
    return expected_padding(feed.recipe, feed.source.sizes)


def expected_padding(recipe: Recipe, sizes: np.ndarray) -> float:
    """Percent of the pixels of a recipe's crops that are padding, estimated by 2,000 draws.

    Args:
      recipe: of one orientation.
      sizes: int [N, 2], height and width of the images.
    """
    rng = np.random.default_rng(0)
    area = 0
    for chosen in rng.integers(len(sizes), size=DRAWS):
        area += np.prod(draw_final_size(recipe, tuple(sizes[chosen].tolist()), rng=rng))
    return float(100 * (1 - area / (DRAWS * np.prod(recipe.crop))))
