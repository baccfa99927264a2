"""Label PNGs: one number or one colour a pixel."""

from pathlib import Path

import cv2
import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.file_source import SemanticFiles, class_table, to_classes, unmapped
from lmseg_jax.datasets.images import read_colors, read_indices
from lmseg_jax.datasets.sample import VOID, runs


class LabelPng(SemanticFiles):
    """Label PNGs that hold the card's ids: grey values or palette indices."""

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        super().__init__(card, split, root=root)
        self._table = class_table(card)

    def read_classes(self, path: Path) -> np.ndarray:
        return to_classes(read_indices(path), self._table, card=self.card, path=path)


class ColorPng(SemanticFiles):
    """Label PNGs whose colours are those of the card's classes."""

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        super().__init__(card, split, root=root)
        colors = np.array([*card.taxonomy.colors.tolist(), *card.void_colors], np.uint8)
        classes = np.array([*range(len(card.taxonomy)), *[VOID] * len(card.void_colors)], np.int32)
        codes = _codes(colors[None])[0]
        order = np.argsort(codes)
        self._known, self._classes = codes[order], classes[order]

    def read_classes(self, path: Path) -> np.ndarray:
        colors = read_colors(path)
        codes = _codes(colors).ravel()
        starts, lengths = runs(codes)
        first = codes[starts]
        place = np.minimum(np.searchsorted(self._known, first), len(self._known) - 1)
        wrong = self._known[place] != first
        if wrong.any():
            found = [
                (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in np.unique(first[wrong])
            ]
            raise unmapped(self.card, path, "label colour", tuple(found))
        return np.repeat(self._classes[place], lengths).reshape(colors.shape[:2])


def _codes(colors: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> int32 [H, W], one number a colour: 65536 R + 256 G + B."""
    return cv2.cvtColor(colors, cv2.COLOR_RGB2BGRA).view("<i4")[..., 0] & 0xFFFFFF
