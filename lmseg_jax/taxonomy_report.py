"""The report of `lmseg taxonomy` as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmseg_jax import comparison
from lmseg_jax.comparison import Group, Link, Near
from lmseg_jax.taxonomy import Taxonomy, plain


@dataclass(frozen=True)
class Encoder:
    """Which text tower read the names.

    Attributes:
      source: its name or path.
      template: words around each name.
      known: of how many names a shipped tower met every word in training; all of any other tower.
      names: how many different names there are.
    """

    source: str
    template: str
    known: int
    names: int


@dataclass(frozen=True)
class Answers:
    """What a model said about the same images.

    Attributes:
      checkpoint: folder of the model.
      images: how many.
      tables: {(a, b): int64 [classes of a, classes of b]}, pixels; see `comparison.count_together`.
      share: least part of a class that is listed in a split.
      iou: below it two maps of one name contradict each other; from it on two maps are the same.
    """

    checkpoint: str
    images: int
    tables: dict[tuple[int, int], np.ndarray]
    share: float
    iou: float


@dataclass(frozen=True)
class Findings:
    """All that the report tells.

    Attributes:
      taxonomies: as given.
      tasks: of their cards.
      groups: classes that are one; see `comparison.group`.
      links: that made the groups, and that were refused.
      near: pairs of groups, any order.
      encoder: whose cosines they have.
      cosine, words: thresholds of the tables of near names.
      rows: of a table of near names, at most.
      answers: None without a model.
      files: what lies beside the report, by what it is: "picture".
    """

    taxonomies: Sequence[Taxonomy]
    tasks: Sequence[str]
    groups: Sequence[Group]
    links: Sequence[Link]
    refused: Sequence[Link]
    near: Sequence[Near]
    encoder: Encoder
    cosine: float
    words: float
    rows: int
    answers: Answers | None = None
    files: dict[str, str] = field(default_factory=dict)


def name_of(taxonomies: Sequence[Taxonomy], group: Group) -> str:
    """A group's name: that of its class in the first taxonomy that has one."""
    m, i = next(iter(group.items()))
    return taxonomies[m].names[i]


def markdown(found: Findings) -> str:
    """The whole report."""
    titles = [taxonomy.name for taxonomy in found.taxonomies]
    parts = [f"# Taxonomies: {', '.join(titles)}", "", *_counts(found), *_common(found)]
    parts += [*_kinds_differ(found), *_divided(found), *_near(found)]
    if found.answers is not None:
        parts += _answers(found, found.answers)
    if "picture" in found.files:
        unknown = found.encoder.known < found.encoder.names
        lost = " **The place of a name that it never met means nothing either.**" if unknown else ""
        parts += [
            "## Names in the plane",
            "",
            f"t-SNE of the embeddings of `{found.encoder.source}`: near names have a small angle;"
            " directions, and distances between clusters, mean nothing. A dot for each card that"
            " has the name." + lost,
            "",
            f"![Names of {', '.join(titles)}]({found.files['picture']})",
            "",
        ]
    return "\n".join(parts)


def _counts(found: Findings) -> Iterator[str]:
    alone = [0] * len(found.taxonomies)
    for group in found.groups:
        if len(group) == 1:
            alone[next(iter(group))] += 1
    yield "## Classes"
    yield ""
    rows = [
        (t.name, task, len(t), int(t.things.sum()), int((~t.things).sum()), own)
        for t, task, own in zip(found.taxonomies, found.tasks, alone, strict=True)
    ]
    yield from _table(("card", "task", "classes", "things", "stuff", "in no other card"), rows)
    total = sum(map(len, found.taxonomies))
    yield f"{total} classes, {len(found.groups)} when those that mean the same count once."
    yield ""
    if len(found.taxonomies) > 2:
        titles = [t.name for t in found.taxonomies]
        yield "Classes that two cards have in common:"
        yield ""
        rows = [(title, *_shared_counts(found, m)) for m, title in enumerate(titles)]
        yield from _table(("", *titles), rows)


def _shared_counts(found: Findings, m: int) -> list:
    return [
        "" if m == n else sum(m in group and n in group for group in found.groups)
        for n in range(len(found.taxonomies))
    ]


def _common(found: Findings) -> Iterator[str]:
    yield "## The same class in several cards"
    yield ""
    yield (
        "By equal names (case and underscores aside), by the same words (plurals, signs and COCO's"
        ' marks "merged" and "stuff" aside), or by a synonym that a card lists'
        + (", or by equal answers of the model." if found.answers else ".")
    )
    yield ""
    kinds = {}
    for link in found.links:
        for place in (link.one, link.other):
            kinds.setdefault(place, {}).setdefault(link.kind, link.word)
    same, differing = [], []
    for group in found.groups:
        if len(group) < 2:
            continue
        texts = {plain(found.taxonomies[m].names[i]) for m, i in group.items()}
        name = name_of(found.taxonomies, group)
        if len(texts) == 1:
            same.append((len(group), plain(name), [found.taxonomies[m].name for m in group]))
            continue
        cells = [
            found.taxonomies[m].names[group[m]] if m in group else ""
            for m in range(len(found.taxonomies))
        ]
        why = {}
        for place in group.items():
            for kind, word in kinds[place].items():
                if kind != comparison.KINDS[0]:
                    why.setdefault(kind, word)
        differing.append((*cells, "; ".join(f"{kind}: {word}" for kind, word in why.items())))
    by_cards = {}
    for _, name, cards in sorted(same, key=lambda row: -row[0]):
        by_cards.setdefault(tuple(cards), []).append(name)
    rows = [(", ".join(cards), len(n), ", ".join(sorted(n))) for cards, n in by_cards.items()]
    if rows:
        yield from _table(("equal names in", "classes", "names"), rows)
    if differing:
        yield "Other names, the same class:"
        yield ""
        yield from _table((*(t.name for t in found.taxonomies), "because"), differing)
    if not rows and not differing:
        yield "None."
        yield ""


def _kinds_differ(found: Findings) -> Iterator[str]:
    """Exact contradictions: a thing here, stuff there."""
    rows = []
    for group in found.groups:
        kinds = {m: bool(found.taxonomies[m].things[i]) for m, i in group.items()}
        if len(set(kinds.values())) == 2:
            sides = [
                ", ".join(found.taxonomies[m].name for m in kinds if kinds[m] is thing)
                for thing in (True, False)
            ]
            rows.append((name_of(found.taxonomies, group), *sides))
    if rows:
        yield "## A thing here, stuff there"
        yield ""
        yield from _table(("class", "thing in", "stuff in"), rows)


def _divided(found: Findings) -> Iterator[str]:
    """Links that were refused: one class has two of the other card's."""
    if not found.refused:
        return
    yield "## One word, several classes"
    yield ""
    yield (
        "A word joins these two, but one of them is already joined to another class of the same"
        " card: one card divides what the other has whole. They stay apart."
    )
    yield ""
    rows = [
        (_called(found, link.one), _called(found, link.other), f"{link.kind}: {link.word}")
        for link in found.refused
    ]
    yield from _table(("class", "class", "because"), rows)


def _near(found: Findings) -> Iterator[str]:
    encoder = found.encoder
    yield "## Near names"
    yield ""
    yield (
        "Words: what two names have in common of all their words. Cosine: of the embeddings of"
        f' "{encoder.template}" by the text tower of `{encoder.source}`. Both are suggestions:'
        " nothing is joined because of them."
    )
    yield ""
    if encoder.known < encoder.names:
        yield (
            f"**`{encoder.source}` is made for rendered scenes: in its training it met every word"
            f" of only {encoder.known} of these {encoder.names} names. What it says of the others"
            " means nothing and is left out here.** A real CLIP knows them: `--text openai/rn50`."
        )
        yield ""
    by_words = [pair for pair in found.near if pair.words >= found.words]
    by_words.sort(key=lambda pair: (-pair.words, pair.one, pair.other))
    yield from _pairs(found, by_words, f"words in common, {found.words} and more")
    by_cosine = [pair for pair in found.near if pair.cosine is not None]
    by_cosine = [pair for pair in by_cosine if pair.cosine >= found.cosine]
    by_cosine.sort(key=lambda pair: -pair.cosine)
    yield from _pairs(found, by_cosine, f"cosine, {found.cosine} and more")


def _pairs(found: Findings, pairs: Sequence[Near], title: str) -> Iterator[str]:
    shown = pairs[: found.rows]
    cut = f", the first {len(shown)}" if len(shown) < len(pairs) else ""
    yield f"By {title}: {len(pairs)} pairs{cut}{':' if shown else '.'}"
    yield ""
    rows = []
    for pair in shown:
        cosine = "-" if pair.cosine is None else f"{pair.cosine:.2f}"
        sides = (*_group_cells(found, pair.one), *_group_cells(found, pair.other))
        rows.append((*sides, f"{pair.words:.2f}", cosine))
    if rows:
        yield from _table(("name", "in", "name", "in", "words", "cosine"), rows)


def _group_cells(found: Findings, number: int) -> tuple[str, str]:
    group = found.groups[number]
    cards = ", ".join(found.taxonomies[m].name for m in group)
    return name_of(found.taxonomies, group), cards


def _answers(found: Findings, answers: Answers) -> Iterator[str]:
    yield "## The same images in several taxonomies"
    yield ""
    yield (
        f"{answers.images} images, each answered by `{answers.checkpoint}` in every taxonomy"
        " (semantic: each pixel gets one class of each). What follows is what the model has"
        " learned, with its errors, not what annotators did."
    )
    yield ""
    for (a, b), table in answers.tables.items():
        yield from _split_table(found, answers, a, b, table)
        yield from _split_table(found, answers, b, a, table.T)
    yield from _contradictions(found, answers)


def _split_table(found, answers: Answers, a: int, b: int, table: np.ndarray) -> Iterator[str]:
    one, other = found.taxonomies[a], found.taxonomies[b]
    least = f"{100 * answers.share:.0f} %"
    yield f"### One class of {one.name}, several of {other.name}"
    yield ""
    total, rows = table.sum(), []
    for split in comparison.splits(table, share=answers.share):
        parts = ", ".join(
            f"{other.names[part.index]} {100 * part.share:.0f} % ({100 * part.inside:.0f})"
            for part in split.parts
        )
        what = "split" if split.nested else "crossing"
        rows.append((one.names[split.index], f"{100 * split.pixels / total:.1f}", what, parts))
    if not rows:
        yield f"None with two classes of {least} of its pixels or more."
        yield ""
        return
    yield from _table(
        ("class", "% of all pixels", "", f"its pixels are ({least} and more; in brackets: % of that"
         " class which lies here)"),
        rows,
    )  # fmt: skip


def _contradictions(found: Findings, answers: Answers) -> Iterator[str]:
    yield "### Contradictions"
    yield ""
    limit, rows = f"{100 * answers.iou:.0f} %", []
    other_names = [link for link in found.links if link.kind == comparison.KINDS[-1]]
    by_pixels = {(link.one, link.other) for link in other_names}
    for (a, b), table in answers.tables.items():
        values, (rows_seen, columns_seen) = comparison.overlap(table), comparison.seen(table)
        for group in found.groups:
            if a not in group or b not in group:
                continue
            i, j = group[a], group[b]
            by_name = ((a, i), (b, j)) not in by_pixels
            if by_name and (rows_seen[i] or columns_seen[j]):
                shares = table[i].sum() / table.sum(), table[:, j].sum() / table.sum()
                pixels = [f"{100 * share:.1f}" for share in shares]
                places = _called(found, (a, i)), _called(found, (b, j))
                rows.append((values[i, j], *places, f"{100 * values[i, j]:.0f}", *pixels))
    rows.sort(key=lambda row: row[0])
    count = sum(row[0] < answers.iou for row in rows)
    yield (
        "One class by its names, and yet other pixels: the intersection of the two label maps is"
        f" below {limit} of their union for {count} of {len(rows)} that occur."
        + (" The lowest:" if rows else "")
    )
    yield ""
    if rows:
        heads = ("class", "class", "IoU", "% of all pixels", "% of all pixels")
        yield from _table(heads, [row[1:] for row in rows[: max(count, found.rows)]])
    if other_names:
        yield f"Other names, but an intersection of {limit} of the union or more:"
        yield ""
        rows = [
            (_called(found, link.one), _called(found, link.other), link.word)
            for link in other_names
        ]
        yield from _table(("class", "class", "because"), rows)


def _called(found: Findings, place: tuple[int, int]) -> str:
    taxonomy = found.taxonomies[place[0]]
    return f"{taxonomy.names[place[1]]} ({taxonomy.name})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""
