"""Writes a card of names only: a union of several cards' classes, to be asked for in words."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lmseg_jax.datasets.card import NAMES_ONLY, DatasetCard
from lmseg_jax.datasets.new_card import quoted
from lmseg_jax.taxonomy import from_names, plain


def union_card(
    cards: Sequence[DatasetCard], groups: Sequence[Mapping[int, int]], *, name: str
) -> str:
    """The text of a card that has every group as one class.

    A class is called as in the first card that has it; the other names and the synonyms become its
    synonyms, but for words that would stand for two classes. Test size is that of the first card,
    panoptic thresholds those of the first panoptic one.

    Args:
      cards: whose classes are joined.
      groups: {number of the card: index of its class}; see `comparison.group`.
      name: of the card.
    """
    members = [
        [cards[m].taxonomy.categories[i] for m, i in sorted(found.items())] for found in groups
    ]
    words = [
        list(dict.fromkeys(plain(word) for c in found for word in (c.name, *c.synonyms)))
        for found in members
    ]
    uses = Counter(word for found in words for word in found)
    colors = _colors(members)
    panoptic = [card for card in cards if card.task == "panoptic"]
    first, thresholds = cards[0], (panoptic or cards)[0]
    names = ", ".join(card.name for card in cards)
    lines = [
        f"# Written by `lmseg taxonomy`: {len(groups)} classes of {names}.",
        f"name = {quoted(name)}",
        f"task = {quoted(thresholds.task)}",
        f"format = {quoted(NAMES_ONLY)} # no images: names to ask a model for",
        f"about = {{ source = {quoted(f'names of {names}')}, license = {quoted('as theirs')} }}",
        "void = [0]",
        "classes = [",
    ]
    for k, (found, group) in enumerate(zip(members, groups, strict=True)):
        known = [word for word in words[k] if word != plain(found[0].name) and uses[word] == 1]
        more = f", synonyms = [{', '.join(map(quoted, known))}]" if known else ""
        origin = "; ".join(
            f"{cards[m].name}: {c.name}" for m, c in zip(sorted(group), found, strict=True)
        )
        thing = str(any(c.thing for c in found)).lower()
        lines.append(
            f"  {{ id = {k + 1}, name = {quoted(found[0].name)}, thing = {thing},"
            f" color = {list(colors[k])}{more} }}, # {origin}"
        )
    lines += [
        "]",
        "",
        "[test]",
        f"short_side = {first.test.short_side}",
        f"max_side = {first.test.max_side}",
        "",
        "[panoptic]",
        f"object_mask = {thresholds.object_mask}",
        f"overlap = {thresholds.overlap}",
    ]
    return "\n".join([*lines, ""])


def _colors(members: Sequence[Sequence]) -> list[tuple[int, int, int]]:
    """For each class a colour of its own: one of its members' if it is free, else a new one."""
    spare = iter(from_names([""] * (2 * len(members) + 64)).categories)
    taken, found = set(), []
    for categories in members:
        free = [c.color for c in categories if c.color not in taken]
        color = free[0] if free else next(c.color for c in spare if c.color not in taken)
        taken.add(color)
        found.append(color)
    return found
