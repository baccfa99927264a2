"""`lmseg taxonomy`: where label sets agree, overlap and contradict (docs/taxonomy.md)."""

import argparse
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from lmseg_jax import charts, comparison, report, taxonomy_report
from lmseg_jax.datasets.card import WORD, DatasetCard, load_card
from lmseg_jax.datasets.names_card import union_card
from lmseg_jax.errors import UserError
from lmseg_jax.predict import find_images
from lmseg_jax.pretrained import text
from lmseg_jax.segmentation import pixels
from lmseg_jax.segmenter import Segmenter, load
from lmseg_jax.taxonomy import plain
from lmseg_jax.taxonomy_report import Answers, Encoder, Findings

REPORT, UNION, PICTURE = "report.md", "union.toml", "embeddings.png"


def answer(
    model: Segmenter, cards: Sequence[DatasetCard], images: Sequence[Path]
) -> dict[tuple[int, int], np.ndarray]:
    """Pixels that each two taxonomies' classes share when a model answers images in both.

    Args:
      model: what is asked; the words of training for cards that it was trained on.
      cards: two or more.
      images: paths.

    Returns:
      {(a, b): int64 [classes of a, classes of b]} for a < b.

    Raises:
      UserError: an image cannot be read, the model cannot answer in a card's words, or it was
        trained on another card of the same name.
    """
    asked = []
    for card in cards:
        trained = model.taxonomies.get(card.name)
        if trained is not None and trained.names != card.taxonomy.names:
            raise UserError(
                f"{card.path}: the model was trained on another card called {card.name!r}; give"
                " this one another name"
            )
        asked.append(card.path if trained is None else card.name)
    sizes = [len(card.taxonomy) for card in cards]
    pairs = list(combinations(range(len(cards)), 2))
    tables = {(a, b): np.zeros((sizes[a], sizes[b]), np.int64) for a, b in pairs}
    bar = report.ImageProgress("taxonomy")
    for done, path in enumerate(images, 1):
        image = pixels(path)
        maps = [model.segment(image, taxonomy=name).labels for name in asked]
        for a, b in pairs:
            tables[a, b] += comparison.count_together(maps[a], maps[b], (sizes[a], sizes[b]))
        bar(done, len(images))
    return tables


def main(argv: Sequence[str]) -> int:
    """Compares the cards and writes report, union card and picture.

    Raises:
      UserError: a flag, a card, the encoder or the model is wrong.
    """
    options = _options(argv)
    cards = [load_card(name) for name in options.cards]
    names = [card.name for card in cards]
    if len(set(names)) < len(names):
        raise UserError(f"cards are called {', '.join(names)}; each must have a name of its own")
    if options.plot:
        charts.need_scikit_learn()
    images = find_images(options.images, without=options.output) if options.images else []
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot write: {error.strerror or error}"
        raise UserError(f"--output {options.output}: {problem}") from error

    taxonomies = [card.taxonomy for card in cards]
    links, answers = comparison.same_names(taxonomies), None
    if options.checkpoint:
        tables = answer(load(options.checkpoint), cards, images)
        answers = Answers(options.checkpoint, len(images), tables, options.share, options.iou)
        named = {(link.one, link.other) for link in links}
        for pair, table in tables.items():
            links += [
                link
                for link in comparison.same_pixels(table, pair, iou=options.iou)
                if (link.one, link.other) not in named
            ]
    groups, refused = comparison.group(taxonomies, links)
    kept = [link for link in links if link not in refused]

    distinct = list(dict.fromkeys(plain(name) for t in taxonomies for name in t.names))
    vectors = text.embed(options.text, distinct, template=options.template)
    known = text.read_in_training(options.text, distinct)
    row = {name: i for i, name in enumerate(distinct)}
    titles = [taxonomy_report.name_of(taxonomies, group) for group in groups]
    rows = [row[plain(title)] for title in titles]
    near = comparison.near_names(titles, groups, embeddings=vectors[rows], known=known[rows])
    files = {}
    if options.plot:
        files["picture"] = PICTURE
        of_cards = [vectors[[row[plain(name)] for name in t.names]] for t in taxonomies]
        shown, points, members = charts.distinct([t.names for t in taxonomies], of_cards)
        charts.names_chart(
            shown,
            charts.lay_out(points),
            members=members,
            taxonomies=names,
            title=f"class names, read by {options.text}"
            + ("" if known.all() else f" (in training it met {known.sum()} of {len(known)})"),
            path=options.output / PICTURE,
        )
    found = Findings(
        taxonomies=taxonomies,
        tasks=[card.task for card in cards],
        groups=groups,
        links=kept,
        refused=refused,
        near=near,
        encoder=Encoder(options.text, options.template, int(known.sum()), len(distinct)),
        cosine=options.cosine,
        words=options.words,
        rows=options.rows,
        answers=answers,
        files=files,
    )
    written = {
        REPORT: taxonomy_report.markdown(found),
        UNION: union_card(cards, groups, name=options.name),
    }
    for name, content in written.items():
        try:
            (options.output / name).write_text(content, encoding="utf-8")
        except OSError as error:
            problem = f"cannot write: {error.strerror or error}"
            raise UserError(f"{options.output / name}: {problem}") from error
    load_card(options.output / UNION)  # what is handed out can be used
    total = sum(map(len, taxonomies))
    print(f"{options.output / REPORT}: {total} classes, {len(groups)} of them different")
    print(f"{options.output / UNION}: their union, for lmseg predict --taxonomy")
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lmseg taxonomy", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("cards", nargs="+", metavar="CARD", help="shipped names or paths, two or more")
    add("--output", required=True, type=Path, help=f"folder for {REPORT}, {UNION}, {PICTURE}")
    add("--text", default="worlds-clip", help="text tower: a name or path as in pretrained.text")
    add("--template", default="a {name}", help='what it reads; default "a {name}"')
    add("--cosine", type=float, default=0.9, help="least cosine of near names (0.9)")
    add("--words", type=float, default=0.5, help="least share of words of near names (0.5)")
    add("--rows", type=int, default=40, help="rows of each table of near names, at most (40)")
    add("--name", default="union", help="name of the union card")
    add("--plot", action=argparse.BooleanOptionalAction, default=True, help=f"draw {PICTURE}")
    add("--checkpoint", help="a model that answers --images in every card's words")
    add("--images", type=Path, help="an image, or a folder with images")
    add("--share", type=float, default=0.1, help="least part of a class in a split (0.1)")
    add("--iou", type=float, default=0.5, help="least agreement of two label maps (0.5)")
    options = parser.parse_args(argv)
    if len(options.cards) < 2:
        raise UserError(f"{options.cards[0]} is one card; name two or more to compare")
    if bool(options.checkpoint) != bool(options.images):
        raise UserError("--checkpoint and --images belong together: a model, and what it answers")
    if "{name}" not in options.template:
        raise UserError(
            f'--template {options.template!r}: has no {{name}}; try "a photo of a {{name}}"'
        )
    if options.rows < 0:
        raise UserError(f"--rows {options.rows}: expected 0 or more")
    if not re.fullmatch(WORD, options.name):
        raise UserError(f"--name {options.name!r}: use letters, digits, _ and - only")
    for flag, low in (("cosine", -1), ("words", 0), ("share", 0), ("iou", 0)):
        if not low <= getattr(options, flag) <= 1:
            raise UserError(f"--{flag} {getattr(options, flag)}: expected a number from {low} to 1")
    return options


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("taxonomy")
