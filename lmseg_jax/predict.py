"""`lmseg predict`: segments an image or a folder of images (docs/predict.md)."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lmseg_jax import label_space, report, visualize
from lmseg_jax.datasets.card import TASKS
from lmseg_jax.datasets.predictions import LIST, path_keys
from lmseg_jax.errors import UserError
from lmseg_jax.segmentation import Segmentation, pixels
from lmseg_jax.segmenter import load
from lmseg_jax.taxonomy import Taxonomy

SUFFIXES = (".jpg", ".jpeg", ".png")
MANIFEST, LINES = "predict.json", "annotations.jsonl"


class Outputs:
    """The files of a run: `labels/`, `panoptic/` and `overlays/` below a folder.

    Segments are written a line an image as they are found, so a run that is killed loses none;
    `close` makes COCO's list of them.

    Args:
      folder: where to write.
      taxonomy: whose ids and colours are written.
      panoptic, overlay: which files there are beside the label PNGs.
      force: True forgets what an earlier run has written.
    """

    def __init__(
        self, folder: Path, taxonomy: Taxonomy, *, panoptic: bool, overlay: bool, force: bool
    ):
        self.folder, self.taxonomy, self.overlay = folder, taxonomy, overlay
        self.panoptic = panoptic
        ids = {int(value) for value in taxonomy.ids}
        self.nothing = next(value for value in (0, *range(255, -1, -1), 65535) if value not in ids)
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
        return written and (not self.panoptic or name in self._found)

    def write(self, name: str, image: np.ndarray, found: Segmentation) -> None:
        """Writes everything of an image, its label PNG last."""
        ids = np.append(self.taxonomy.ids, self.nothing)[found.labels]  # label -1 reads the last
        dtype = np.uint8 if ids.max() < 256 else np.uint16
        if self.overlay:
            self._save("overlays", name, _drawn(image, found, self.taxonomy))
        if self.panoptic:
            s = found.segments
            self._save("panoptic", name, np.stack([s % 256, s // 256 % 256, s // 65536], axis=-1))
            self._append(name, found)
        self._save("labels", name, ids, dtype=dtype)

    def close(self) -> None:
        """Writes COCO's list of all segments."""
        if not self.panoptic:
            return
        rows = [self._found[name] for name in sorted(self._found)]
        categories = [
            {"id": c.id, "name": c.name, "isthing": int(c.thing), "color": list(c.color)}
            for c in self.taxonomy.categories
        ]
        report.write_json(
            self.folder / "panoptic" / LIST,
            {
                "images": [row["image"] for row in rows],
                "annotations": [row["annotation"] for row in rows],
                "categories": categories,
            },
        )

    def _save(self, kind: str, name: str, array: np.ndarray, *, dtype=np.uint8) -> None:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        Image.fromarray(array.astype(dtype)).save(partial, format="PNG")
        partial.replace(path)

    def _append(self, name: str, found: Segmentation) -> None:
        height, width = found.segments.shape
        stem = PurePosixPath(name).with_suffix("").as_posix()
        number = int(stem) if stem.isdecimal() and stem.isascii() else stem
        segments = [
            row | {"category_id": int(self.taxonomy.ids[row["category_id"]]), "iscrowd": 0}
            for row in found.segments_info
        ]
        segments = [row | {"isthing": int(row["isthing"])} for row in segments]
        row = {
            "image": {"id": number, "file_name": name, "height": height, "width": width},
            "annotation": {"image_id": number, "file_name": name, "segments_info": segments},
        }
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
                self._found[row["annotation"]["file_name"]] = row
            except ValueError:
                continue
        lines = [json.dumps(row) + "\n" for row in self._found.values()]
        self._lines.write_text("".join(lines), encoding="utf-8")


def _drawn(image: np.ndarray, found: Segmentation, taxonomy: Taxonomy) -> np.ndarray:
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


def find_images(path: Path, *, without: Path) -> list[Path]:
    """The image itself, or every JPEG and PNG below a folder, sorted.

    Args:
      path: of an image or a folder.
      without: a folder below it that is not looked at.

    Raises:
      UserError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--input {path}: no such file or folder")
    found = []
    for base, folders, files in os.walk(path):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and Path(base, name).resolve() != without.resolve()
        ]
        found += [
            Path(base, name) for name in files if name[0] != "." and name.lower().endswith(SUFFIXES)
        ]
    if not found:
        raise UserError(f"--input {path}: holds no image ({', '.join(SUFFIXES)})")
    return sorted(found)


def _agree(path: Path, manifest: dict) -> None:
    """Refuses to mix answers to different questions in one folder."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in manifest if before.get(key) != manifest[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: broken ({error}); name another --output or --force") from error
    if different:
        key = different[0]
        raise UserError(
            f"{path}: an earlier run had another {key}; name another --output, or --force to"
            " replace its files"
        )


def main(argv: Sequence[str]) -> int:
    """Segments every image; status 2 if some could not be read.

    Raises:
      UserError: a flag, the checkpoint or the words are wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg predict", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", required=True, help="workdir of a run, or a converted model")
    add("--input", required=True, type=Path, help="an image, or a folder with images")
    add("--output", required=True, type=Path, help="folder to write to")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--classes", help='any words, such as "road; person; sofa, couch"')
    words.add_argument("--taxonomy", help="a trained taxonomy, a card, or a union a+b")
    add("--task", choices=TASKS, default="semantic")
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw pictures")
    add("--force", action="store_true", help="segment again what has been written before")
    options = parser.parse_args(argv)
    classes = None
    if options.classes is not None:
        classes = [part.strip() for part in options.classes.split(";") if part.strip()]
    images = find_images(options.input, without=options.output)
    top = options.input if options.input.is_dir() else options.input.parent
    keys = path_keys([PurePosixPath(path.relative_to(top).as_posix()) for path in images])

    model = load(options.checkpoint)
    space, _ = label_space.look_up(model.spaces, options.taxonomy, classes, head=model.model.head)
    taxonomy, folder = space.taxonomy, options.output
    manifest = {
        "checkpoint": str(Path(options.checkpoint).resolve()),
        "task": options.task,
        "names": list(taxonomy.names),
        "ids": [int(value) for value in taxonomy.ids],
    }
    path = folder / MANIFEST
    if path.exists() and not options.force:
        _agree(path, manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write_json(path, manifest)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot write: {error.strerror or error}") from error
    outputs = Outputs(
        folder,
        taxonomy,
        panoptic=options.task == "panoptic",
        overlay=options.overlay,
        force=options.force,
    )
    bad, skipped = [], 0
    bar = report.ImageProgress("predict")
    for done, (source, key) in enumerate(zip(images, keys, strict=True), 1):
        name = "/".join(key) + ".png"
        if not options.force and outputs.done(name):
            skipped += 1
        else:
            try:
                image = pixels(source)
            except UserError as error:
                bad.append(str(error))
                print(f"skipped: {' '.join(str(error).split())}", file=sys.stderr)
            else:
                found = model.segment(image, classes, taxonomy=options.taxonomy, task=options.task)
                outputs.write(name, image, found)
        bar(done, len(images))
    outputs.close()
    print(f"{folder}: {len(images) - skipped - len(bad)} images segmented, {skipped} were there")
    if bad:
        print(f"{len(bad)} could not be read, the first: {bad[0]}", file=sys.stderr)
    return 2 if bad else 0
