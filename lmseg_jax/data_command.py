"""`lmseg data check|show|list`: verify a dataset, look at it, see which cards there are."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lmseg_jax import visualize
from lmseg_jax.datasets.card import DatasetCard, load_card, shipped_cards
from lmseg_jax.datasets.check import Report, check
from lmseg_jax.datasets.formats import FORMATS, open_source
from lmseg_jax.datasets.sample import Sample, semantic_map
from lmseg_jax.errors import UserError

LONG_SIDE = 360  # of one picture on a contact sheet, pixels
CLASSES = 40  # a legend with more than this shows only what occurs on the sheet


def main(argv: list[str]) -> int:
    """Runs one of the data commands; returns 0, or 2 where `check` found a problem.

    Raises:
      UserError: the card, the root or a file is missing or wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check", help="read every file; exit status 0 if training would run")
    _add_dataset(one)
    one.add_argument("--split", nargs="+", default=[], help="splits to check; all of the card")
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    two = commands.add_parser("show", help="draw a contact sheet: images with their labels")
    _add_dataset(two)
    two.add_argument("--split", default="", help="split to draw from; the first one of the card")
    two.add_argument("--output", default="", help="PNG to write; CARD_SPLIT.png in this folder")
    two.add_argument("--count", type=int, default=8, help="number of images, spread over the split")
    commands.add_parser("list", help="list the cards that come with lmseg")
    options = parser.parse_args(argv)
    return {"check": _check, "show": _show, "list": _list}[options.command](options)


def contact_sheet(card: DatasetCard, samples: list[Sample], *, title: str) -> np.ndarray:
    """One picture of images beside their labels, with the colour of every class.

    Args:
      card: gives names and colours.
      samples: what is drawn, two a row.
      title: the line on top.

    Returns:
      uint8 [H, W, 3].
    """
    cells = [_pair(card, sample) for sample in samples]
    rows = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    body = visualize.grid(rows, gap=10)
    used = range(len(card.taxonomy))
    if len(used) > CLASSES:
        used = sorted({int(k) for sample in samples for k in sample.classes})
    names = [card.taxonomy.names[k] for k in used]
    colors = card.taxonomy.colors[list(used)]
    if any((sample.segments < 0).any() for sample in samples):
        names.append("(void: black stripes)")
        colors = np.concatenate([colors, np.zeros((1, 3), np.uint8)])
    width = body.shape[1]
    parts = [
        visualize.title_bar(title, width),
        visualize.legend(names, colors, width=width),
        body,
    ]
    return visualize.grid([[part] for part in parts], gap=6)


def _pair(card: DatasetCard, sample: Sample) -> np.ndarray:
    """Image | tinted image, under the name of the file."""
    height, width = sample.segments.shape
    scale = LONG_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image = cv2.resize(sample.image, size, interpolation=how)
    y = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    x = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    labels, segments = semantic_map(sample)[y[:, None], x], sample.segments[y[:, None], x]
    tinted = visualize.overlay(image, labels, card.taxonomy.colors, alpha=0.6, segments=segments)
    tinted = np.where((labels < 0)[..., None], _striped(image), tinted)
    pair = visualize.grid([[image, tinted]], gap=4)
    words = f"{sample.name}, {width}x{height}, {len(sample.classes)} segments"
    return visualize.grid([[visualize.title_bar(words, pair.shape[1])], [pair]], gap=0)


def _striped(image: np.ndarray) -> np.ndarray:
    """The image in grey under black diagonal stripes, uint8 [H, W, 3]: no class looks like it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    y, x = np.indices(grey.shape)
    return np.where((x + y) % 8 < 3, 0, grey).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("card", help="name of a shipped card, or path of a .toml file")
    parser.add_argument("--root", default="", help="folder that holds every dataset's tree")


def _check(options: argparse.Namespace) -> int:
    card = load_card(options.card)
    reports = []
    for split in options.split or card.splits:
        report = check(card, split, root=options.root, progress=_Progress(f"{card.name}/{split}"))
        reports.append(report)
        if not options.json:
            print(_text(report), end="\n\n", flush=True)
    if options.json:
        rows = [{**dataclasses.asdict(report), "ok": report.ok} for report in reports]
        print(json.dumps(rows, indent=1))
    return 0 if all(report.ok for report in reports) else 2


def _show(options: argparse.Namespace) -> int:
    card = load_card(options.card)
    split = options.split or next(iter(card.splits))
    if options.count < 1:
        raise UserError(f"--count is {options.count}; expected at least 1")
    source = open_source(card, split, root=options.root)
    count = min(options.count, len(source))
    places = ((np.arange(count) + 0.5) * len(source) / count).astype(int)
    title = f"{card.name} / {split}: {count} of {len(source)} images"
    sheet = contact_sheet(card, [source[int(place)] for place in places], title=title)
    output = Path(options.output or f"{card.name}_{split}.png")
    try:
        Image.fromarray(sheet).save(output, format="PNG")
    except OSError as error:
        raise UserError(f"--output {output}: cannot write: {error.strerror or error}") from error
    print(output)
    return 0


def _list(options: argparse.Namespace) -> int:
    del options
    cards = [load_card(name) for name in shipped_cards()]
    width = max(len(card.name) for card in cards)
    for card in cards:
        splits = ", ".join(f"{split} {count}" for split, count in card.splits.items())
        reader = "" if card.format in FORMATS else f" (no reader for {card.format} in this version)"
        facts = f"{card.task:9} {len(card.taxonomy):4} classes  {splits}{reader}"
        print(f"{card.name:{width}}  {facts}")
    return 0


class _Progress:
    """Percent on stderr: one changing line on a terminal, else one line every ten seconds."""

    def __init__(self, name: str):
        self.name, self.last = name, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self.last < (0.2 if terminal else 10) and not (terminal and done == total):
            return
        self.last = now
        line = f"{self.name}: {100 * done // total} %, {done} of {total} images"
        if terminal:
            print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _text(report: Report) -> str:
    """The report as a person reads it: verdict, problems, then the table of classes."""
    sizes = ", ".join(f"{size} ({n})" for size, n in list(report.sizes.items())[:4])
    more = f", {len(report.sizes) - 4} more sizes" if len(report.sizes) > 4 else ""
    lines = [
        f"{report.dataset}/{report.split}: {'OK' if report.ok else 'NOT USABLE'}, {report.found} "
        f"images (card: {report.expected}), {report.seconds:.1f} s",
    ]
    if sizes:
        lines.append(f"  sizes (width x height): {sizes}{more}")
    lines += [f"  problem: {problem}" for problem in report.problems]
    lines += [f"  warning: {warning}" for warning in report.warnings]
    if sizes:
        width = max(len(name) for name in [*report.classes, "(void)"])
        lines.append(f"  {'class':{width}}   images  segments  % of pixels")
        for name, row in report.classes.items():
            counts = f"{row['images']:7}  {row['segments']:8}  {row['share']:11.2f}"
            lines.append(f"  {name:{width}}  {counts}")
        lines.append(f"  {'(void)':{width}}  {'':7}  {'':8}  {report.void:11.2f}")
    return "\n".join(lines)
