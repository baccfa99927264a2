"""`lmseg data new|check|show|list`: write a card, verify a dataset, look at it."""

import argparse
import dataclasses
import json
import os
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from lmseg_jax.contact_sheet import contact_sheet
from lmseg_jax.datasets.card import load_card, shipped_cards
from lmseg_jax.datasets.check import MAX_TARGETS, Report, check
from lmseg_jax.datasets.formats import FORMATS, open_source
from lmseg_jax.datasets.new_card import new_card
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.augmentation import augment
from lmseg_jax.report import ImageProgress

CROPS = 2  # training crops that `show --augmented` draws of each image


def main(argv: list[str]) -> int:
    """Runs one of the data commands; returns 0, or 2 where `check` found a problem.

    Raises:
      UserError: the card, the root or a file is missing or wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg data", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="look at images and labels and write a first card")
    what = "folder, or a pattern such as roads/{split}/{name}_left.png"
    new.add_argument("--images", required=True, help=what)
    new.add_argument("--labels", required=True, help="likewise, of the label PNGs")
    new.add_argument("--names", default="", help='class names, one a line, or "id name" each')
    new.add_argument("--name", default="", help="of the dataset; its folder's")
    new.add_argument("--output", default="", help="card to write; NAME.toml in this folder")
    verify = commands.add_parser("check", help="read every file; exit status 0 if all is well")
    _add_dataset(verify)
    verify.add_argument("--split", nargs="+", default=[], help="splits to check; all of the card")
    verify.add_argument("--json", action="store_true", help="print the reports as JSON")
    _add_max_targets(verify)
    show = commands.add_parser("show", help="draw a contact sheet: images with their labels")
    _add_dataset(show)
    show.add_argument("--split", default="", help="split to draw from; the first one of the card")
    show.add_argument("--output", default="", help="PNG to write; CARD_SPLIT.png in this folder")
    show.add_argument(
        "--count", type=int, default=8, help="number of images, spread over the split"
    )
    show.add_argument(
        "--augmented", action="store_true", help=f"beside each image {CROPS} of its training crops"
    )
    show.add_argument("--seed", type=int, default=0, help="of the crops")
    _add_max_targets(show)
    commands.add_parser("list", help="list the cards that come with lmseg")
    options = parser.parse_args(argv)
    for flag, least in (("count", 1), ("max_targets", 1), ("seed", 0)):
        found = getattr(options, flag, least)
        if found < least:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} is {found}; expected at least {least}")
    return COMMANDS[options.command](options)


def _add_max_targets(parser: argparse.ArgumentParser) -> None:
    words = "segments a crop may have, the run's data.max_targets"
    parser.add_argument("--max-targets", type=int, default=MAX_TARGETS, help=words)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("card", help="name of a shipped card, or path of a .toml file")
    parser.add_argument("--root", default="", help="folder that holds every dataset's tree")


def _new(options: argparse.Namespace) -> int:
    card, layout = new_card(
        images=options.images,
        labels=options.labels,
        names=options.names,
        name=options.name,
        output=options.output,
        progress=ImageProgress("reading labels"),
    )
    absolute = os.path.isabs(options.images) or os.path.isabs(options.labels)
    root = shlex.quote(str(layout.root) if absolute else os.path.relpath(layout.root))
    path = shlex.quote(card.path)
    splits = ", ".join(f"{split} {count}" for split, count in card.splits.items())
    print(f"{card.path}: {len(card.taxonomy)} classes, images: {splits}")
    for file in layout.lists:
        print(f"{file}: names of a random split")
    if layout.bare:
        print(f"{layout.bare} images have no label and are in no list")
    print('What was guessed is marked "# guess" in the card. Mend it, names first; then:')
    print(f"  lmseg data check {path} --root {root}")
    print(f"  lmseg data show {path} --root {root} --augmented")
    print(
        f"  python -m lmseg_jax.main --config own_data:{path} --workdir runs/{card.name} "
        f"--config.data.root={root}"
    )
    return 0


def _check(options: argparse.Namespace) -> int:
    card = load_card(options.card)
    reports = []
    for split in options.split or card.splits or [""]:  # "": open_source says what is wrong
        report = check(
            card,
            split,
            root=options.root,
            max_targets=options.max_targets,
            others=reports,
            progress=ImageProgress(f"{card.name}/{split}"),
        )
        reports.append(report)
        if not options.json:
            print(_text(report), end="\n\n", flush=True)
    if options.json:
        print(json.dumps([_row(report) for report in reports], indent=1))
    return 0 if all(report.ok for report in reports) else 2


def _row(report: Report) -> dict:
    """A report as JSON; the digests are of use to the next split's report only."""
    values = dataclasses.asdict(report)
    del values["digests"]
    return {**values, "ok": report.ok}


def _show(options: argparse.Namespace) -> int:
    card = load_card(options.card)
    split = options.split or next(iter(card.splits), "")
    source = open_source(card, split, root=options.root)
    count = min(options.count, len(source))
    places = ((np.arange(count) + 0.5) * len(source) / count).astype(int)
    samples = [source[int(place)] for place in places]
    title, crops = f"{card.name} / {split}: {count} of {len(source)} images", []
    if options.augmented:
        title += f", each with {CROPS} training crops"
        for place, sample in zip(places, samples, strict=True):
            rng = np.random.default_rng([options.seed, int(place)])
            recipe = card.train.oriented(*sample.segments.shape)
            crops.append(
                [
                    augment(sample, recipe, max_targets=options.max_targets, rng=rng)
                    for _ in range(CROPS)
                ]
            )
    sheet = contact_sheet(card, samples, title=title, crops=crops)
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


COMMANDS = {"new": _new, "check": _check, "show": _show, "list": _list}


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
    if sizes:
        p50, p99, most = (report.segments[key] for key in ("p50", "p99", "max"))
        limit = f"data.max_targets = {report.max_targets}"
        lines.append(f"  segments of an image: half <= {p50}, 99 % <= {p99}, most {most} ({limit})")
    lines += [f"  problem: {problem}" for problem in report.problems]
    lines += [f"  warning: {warning}" for warning in report.warnings]
    if sizes:
        names = [name if len(name) <= 40 else f"{name[:37]}..." for name in report.classes]
        width = max(map(len, [*names, "(void)"]))
        lines.append(f"  {'class':{width}}   images  segments  % of pixels")
        for name, row in zip(names, report.classes.values(), strict=True):
            counts = f"{row['images']:7}  {row['segments']:8}  {row['share']:11.2f}"
            lines.append(f"  {name:{width}}  {counts}")
        lines.append(f"  {'(void)':{width}}  {'':7}  {'':8}  {report.void:11.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("data")
