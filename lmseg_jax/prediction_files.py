"""The files that `lmseg predict` writes (docs/predict.md)."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lmseg_jax import report, visualize
from lmseg_jax.datasets.predictions import LIST
from lmseg_jax.segmentation import Segmentation
from lmseg_jax.taxonomy import Taxonomy

LINES = "annotations.jsonl"
SCORES = ("png", "npy")


class Outputs:
    """The files of a run: `labels/`, `panoptic/`, `scores/` and `overlays/` below a folder.

    Segments are written a line an image as they are found, so a run that is killed loses none;
    `close` makes COCO's list of them.

    Args:
      folder: where to write.
      taxonomy: whose ids and colours are written.
      panoptic, overlay: which files there are beside the label PNGs.
      scores: key of `SCORES`, or "" for no scores.
      force: True forgets what an earlier run has written.
    """

    def __init__(
        self,
        folder: Path,
        taxonomy: Taxonomy,
        *,
        panoptic: bool,
        overlay: bool,
        scores: str = "",
        force: bool,
    ):
        self.folder, self.taxonomy, self.overlay = folder, taxonomy, overlay
        self.panoptic, self.scores = panoptic, scores
        ids = {int(value) for value in taxonomy.ids}
        self.nothing = next(value for value in (0, *range(255, -1, -1), 65535) if value not in ids)
        self._dtype = np.uint8 if max(*ids, self.nothing) < 256 else np.uint16  # of every label PNG
        self._lines = folder / "panoptic" / LINES
        self._found = {}
        if force:
            self._lines.unlink(missing_ok=True)
        if panoptic:
            self._lines.parent.mkdir(parents=True, exist_ok=True)
            self._read()

    def done(self, name: str) -> bool:
        """Whether everything of an image, "a.png" or "folder/a.png", has been written."""
        kinds = ["labels"] + ["overlays"] * self.overlay + ["panoptic"] * self.panoptic
        written = all((self.folder / kind / name).is_file() for kind in kinds)
        written = written and (not self.scores or self._score_file(name).is_file())
        return written and (not self.panoptic or name in self._found)

    def write(self, name: str, image: np.ndarray, found: Segmentation) -> None:
        """Writes everything of an image, its label PNG last."""
        ids = np.append(self.taxonomy.ids, self.nothing)[found.labels]  # label -1 reads the last
        if self.overlay:
            self._save("overlays", name, drawn(image, found, self.taxonomy))
        if self.scores:
            self._save_scores(name, found.scores)
        if self.panoptic:
            s = found.segments
            self._save("panoptic", name, np.stack([s % 256, s // 256 % 256, s // 65536], axis=-1))
            self._append(name, found)
        self._save("labels", name, ids, dtype=self._dtype)

    def close(self) -> None:
        """Writes COCO's list of all segments."""
        if not self.panoptic:
            return
        names = sorted(self._found)
        images, annotations = [], []
        for name, number in zip(names, image_ids(names), strict=True):
            row = self._found[name]
            size = {"height": row["height"], "width": row["width"]}
            images.append({"id": number, "file_name": name} | size)
            segments = row["segments_info"]
            annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
        categories = [
            {"id": c.id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
            for c in self.taxonomy.categories
        ]
        report.write_json(
            self.folder / "panoptic" / LIST,
            {"images": images, "annotations": annotations, "categories": categories},
        )

    def _score_file(self, name: str) -> Path:
        return (self.folder / "scores" / name).with_suffix(f".{self.scores}")

    def _save_scores(self, name: str, scores: np.ndarray) -> None:
        if self.scores == "png":
            self._save("scores", name, np.round(scores * 65535), dtype=np.uint16)
            return
        path = self._score_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:  # np.save would add a suffix to a name
            np.save(file, scores)
        partial.replace(path)

    def _save(self, kind: str, name: str, array: np.ndarray, *, dtype=np.uint8) -> None:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        Image.fromarray(array.astype(dtype)).save(partial, format="PNG")
        partial.replace(path)

    def _append(self, name: str, found: Segmentation) -> None:
        height, width = found.segments.shape
        segments = [
            row | {"category_id": int(self.taxonomy.ids[row["category_id"]]), "iscrowd": 0}
            for row in found.segments_info
        ]
        segments = [row | {"isthing": int(row["isthing"])} for row in segments]
        row = {"file_name": name, "height": height, "width": width, "segments_info": segments}
        self._found[name] = row
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self) -> None:
        """What an earlier run has found; a line that was cut by its end is found anew."""
        if not self._lines.exists():
            return
        for line in self._lines.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                self._found[row["file_name"]] = row
            except (ValueError, TypeError, KeyError):
                continue
        lines = [json.dumps(row) + "\n" for row in self._found.values()]
        self._lines.write_text("".join(lines), encoding="utf-8")


def image_ids(names: Sequence[str]) -> list[int | str]:
    """COCO's ids of images: the number that a name is, "000139.png" 139, where no other has it.

    Args:
      names: file names with a suffix, each once.

    Returns:
      Numbers, and names without their suffix where they are no number of their own.
    """
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    numbers = [int(stem) if stem.isdecimal() and stem.isascii() else None for stem in stems]
    seen = Counter(numbers)
    return [
        stem if number is None or seen[number] > 1 else number
        for stem, number in zip(stems, numbers, strict=True)
    ]


def drawn(image: np.ndarray, found: Segmentation, taxonomy: Taxonomy) -> np.ndarray:
    """The image in the colours of its classes, and under it a legend of those that occur."""
    picture = visualize.overlay(image, found.labels, taxonomy.colors, segments=found.segments)
    present = [int(k) for k in np.unique(found.labels) if k >= 0]
    if not present:
        return picture
    names = [taxonomy.names[k] for k in present]
    width = max(240, picture.shape[1])
    scale = max(1.0, width / 800)
    legend = visualize.legend(names, taxonomy.colors[present], width=width, scale=scale)
    return visualize.grid([[picture], [legend]])
