"""Dataset cards: one TOML file says everything about a dataset (format: docs/datasets.md)."""

import re
import tomllib
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath, PureWindowsPath

from lmseg_jax.datasets.recipe import Recipe, TestRule, read_recipe, read_test_rule
from lmseg_jax.datasets.table import Table
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import Category, Taxonomy, plain

TASKS = ("semantic", "panoptic")
NAMES_ONLY = "none"  # format of a card without images
WORD = r"[A-Za-z0-9_-]+"  # names that become parts of file names
# Could end a line, steer a terminal, or not be printed at all.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LARGEST_ID = 65535  # what a 16-bit label PNG can hold
LARGEST_CARD = 2**22  # bytes
LONGEST_NAME = 200  # characters of a class name; the text encoder reads fewer

_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Files:
    """Where a dataset's files lie, as patterns below the root; all empty where none are read.

    Attributes:
      folder: the dataset's own folder; the other patterns are relative to it.
      images: patterns of an image, tried in order; `{split}` and `{name}` are replaced.
      labels: pattern of the label file of the image with the same `{name}`.
      instances: pattern of its second label file, where a format has one for instances.
      segments: JSON file that lists the segments of a split's images, where a format has one.
      list: file with one name a line, or "" if the folder's content is the split.
      split_names: what replaces `{split}` where it is not the split's own name.
    """

    folder: str = ""
    images: tuple[str, ...] = ()
    labels: str = ""
    instances: str = ""
    segments: str = ""
    list: str = ""
    split_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetCard:
    """A dataset, as its card describes it (format of the file: docs/datasets.md)."""

    name: str
    path: str  # of the card's file, for messages
    task: str  # "semantic" | "panoptic"
    format: str  # key of datasets.formats.FORMATS, or NAMES_ONLY
    taxonomy: Taxonomy
    splits: dict[str, int]  # expected number of images
    train: Recipe | None  # None without images
    test: TestRule
    object_mask: float  # panoptic thresholds
    overlap: float
    void_colors: tuple[tuple[int, int, int], ...] = ()  # RGB, colours that mean nothing
    files: Files = field(default_factory=Files)
    options: dict[str, object] = field(default_factory=dict)  # what only this format reads
    about: dict[str, str] = field(default_factory=dict)  # source, license, citation


def shipped_cards() -> list[str]:
    """Names of the cards that come with the project, sorted."""
    folder = _shipped_folder()
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_card(name_or_path: str | Path) -> DatasetCard:
    """Reads and checks a card.

    Args:
      name_or_path: a shipped card's name, such as "camvid", or the path of a `.toml` file.

    Raises:
      UserError: there is no such card, or it is wrong; names the file, the key and what it expects.
    """
    name = str(name_or_path)
    if name.endswith(".toml") or "/" in name or "\\" in name:
        path = Path(name)
    else:
        path = _shipped_folder() / f"{name}.toml"
        if not path.is_file():
            raise UserError(
                f"no card is called {name!r}: use one of {', '.join(shipped_cards())}, "
                "or the path of a .toml file"
            )
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no file, but a folder or device; name the card itself")
        if path.stat().st_size > LARGEST_CARD:
            problem = f"has {path.stat().st_size} bytes, a card {LARGEST_CARD} at most"
            raise UserError(f"{path}: {problem}; name the card itself")
        text = path.read_text(encoding="utf-8-sig")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read this card: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a TOML file, which is text in UTF-8: {error}") from error
    return parse_card(text, path=str(path))


def parse_card(text: str, *, path: str) -> DatasetCard:
    """Reads and checks the text of a card.

    Args:
      text: TOML.
      path: where it stands, for messages and the card's own `path`.

    Raises:
      UserError: it is wrong; names the path, the key and what it expects.
    """
    try:
        values = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # also of numbers and nesting without end
        raise UserError(f"{path}: not a TOML file: {error}") from error
    return _card(Table(path, "", values))


def _shipped_folder() -> Path:
    """data/ inside the installed package, or at the top of the repository."""
    inside = _HERE / "data"
    return inside if inside.is_dir() else _HERE.parent / "data"


def _card(top: Table) -> DatasetCard:
    name = top.text("name")
    if not re.fullmatch(WORD, name):
        raise top.error("name", f"is {name!r}; use letters, digits, _ and - only")
    task = top.choice("task", TASKS)
    kind = top.text("format")
    about = top.table("about")
    facts = {"source": about.text("source"), "license": about.text("license")}
    facts["citation"] = about.text("citation", "")
    about.close()
    taxonomy, void_colors = _classes(top, name)
    files = _files(top.table("files", {}))
    bare = kind == NAMES_ONLY
    counts = top.table("splits", {}) if bare else top.table("splits")
    splits = {split: counts.number(split, 1, 10**9) for split in list(counts.values)}
    for split in splits:
        if not re.fullmatch(WORD, split):
            raise counts.error(repr(split), "is no name of a split; use letters, digits, _ and -")
    if bare and (splits or files != Files()):
        key = "splits" if splits else "files"
        raise top.error(key, f"has entries, but format {NAMES_ONLY!r} has no images; take it out")
    if not splits and not bare:
        raise top.error("splits", "is empty; expected the number of images of each split")
    _check_splits(top, files, splits)
    recipe = None if bare else read_recipe(top.table("augmentation"))
    test = read_test_rule(top.table("test"))
    panoptic = top.table("panoptic", {"object_mask": 0.8, "overlap": 0.8})  # MaskFormer's on COCO
    thresholds = {key: float(panoptic.take(key, float)) for key in ("object_mask", "overlap")}
    for key, value in thresholds.items():
        if not 0 <= value <= 1:
            raise panoptic.error(key, f"is {value}; expected a number from 0 to 1")
    panoptic.close()
    options = top.take("options", dict, {})
    top.close()
    return DatasetCard(
        name=name,
        path=top.path,
        task=task,
        format=kind,
        taxonomy=taxonomy,
        splits=splits,
        train=recipe,
        test=test,
        **thresholds,
        void_colors=void_colors,
        files=files,
        options=options,
        about=facts,
    )


def _classes(top: Table, name: str) -> tuple[Taxonomy, tuple[tuple[int, int, int], ...]]:
    """Every class, and what means nothing; ids, names and colours tell classes apart."""
    rows = top.take("classes", list, [])
    if not rows:
        raise top.error("classes", "is missing; expected one line a class, before any [section]")
    categories = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise top.error(f"classes[{i}]", f"is {row!r}; expected a table with id, name, ...")
        line = Table(top.path, f"classes[{i}].", row)
        categories.append(
            Category(
                id=line.number("id", 0, LARGEST_ID),
                name=_class_name(line),
                thing=line.take("thing", bool),
                color=_color(line, "color", line.take("color", list)),
                synonyms=line.texts("synonyms", []),
            )
        )
        line.close()
    void = top.numbers("void", -1, LARGEST_ID, [])
    colors = tuple(
        _color(top, f"void_colors[{i}]", value)
        for i, value in enumerate(top.take("void_colors", list, []))
    )
    for key in ("id", "name", "color"):
        seen = {}
        for i, category in enumerate(categories):
            value = getattr(category, key)
            first = seen.setdefault(plain(value) if key == "name" else value, i)
            if first != i:
                raise top.error(
                    f"classes[{i}].{key}",
                    f"is {value!r}, as in classes[{first}]; make it distinct",
                )
    for category in categories:
        if category.id in void:
            raise top.error("void", f"has {category.id}, which is the class {category.name!r}")
        if category.color in colors:
            raise top.error(
                "void_colors",
                f"has {list(category.color)}, which is the class {category.name!r}",
            )
    return Taxonomy(name, tuple(categories), void), colors


def _class_name(line: Table) -> str:
    """Words for the text encoder: not endless, and safe to print."""
    name = line.text("name")
    if len(name) > LONGEST_NAME:
        raise line.error("name", f"has {len(name)} letters; expected {LONGEST_NAME} at most")
    if CONTROL.search(name):
        raise line.error("name", f"is {name!r}; expected words in one line, without control codes")
    return name


def _color(table: Table, key: str, value: object) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise table.error(key, f"is {value!r}; expected [red, green, blue]")
    return tuple(table.check_number(f"{key}[{i}]", part, 0, 255) for i, part in enumerate(value))


def _files(table: Table) -> Files:
    if isinstance(table.values.get("images"), str):
        table.values["images"] = [table.values["images"]]
    patterns = {
        "folder": [table.text("folder", "")],
        "images": table.texts("images", []),
        "labels": [table.text("labels", "")],
        "instances": [table.text("instances", "")],
        "segments": [table.text("segments", "")],
        "list": [table.text("list", "")],
    }
    names = table.table("split_names", {})
    split_names = {split: names.text(split) for split in list(names.values)}
    table.close()
    for key, found in patterns.items():
        for pattern in found:
            check_inside(table, key, pattern)
            fields = re.findall(r"\{.*?\}|[{}]", pattern)
            one_file = key in ("folder", "segments", "list")
            known = ("{split}",) if one_file else ("{split}", "{name}")
            for part in fields:
                if part not in known:
                    problem = f"is {pattern!r}, which has {part!r}; known: {', '.join(known)}"
                    raise table.error(key, problem)
            if pattern and "{name}" in known and fields.count("{name}") != 1:
                raise table.error(key, f"is {pattern!r}; expected one {{name}} in it")
    for split, value in split_names.items():
        check_inside(names, split, value)
    return Files(
        folder=patterns["folder"][0],
        images=patterns["images"],
        labels=patterns["labels"][0],
        instances=patterns["instances"][0],
        segments=patterns["segments"][0],
        list=patterns["list"][0],
        split_names=split_names,
    )


def check_inside(table: Table, key: str, pattern: str) -> None:
    """Refuses a path that could leave the root that the user gave.

    Args:
      table, key: where it stands, for the message.
      pattern: the path, relative to the root.

    Raises:
      UserError: it has "..", starts at the top, or cannot be a path.
    """
    outside = ".." in PurePosixPath(pattern.replace("\\", "/")).parts
    if outside or pattern.startswith(("/", "\\", "~")) or PureWindowsPath(pattern).drive:
        raise table.error(key, f"is {pattern!r}; expected a path below the root, without ..")
    if CONTROL.search(pattern):
        raise table.error(key, f"is {pattern!r}; expected a path without control codes")


def _check_splits(top: Table, files: Files, splits: dict[str, int]) -> None:
    for split in files.split_names:
        if split not in splits:
            raise top.error(f"files.split_names.{split}", "is not one of the card's [splits]")
    where = [files.folder, files.segments, files.list, *files.images]
    for one, other in combinations(splits, 2):
        same = files.split_names.get(one, one) == files.split_names.get(other, other)
        if files.images and (same or not any("{split}" in pattern for pattern in where)):
            problem = f"lead to the same images for the splits {one!r} and {other!r}"
            raise top.error("files", f"{problem}; use {{split}} in images or list")
