"""What a segmenter is given and what it answers: images of any kind, label maps and segments."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lmseg_jax.datasets.images import read_image
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import Taxonomy


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image, at its own size.

    Attributes:
      labels: int32 [H, W], index into `names`; -1 where a panoptic answer holds nothing.
      segments: int32 [H, W], id of each pixel's segment, from 1; 0 = nothing.
      segments_info: one dict a segment, in COCO's panoptic terms: `id`, `category_id` (index into
        `names`), `isthing`, `area` (pixels), `bbox` [x, y, width, height], `score` (0..1). A
        semantic answer has one segment for each class that occurs.
      taxonomy: the classes asked for, with ids, colours and which of them are things.
      scores: float32 [H, W], 0..1, or None if not asked for. Semantic: the share of the pixel's
        class in the sum of all classes' scores; panoptic: the `score` of the pixel's segment.
    """

    labels: np.ndarray
    segments: np.ndarray
    segments_info: list[dict]
    taxonomy: Taxonomy
    scores: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.taxonomy.names

    def to_supervision(self) -> dict:
        """The segments as the arguments of `supervision.Detections`.

        Returns:
          `xyxy` f32 [N, 4] (right and lower border excluded), `mask` bool [N, H, W], `class_id`
          int [N], `confidence` f32 [N], `data` {"class_name": [N]}.
        """
        info = self.segments_info
        boxes = np.array([segment["bbox"] for segment in info], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([segment["category_id"] for segment in info], int)
        ids = np.array([segment["id"] for segment in info], np.int32)
        return {
            "xyxy": boxes,
            "mask": self.segments[None] == ids[:, None, None],
            "class_id": classes,
            "confidence": np.array([segment["score"] for segment in info], np.float32),
            "data": {"class_name": np.array(self.names)[classes]},
        }


def pixels(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """Any picture as uint8 [H, W, 3], RGB.

    Args:
      image: uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a PIL image, which is turned upright
        by its EXIF orientation; or the path of a JPEG or PNG file, likewise. Alpha is dropped, in
        all of them: what lies under transparent pixels is seen.

    Raises:
      UserError: the file cannot be read, the array has another type or shape, or the PIL image is
        of a mode without a range, I or F.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # convert() would clip it
            image = (np.asarray(image) >> 8).astype(np.uint8)
        elif image.mode in ("I", "F"):
            raise UserError(
                f"image has Pillow's mode {image.mode}, whose values have no fixed range; scale"
                " them to 0..255 and convert it to L"
            )
        else:
            image = image.convert("RGB")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise UserError(
            f"image is {array.dtype} {array.shape}; expected uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    if not array.size:
        raise UserError(f"image is {array.shape}; it has no pixels")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def described(segments: np.ndarray, info: list[dict]) -> list[dict]:
    """Segments in COCO's terms.

    Args:
      segments: int32 [H, W], ids from 1, 0 = nothing.
      info: one dict a segment: `id`, `category`, `thing`, `score`.
    """
    found = []
    for segment in info:
        mask = segments == segment["id"]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        found.append(
            {
                "id": segment["id"],
                "category_id": segment["category"],
                "isthing": segment["thing"],
                "area": int(np.count_nonzero(mask)),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "score": segment["score"],
            }
        )
    return found
