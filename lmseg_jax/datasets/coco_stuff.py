"""COCO-Stuff 10K's .mat files, releases v1.0 and v1.1."""

from pathlib import Path

import numpy as np

from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.datasets.file_source import SemanticFiles, class_table, shortened, to_classes
from lmseg_jax.datasets.images import MAX_PIXELS
from lmseg_jax.datasets.source import UnmappedLabel
from lmseg_jax.errors import UserError

NAMES = 172  # of release v1.0: unlabelled, 80 things, 91 stuff
LAST = 182  # label of release v1.1: 0 = unlabelled, 1..91 things as in COCO, 92..182 stuff
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # of these, things that COCO never annotated


class StuffMat(SemanticFiles):
    """MATLAB 7.3 (HDF5) files whose dataset `S` is the label map, transposed.

    The card has the labels of v1.0: 1 = unlabelled, 2..81 things, 82..172 stuff. Those of v1.1 are
    turned into them. Each file tells its release: v1.0 lists 172 `names`, v1.1 all of its labels;
    without names, a label 0 or above 172 means v1.1.

    Source: https://github.com/nightrome/cocostuff10k
    """

    def __init__(self, card: DatasetCard, split: str, *, root: str | Path):
        _hdf5(card)
        super().__init__(card, split, root=root)
        self._table = class_table(card)
        self._from_v11 = np.zeros(LAST + 1, np.int32)  # 0 = a gap
        known = [label for label in range(1, LAST + 1) if label not in GAPS]
        self._from_v11[[0, *known]] = np.arange(1, NAMES + 1)

    def read_classes(self, path: Path) -> np.ndarray:
        labels, names = self._read(path)
        by_label = labels.min() == 0 or labels.max() > NAMES
        if names != NAMES if names else by_label:
            present = np.flatnonzero(np.bincount(labels.ravel()))
            wrong = tuple(int(k) for k in present if k > LAST or k in GAPS)
            if wrong:
                error = UnmappedLabel(
                    f"{path}: label {shortened(wrong)} is none of COCO-Stuff v1.1, of which this "
                    "file is by its names, a label 0 or one above 172; restore it"
                )
                error.values = wrong
                raise error
            labels = self._from_v11[labels]
        return to_classes(labels, self._table, card=self.card, path=path)

    def _read(self, path: Path) -> tuple[np.ndarray, int]:
        """Labels as stored, int32 [H, W], and the number of names in the file."""
        h5py = _hdf5(self.card)
        try:
            with h5py.File(path, "r", locking=False) as file:
                found = file.get("S")
                if not isinstance(found, h5py.Dataset) or len(found.shape or ()) != 2:
                    raise UserError(
                        f"{path}: no label map S in this file, but {', '.join(file) or 'nothing'}; "
                        "expected an annotation of COCO-Stuff 10K"
                    )
                if not 0 < found.size <= MAX_PIXELS:
                    size = "x".join(map(str, found.shape))
                    raise UserError(f"{path}: S is {size}; expected 1 to {MAX_PIXELS} pixels")
                stored = np.asarray(found).T
                names = file.get("names")
                count = names.size if isinstance(names, h5py.Dataset) else 0
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except Exception as error:  # a broken file may raise anything
            raise UserError(
                f"{path}: cannot be read as a MATLAB 7.3 (HDF5) file: {error}"
            ) from error
        if stored.dtype.kind not in "iuf" or not 0 <= stored.min() <= stored.max() < 2**16:
            raise UserError(f"{path}: S holds no label ids; expected whole numbers from 0")
        labels = stored.astype(np.int32)
        if (labels != stored).any():
            raise UserError(f"{path}: S holds fractions; expected whole numbers from 0")
        return labels, count


def _hdf5(card: DatasetCard):
    """h5py, which only this format needs."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{card.path}: {card.format} needs h5py; pip install 'lmseg_jax[coco-stuff]'"
        ) from error
    return h5py
