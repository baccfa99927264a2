"""`lmseg predict`: segments an image or a folder of images (docs/predict.md)."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lmseg_jax import label_space, report
from lmseg_jax.datasets.card import TASKS
from lmseg_jax.datasets.predictions import path_keys
from lmseg_jax.errors import UserError
from lmseg_jax.loading import SHIPPED
from lmseg_jax.prediction_files import SCORES, Outputs
from lmseg_jax.segmentation import pixels
from lmseg_jax.segmenter import load

SUFFIXES = (".jpg", ".jpeg", ".png")
MANIFEST = "predict.json"


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


def parted(text: str | None) -> list[str] | None:
    """The parts between semicolons; None where nothing was given."""
    return None if text is None else [part.strip() for part in text.split(";") if part.strip()]


def name_of(checkpoint: str) -> str:
    """What tells a checkpoint from others: its whole path, or the name of a shipped one."""
    return checkpoint if checkpoint in SHIPPED else str(Path(checkpoint).resolve())


def main(argv: Sequence[str]) -> int:
    """Segments every image; status 2 if some could not be read.

    Raises:
      UserError: a flag, the checkpoint or the words are wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg predict", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help=f"a workdir, export, converted model or {', '.join(SHIPPED)}",
    )
    add("--input", required=True, type=Path, help="an image, or a folder with images")
    add("--output", required=True, type=Path, help="folder to write to")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--classes", help='any words, such as "road; person; sofa, couch"')
    words.add_argument("--taxonomy", help="a trained taxonomy, a card, or a union a+b")
    add("--task", choices=TASKS, default="semantic", help="label maps, or segments (semantic)")
    add("--things", help='which classes have instances, such as "person; car"; "" = none')
    add("--scores", choices=SCORES, default="", help="how sure each pixel is, as 16-bit PNG or npy")
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw pictures")
    add("--force", action="store_true", help="segment again what has been written before")
    options = parser.parse_args(argv)
    classes, things = parted(options.classes), parted(options.things)
    if things is not None and options.task != "panoptic":
        raise UserError("--things: only segments are of things or of stuff; add --task panoptic")
    images = find_images(options.input, without=options.output)
    top = options.input if options.input.is_dir() else options.input.parent
    keys = path_keys([PurePosixPath(path.relative_to(top).as_posix()) for path in images])

    model = load(options.checkpoint)
    space, _ = label_space.look_up(model.spaces, options.taxonomy, classes, head=model.model.head)
    taxonomy, folder = space.taxonomy, options.output
    if things is not None:
        taxonomy = label_space.with_things(taxonomy, things)
    manifest = {
        "checkpoint": name_of(options.checkpoint),
        "task": options.task,
        "names": list(taxonomy.names),
        "ids": [int(value) for value in taxonomy.ids],
        "things": None if things is None else taxonomy.things.tolist(),
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
        scores=options.scores,
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
                found = model.segment(
                    image,
                    classes,
                    taxonomy=options.taxonomy,
                    task=options.task,
                    things=things,
                    scores=bool(options.scores),
                )
                outputs.write(name, image, found)
        bar(done, len(images))
    outputs.close()
    print(f"{folder}: {len(images) - skipped - len(bad)} images segmented, {skipped} were there")
    if bad:
        print(f"{len(bad)} could not be read, the first: {bad[0]}", file=sys.stderr)
    return 2 if bad else 0


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("predict")
