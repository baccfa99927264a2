"""What can be looked for: taxonomies of training, cards, unions, subsets and free words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmseg_jax.datasets.card import NAMES_ONLY, DatasetCard, load_card, shipped_cards
from lmseg_jax.datasets.recipe import TestRule
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import Taxonomy, from_names, plain


@dataclass(frozen=True)
class LabelSpace:
    """A taxonomy that the model was trained on, and how its images are segmented.

    Attributes:
      taxonomy: names, in the order of the model's classes.
      test: size that images are resized to, None where that is unknown.
      object_mask, overlap: panoptic thresholds.
      task: of its card, which says what is resized: scores (semantic) or masks (panoptic).
      synonyms: True if a class is asked for by its synonyms, too; their probabilities add up.
    """

    taxonomy: Taxonomy
    test: TestRule | None = None
    object_mask: float = 0.8
    overlap: float = 0.8
    task: str = "semantic"
    synonyms: bool = False


def of_card(card: DatasetCard) -> LabelSpace:
    """The label space that a card describes."""
    return LabelSpace(
        card.taxonomy,
        card.test,
        card.object_mask,
        card.overlap,
        card.task,
        synonyms=card.format == NAMES_ONLY,
    )


def look_up(
    spaces: Mapping[str, LabelSpace],
    taxonomy: str | None,
    classes: Sequence[str] | None,
    *,
    head: str,
) -> tuple[LabelSpace, tuple[tuple[str, ...], ...]]:
    """The label space of a call and the words of each class; () = the words of training.

    Args:
      spaces: of training, by name.
      taxonomy, classes: see `Segmenter.segment`.
      head: `model.head`; only "text" reads other words than those of training.

    Raises:
      UserError: it is not said what to look for, or the model does not know it.
    """
    if taxonomy is None and classes is None:
        if len(spaces) != 1:
            raise UserError("give taxonomy= or classes=; they say what to look for")
        (taxonomy,) = spaces
    if head != "text" and (classes is not None or taxonomy not in spaces):
        raise UserError(
            f"this model has head {head!r}, whose classes are fixed: give only"
            f" taxonomy= one of {', '.join(spaces)}"
        )
    if isinstance(classes, str):
        raise UserError(f"classes={classes!r}: is one text; give a list, one text a class")
    if classes is not None and not len(classes):
        raise UserError("classes=[]: is empty; name one class or more")
    if taxonomy is None:
        words = tuple(_words(text) for text in classes)
        _distinct(words)
        first = next(iter(spaces.values()))
        return replace(first, taxonomy=_free(spaces, tuple(classes), words)), words
    if taxonomy in spaces and classes is None:
        return spaces[taxonomy], ()
    space = _union(spaces, taxonomy)
    if classes is not None:
        space = replace(space, taxonomy=_subset(space.taxonomy, classes))
    if not space.synonyms:
        return space, tuple((name,) for name in space.taxonomy.names)
    words = tuple((c.name, *c.synonyms) for c in space.taxonomy.categories)
    _distinct(words)
    return space, words


def _union(spaces: Mapping[str, LabelSpace], taxonomy: str) -> LabelSpace:
    """A label space of training or of a card, or several joined by +."""
    whole = taxonomy.endswith(".toml") and Path(taxonomy).is_file()  # a path may have a +, too
    names = [taxonomy] if whole else taxonomy.split("+")
    parts = [_space(spaces, name.strip()) for name in names]
    if len(parts) == 1:
        return parts[0]
    found = {}
    for part in parts:
        for category in part.taxonomy.categories:
            found.setdefault(plain(category.name), category)
    categories = tuple(replace(category, id=i + 1) for i, category in enumerate(found.values()))
    joined = Taxonomy(taxonomy, categories, void=(0,))
    return replace(parts[0], taxonomy=joined, synonyms=False)


def _space(spaces: Mapping[str, LabelSpace], name: str) -> LabelSpace:
    if name in spaces:
        return spaces[name]
    if name in shipped_cards() or name.endswith(".toml"):
        return of_card(load_card(name))
    raise UserError(
        f"taxonomy={name!r}: not one of the model's, which are {', '.join(spaces)}, nor a"
        f" shipped card, which are {', '.join(shipped_cards())}; nor the path of a .toml file"
    )


def _free(
    spaces: Mapping[str, LabelSpace], names: tuple[str, ...], words: Sequence[Sequence[str]]
) -> Taxonomy:
    """Free words: things, unless every taxonomy of training that has such a name says stuff."""
    known = {}
    for space in spaces.values():
        for category in space.taxonomy.categories:
            key = plain(category.name)
            known[key] = known.get(key, False) or category.thing
    things = [any(known.get(plain(word), True) for word in texts) for texts in words]
    return marked(from_names(names), things)


def marked(taxonomy: Taxonomy, things: Sequence[bool]) -> Taxonomy:
    """The taxonomy with other things."""
    categories = zip(taxonomy.categories, things, strict=True)
    return replace(
        taxonomy, categories=tuple(replace(category, thing=bool(x)) for category, x in categories)
    )


def with_things(taxonomy: Taxonomy, things: Sequence[str]) -> Taxonomy:
    """The taxonomy in which these names, and no others, are things."""
    wanted = {c.name for c in _subset(taxonomy, things, "things").categories} if things else ()
    return marked(taxonomy, [name in wanted for name in taxonomy.names])


def _subset(taxonomy: Taxonomy, names: Sequence[str], key: str = "classes") -> Taxonomy:
    """The named categories in the order given, with their ids and colours."""
    known = {plain(category.name): category for category in taxonomy.categories}
    missing = [name for name in names if plain(name) not in known]
    if isinstance(names, str) or missing:
        what = f"{names!r} is one text" if isinstance(names, str) else f"no {missing[0]!r}"
        raise UserError(
            f"{key}: {what}; give a list of names of {taxonomy.name}: {', '.join(taxonomy.names)}"
        )
    _distinct([[name] for name in names])
    return replace(taxonomy, categories=tuple(known[plain(name)] for name in names))


def _words(text: str) -> tuple[str, ...]:
    """The words for one class."""
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise UserError(f"class {text!r}: has an empty word; write words with commas between them")
    return words


def _distinct(words: Sequence[Sequence[str]]) -> None:
    """Refuses a word that stands twice: its probability would be cut in half."""
    seen = set()
    for word in (plain(word) for texts in words for word in texts):
        if word in seen:
            raise UserError(f"classes: {word!r} stands there twice; name it once")
        seen.add(word)
