"""Scores as sums that can be merged: update with images, merge processes, compute once.

Every sum is an integer, so the scores do not depend on the order or the split of the images.
"""

from collections.abc import Sequence

import numpy as np

from lmseg_jax.errors import UserError

UNIT = 1 << 36  # an IoU of 1 in the integer sums of PanopticMetric
LIMB, LIMBS = 24, 3  # bits and number of the parts in which sums travel between processes


class SemanticMetric:
    """Mean intersection over union and its relatives.

    State: `matrix` int64 [K + 1, K], pixels by prediction (row K = nothing predicted) and truth.
    Pixels without truth count nowhere.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.state = {"matrix": np.zeros((len(self.names) + 1, len(self.names)), np.int64)}

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Counts one image.

        Args:
          prediction: int [H, W], class 0..K-1, negative = nothing predicted.
          truth: int [H, W], class 0..K-1, negative = void.
        """
        known = truth >= 0
        prediction, truth = prediction[known], truth[known]
        classes = len(self.names)
        row = np.where(prediction < 0, classes, prediction)
        counts = np.bincount(row * classes + truth, minlength=(classes + 1) * classes)
        self.state["matrix"] += counts.reshape(classes + 1, classes)

    def merge(self, other: "SemanticMetric") -> None:
        """Adds what another metric of the same classes has counted."""
        self.state["matrix"] += other.state["matrix"]

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums as int32 [..., 3], to be added elementwise over processes (see `_split`)."""
        return {key: _split(value) for key, value in self.state.items()}

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "SemanticMetric":
        """A metric of the same classes that holds the sum of several processes' `arrays()`."""
        metric = SemanticMetric(self.names)
        metric.state = {key: _join(arrays[key]) for key in self.state}
        return metric

    def compute(self) -> dict:
        """Scores in percent; None where nothing was counted.

        IoU = pixels of both / pixels of either, over pixels with truth.

        Returns:
          `miou`: mean IoU of the classes that occur in the truth.
          `miou_legacy`: the same sum over the number of classes that occur in truth or prediction
            (Detectron2 until mid-2022, so most published numbers).
          `fwiou`: mean IoU weighted by pixels. `macc`: mean accuracy of the classes that occur.
          `pacc`: accuracy of all pixels. `iou`: {name: IoU, None if absent from the truth}.
        """
        matrix = self.state["matrix"]
        both = np.diagonal(matrix)
        truth = matrix.sum(axis=0)
        predicted = matrix[:-1].sum(axis=1)
        present = truth > 0
        iou = both[present] / (truth + predicted - both)[present]
        total = truth.sum()
        values = dict.fromkeys(self.names)
        values.update(zip(np.array(self.names, object)[present], 100 * iou, strict=True))
        return {
            "miou": _percent(iou.sum(), present.sum()),
            "miou_legacy": _percent(iou.sum(), (truth + predicted > 0).sum()),
            "fwiou": _percent((iou * truth[present]).sum(), total),
            "macc": _percent((both[present] / truth[present]).sum(), present.sum()),
            "pacc": _percent(both.sum(), total),
            "iou": {k: None if v is None else float(v) for k, v in values.items()},
        }


class PanopticMetric:
    """Panoptic quality: PQ = SQ * RQ, of all classes, of things and of stuff.

    State, int64 [K] each: `tp`, `fp`, `fn` segments, and `iou`, the summed IoU of matched
    segments in units of 2^-36.

    Source: Panoptic Segmentation (Kirillov et al., 2019); counted as in COCO's panopticapi.
    """

    def __init__(self, names: Sequence[str], things: np.ndarray):
        self.names = tuple(names)
        self.things = np.asarray(things, bool)
        self.state = {key: np.zeros(len(self.names), np.int64) for key in ("iou", "tp", "fp", "fn")}

    def update(
        self,
        segments: np.ndarray,
        info: Sequence[dict],
        truth: np.ndarray,
        classes: np.ndarray,
        area: np.ndarray,
        crowd: np.ndarray,
        *,
        name: str = "",
    ) -> None:
        """Counts one image.

        A predicted and a true segment of one class match if their IoU exceeds 1/2, where the
        union leaves out predicted pixels without truth. An unmatched prediction counts unless
        more than half of it lies where there is no truth or in a crowd of its class; crowds
        match nothing and are never missed. Where a class has several crowds, the last one counts.

        Args:
          segments: int [H, W], predicted ids, 0 = void.
          info: one dict a predicted segment with `id` and `category` (class 0..K-1).
          truth: int [H, W], index of the true segment, negative = void.
          classes: int [S], class of each true segment.
          area: int [S], official area of each true segment, which may differ from the map.
          crowd: bool [S], True for a group that is not told apart.
          name: of the image, for messages.

        Raises:
          UserError: the ids of the map and of `info` are not the same, or one is listed twice.
        """
        ids = np.array([0] + [segment["id"] for segment in info], np.int64)
        categories = np.array([-1] + [segment["category"] for segment in info], np.int64)
        order = np.argsort(ids, kind="stable")
        shared = _overlaps(segments, ids[order], truth, count=len(classes), name=name)
        predicted = shared.sum(axis=1)
        _check_listed(ids[order], predicted, name=name)

        shared, predicted, categories = shared[1:], predicted[1:], categories[order][1:]
        blank, shared = shared[:, 0], shared[:, 1:]  # [P], [P, S]
        union = predicted[:, None] + area[None] - shared - blank[:, None]
        match = (categories[:, None] == classes[None]) & ~crowd[None] & (2 * shared > union)
        match &= shared > 0
        hit = categories[np.nonzero(match)[0]]
        quality = shared[match] * UNIT // np.maximum(union[match], 1)

        group = {int(classes[i]): i for i in np.flatnonzero(crowd)}  # the last of each class
        excused = blank.copy()
        for i, category in enumerate(categories):
            if int(category) in group:
                excused[i] += shared[i, group[int(category)]]
        wrong = ~match.any(axis=1) & (2 * excused <= predicted)
        missed = ~match.any(axis=0) & ~crowd

        np.add.at(self.state["iou"], hit, quality)
        np.add.at(self.state["tp"], hit, 1)
        np.add.at(self.state["fp"], categories[wrong], 1)
        np.add.at(self.state["fn"], classes[missed], 1)

    def merge(self, other: "PanopticMetric") -> None:
        """Adds what another metric of the same classes has counted."""
        for key, value in other.state.items():
            self.state[key] += value

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums as int32 [..., 3], to be added elementwise over processes (see `_split`)."""
        return {key: _split(value) for key, value in self.state.items()}

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "PanopticMetric":
        """A metric of the same classes that holds the sum of several processes' `arrays()`."""
        metric = PanopticMetric(self.names, self.things)
        metric.state = {key: _join(arrays[key]) for key in self.state}
        return metric

    def compute(self) -> dict:
        """Scores in percent; None where no class counts.

        Of a class: PQ = summed IoU / (TP + FP/2 + FN/2), SQ = summed IoU / TP (0 without TP),
        RQ = TP / (TP + FP/2 + FN/2). Averages are over the classes with TP + FP + FN > 0.

        Returns:
          `pq`, `sq`, `rq`; the same with `_things` and `_stuff`; `classes`: {name: {pq, sq, rq, tp,
          fp, fn}}, its first three None for a class without segments.
        """
        tp, fp, fn = (self.state[key] for key in ("tp", "fp", "fn"))
        counted = tp + fp + fn > 0
        total = np.maximum(tp + (fp + fn) / 2, 0.5)  # 0.5 is the least that a counted class has
        iou = self.state["iou"] / UNIT
        values = {"pq": iou / total, "sq": iou / np.maximum(tp, 1), "rq": tp / total}
        scores = {}
        groups = {"": counted, "_things": counted & self.things, "_stuff": counted & ~self.things}
        for suffix, group in groups.items():
            for key, value in values.items():
                scores[key + suffix] = _percent(value[group].sum(), group.sum())
        scores["classes"] = {
            name: {key: _percent(value[k], counted[k]) for key, value in values.items()}
            | {"tp": int(tp[k]), "fp": int(fp[k]), "fn": int(fn[k])}
            for k, name in enumerate(self.names)
        }
        return scores


def _overlaps(segments, ids, truth, *, count: int, name: str) -> np.ndarray:
    """Pixels shared by predicted ids (rows, sorted) and void + true segments (columns)."""
    row = np.searchsorted(ids, segments)
    np.minimum(row, len(ids) - 1, out=row)
    unlisted = segments[ids[row] != segments]
    if unlisted.size:
        raise UserError(
            f"prediction of image '{name}': its map holds segment ids {_some(np.unique(unlisted))} "
            "that its list of segments lacks; list every id except 0, which is void"
        )
    cells = row * (count + 1) + np.maximum(truth, -1) + 1
    return np.bincount(cells.ravel(), minlength=len(ids) * (count + 1)).reshape(-1, count + 1)


def _check_listed(ids: np.ndarray, pixels: np.ndarray, *, name: str) -> None:
    """Each id once, 0 only where it was put for void, each other with a pixel."""
    bad = np.concatenate([ids[ids < 0], ids[1:][ids[1:] == ids[:-1]]])
    if bad.size:
        raise UserError(
            f"prediction of image '{name}': its list of segments has ids {_some(bad)} twice or not "
            "above 0; give every segment an id of its own, from 1"
        )
    empty = ids[(pixels == 0) & (ids != 0)]
    if empty.size:
        raise UserError(
            f"prediction of image '{name}': its list of segments holds ids {_some(empty)} that no "
            "pixel of its map has; leave them out of the list or paint them"
        )


def _some(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def _percent(part: float, whole: float) -> float | None:
    return float(100 * part / whole) if whole else None


def _split(values: np.ndarray) -> np.ndarray:
    """int64 >= 0 -> int32 [..., 3], 24 bits each: what JAX carries without cutting 64-bit sums.

    The parts of up to 128 processes may be added in int32 before `_join`.
    """
    shifts = LIMB * np.arange(LIMBS)
    return (values[..., None] >> shifts & (1 << LIMB) - 1).astype(np.int32)


def _join(parts: np.ndarray) -> np.ndarray:
    return (np.asarray(parts, np.int64) << LIMB * np.arange(LIMBS)).sum(axis=-1)
