"""Writes a first card for somebody's own data: what the files show, and marked guesses."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lmseg_jax.datasets.card import DatasetCard, load_card
from lmseg_jax.datasets.class_names import NOTHING, color_names, id_names
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.images import read_colors, read_indices
from lmseg_jax.datasets.layout import Layout, find_layout
from lmseg_jax.datasets.recipe import STRIDE
from lmseg_jax.errors import UserError

MOST = 512  # ids or colours that classes may have; more are instances, or blended colours
SHORT_SIDE = 240  # of the test rule: what a small model on a CPU can work with
SCALES = (0.75, 0.9, 1.05, 1.2, 1.35, 1.5)  # of training's short sides, around the test rule
BLACK, WHITE = 0x000000, 0xFFFFFF


@dataclass
class _Found:
    """What the label files hold. A value is an id, or red << 16 | green << 8 | blue."""

    format: str = ""
    pixels: Counter = field(default_factory=Counter)  # value -> pixels
    images: Counter = field(default_factory=Counter)  # value -> label files
    sizes: Counter = field(default_factory=Counter)  # (height, width) -> label files
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # of the first file


def new_card(
    *,
    images: str,
    labels: str,
    names: str = "",
    name: str = "",
    output: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DatasetCard, Layout]:
    """Looks at images and labels and writes a card, with `# guess` behind what may be wrong.

    Args:
      images: folder or pattern, see `layout.find_layout`.
      labels: likewise; every label file is read.
      names: file of class names: one a line in the order of the ids, or "id name" in each line;
        where colours are classes, "red green blue name". "" = they are called "class 7".
      name: of the dataset; "" = as its folder.
      output: the card's file; "" = NAME.toml in this folder.
      progress: called with (labels done, labels in all) after each label.

    Returns:
      The card as it was read back, and where its files lie.

    Raises:
      UserError: the card is there already, or something in the files does not fit together.
    """
    layout = find_layout(images, labels)
    guessed = re.sub(r"[^A-Za-z0-9_-]+", "_", layout.folder).strip("_") or "mine"
    path = Path(output or f"{name or guessed}.toml")
    if path.exists():
        raise UserError(f"{path} is there already; name another --output, or move it away")
    found = _survey(layout.files, progress)
    title = [
        "# Written by `lmseg data new`. What may be wrong is marked as a guess; when it is mended,",
        f"# `lmseg data check {path.name}` says whether training would run.",
        f"name = {quoted(name)}" if name else f"name = {quoted(guessed)} # guess: as the folder",
    ]
    text = "\n".join([*title, *_lines(layout, found, names=names), ""])
    written = []
    try:
        for file, listed in layout.lists.items():
            _write(file, "".join(f"{line}\n" for line in listed), written)
        _write(path, text, written)
        card = load_card(path)
        for split in card.splits:
            open_source(card, split, root=layout.root)
    except UserError:
        for file in written:  # half a card helps nobody, and would be in the way of the next try
            file.unlink()
        raise
    return card, layout


def _write(path: Path, text: str, written: list[Path]) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            written.append(path)
            file.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot write this file: {error.strerror or error}") from error


def _survey(files: tuple[Path, ...], progress: Callable[[int, int], None] | None) -> _Found:
    """Reads every label file in parallel."""
    found = _Found()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (path, (kind, size, values, counts)) in enumerate(
            zip(files, pool.map(_examine, files), strict=True), start=1
        ):
            if kind != (found.format or kind):
                raise UserError(
                    f"{path} is {kind}, but the labels before it are {found.format}; one dataset "
                    "has labels of one kind"
                )
            found.format = kind
            found.pixels.update(dict(zip(values, counts, strict=True)))
            found.images.update(values)
            found.sizes[size] += 1
            if len(found.pixels) > MOST:
                what = {
                    "label_png": "ids; are they instances",
                    "color_png": "colours; are they blended",
                }
                raise UserError(
                    f"{path}: labels hold more than {MOST} {what[kind]}? Expected one each class"
                )
            if progress is not None:
                progress(done, len(files))
    with Image.open(files[0]) as image:
        if image.mode == "P":
            flat = image.getpalette("RGB")
            found.palette = {i: tuple(flat[3 * i : 3 * i + 3]) for i in range(len(flat) // 3)}
    return found


def _examine(path: Path) -> tuple[str, tuple[int, int], list[int], list[int]]:
    """Format, size, values and their pixels of one label file."""
    try:
        ids = read_indices(path)
    except UserError:  # it has colours, or is broken, as the next line will say
        red, green, blue = np.moveaxis(read_colors(path).astype(np.int32), -1, 0)
        values, counts = np.unique(red << 16 | green << 8 | blue, return_counts=True)
        return "color_png", red.shape, values.tolist(), counts.tolist()
    counts = np.bincount(ids.ravel())  # several times as fast as np.unique
    values = np.flatnonzero(counts)
    return "label_png", ids.shape, values.tolist(), counts[values].tolist()


def _lines(layout: Layout, found: _Found, *, names: str) -> list[str]:
    """The card's TOML below its name."""
    void, classes = _classes(found, names)
    height, width = (int(np.median([*found.sizes.elements()], axis=0)[i]) for i in (0, 1))
    short = min(SHORT_SIDE, height, width)
    crop = _crop(short, height, width)
    short_sides = [max(1, round(scale * short)) for scale in SCALES]
    colors = found.format == "color_png"
    number = "colours that are classes" if colors else "one number a pixel, the id of a class"
    lines = [
        'task = "semantic"',
        f'format = "{found.format}" # guess: labels hold {number}',
        'about = { source = "not stated", license = "not stated" } # guess: say what you know',
    ]
    if colors:
        spare = 255 not in (row["id"] for row in classes)
        lines.append(f"void = {[255] if spare else []} # what it is called in saved predictions")
        void_colors = [list(_rgb(value)) for value in void]
        lines.append(f"void_colors = {void_colors} # guess: colours that mean nothing")
    else:
        lines.append(f"void = {void} # guess: ids that mean nothing: not learned, not scored")
    lines += [
        "# guess: thing is false for all; true is for what can be counted (a car), and tells apart",
        "# what panoptic prediction may count. Names are read by the text encoder: write words.",
        "classes = [",
        *(_class_line(row, found) for row in classes),
        "]",
        "",
        "[files]",
        f"folder = {quoted(layout.folder)}",
        f"images = [{', '.join(map(quoted, layout.images))}]",
        f"labels = {quoted(layout.labels)} # guess: by the names of the files",
    ]
    if layout.lists:
        lines += [
            "# guess: one image in ten, drawn by its name, is in val.txt; if yours are frames of",
            "# videos, let each video be in one of the lists only",
        ]
    if layout.listed:
        lines.append('list = "{split}.txt"')
    for split, folder in layout.split_names.items():
        lines.append(f"split_names.{split} = {quoted(folder)} # guess: by the folder's name")
    lines += [
        "",
        "[splits]",
        *(f"{split} = {count}" for split, count in layout.splits.items()),
        "",
        f"# guess: both sections are for images of {width}x{height}, as most of yours, and a small",
        "# model on a CPU; for a large one: crop = [512, 512], short_sides around short_side = 512",
        "[augmentation]",
        f"short_sides = {short_sides}",
        f"max_side = {max(2 * max(short_sides), *crop)}",
        f"crop = {crop}",
        "color = true",
        'flip = "horizontal" # "none" if left and right have meanings, such as in text',
        'order = ["resize", "crop", "color", "flip"]',
        "",
        "[test]",
        f"short_side = {short}",
        f"max_side = {2 * short}",
    ]
    return lines


def _crop(short: int, height: int, width: int) -> list[int]:
    """[height, width] in multiples of 32: 0.8 of the short side, and about the image's shape."""
    low = max(STRIDE, round(0.8 * short / STRIDE) * STRIDE)
    aspect = min(2.0, max(height, width) / min(height, width))
    high = round(low * aspect / STRIDE) * STRIDE
    return [high, low] if height > width else [low, high]


def _class_line(row: dict, found: _Found) -> str:
    share = 100 * found.pixels[row["value"]] / found.pixels.total()
    images = f"{found.images[row['value']]} of {found.sizes.total()} images"
    seen = f"{share:.2f} % of the pixels, in {images}"
    guess = "" if row["named"] else "guess: the name; "
    return (
        f"  {{ id = {row['id']}, name = {quoted(row['name'])}, thing = false, "
        f"color = {list(row['color'])} }}, # {guess}{seen}"
    )


def _classes(found: _Found, names: str) -> tuple[list[int], list[dict]]:
    """Values that mean nothing; and one row a class: value, id, name, named, color."""
    colors = found.format == "color_png"
    grey = colors and all(value % 256 * 0x010101 == value for value in found.pixels)
    blank = ({WHITE} if grey else {BLACK}) if colors else {255, 65535}
    void = blank & set(found.pixels)
    if len(found.pixels) < len(void) + 2:  # 0 and 255 are background and object
        void = set()
    given = {}
    if names and colors and not grey:
        given = color_names(names)
    elif names:
        factor = 0x010101 if grey else 1
        present = [value // factor for value in sorted(set(found.pixels) - void)]
        given = {factor * id: word for id, word in id_names(names, present).items()}
    void -= set(given)
    void |= {value for value, word in given.items() if word.lower() in NOTHING}
    order = [*given, *sorted(found.pixels)] if colors else sorted({*given, *found.pixels})
    values = [value for value in dict.fromkeys(order) if value not in void]
    if not values:
        raise UserError(f"{names}: every id in the labels is void; expected at least one class")
    painted = [_rgb(value) for value in values] if colors else _colors(values, found.palette)
    rows = []
    for i, (value, color) in enumerate(zip(values, painted, strict=True)):
        number = (value % 256 if grey else i) if colors else value
        word = given.get(value, f"class {number}")
        rows.append(dict(value=value, id=number, name=word, named=value in given, color=color))
    return sorted(void), rows


def _colors(
    values: list[int], palette: dict[int, tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """A colour for each id: that of the file's palette if it is one of its own, else a new one."""
    shown = Counter(palette.get(value) for value in values)
    kept = [
        palette[value]
        if shown[palette.get(value)] == 1 and len(set(palette.get(value, (0,)))) > 1
        else None
        for value in values
    ]
    new = iter(distinct_colors(kept.count(None), taken=[color for color in kept if color]))
    return [color or next(new) for color in kept]


def distinct_colors(
    count: int, *, taken: list[tuple[int, int, int]] = ()
) -> list[tuple[int, int, int]]:
    """Colours that the eye tells apart: each is the farthest from all before it, in CIE Lab.

    Args:
      count: how many, at most 600.
      taken: RGB, colours to keep away from; black, white and grey are always among them.
    """
    steps = np.linspace(0, 255, 9).round()
    known = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    both = np.concatenate([known, [(0, 0, 0), (255,) * 3, (128,) * 3], np.reshape(taken, (-1, 3))])
    lab = cv2.cvtColor((both[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    lab, start = lab[: len(known)], lab[len(known) :]
    distance = np.linalg.norm(lab[:, None] - start, axis=-1).min(axis=1)
    chosen = []
    for _ in range(count):
        best = int(distance.argmax())
        chosen.append(tuple(int(part) for part in known[best]))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=-1))
    return chosen


def _rgb(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def quoted(text: str) -> str:
    """The text as a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
