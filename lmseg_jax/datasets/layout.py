"""Finds out how somebody's images and labels lie: splits, suffixes, which label is whose."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lmseg_jax.errors import UserError

NAME, SPLIT = "{name}", "{split}"
SPLIT_FOLDERS = {  # names that the folder of a split may have, the likelier ones first
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test", "testing"),
}
KINDS = {"--images": ("JPEG or PNG", (".jpg", ".jpeg", ".png")), "--labels": ("PNG", (".png",))}
SEPARATORS = "_-. "  # between the name of a file and what its end says
ONE_IN = 10  # of images without a split, one in ten becomes val
PROBED = 20  # images, and likely endings, that are looked at before all images are

Tree = tuple[dict[str, str], dict[str, str]]  # image files, label files: inner path -> path


@dataclass(frozen=True)
class Layout:
    """Where the files of a dataset lie, in the words of a card's [files].

    Attributes:
      root: the folder that holds the dataset's own folder.
      folder: the dataset's own folder.
      images: patterns of the images, below `folder`.
      labels: pattern of the labels, below `folder`.
      split_names: split -> its folder, where that has another name.
      listed: True if the splits are lists of names, `{split}.txt` in the dataset's folder.
      lists: list file -> names, of the lists that have to be written first.
      splits: split -> number of its images.
      files: all label files.
      bare: number of images without a label, which new lists leave out.
    """

    root: Path
    folder: str
    images: tuple[str, ...]
    labels: str
    split_names: dict[str, str]
    listed: bool
    lists: dict[Path, tuple[str, ...]]
    splits: dict[str, int]
    files: tuple[Path, ...]
    bare: int


@dataclass(frozen=True)
class _Side:
    """The images or the labels: their folder, and what surrounds the name of a file in it.

    `folder` may have {split} in it; `end` is None until it is known.
    """

    flag: str
    folder: str
    start: str = ""
    end: str | None = None

    @property
    def fixed(self) -> str:
        """The part of the folder that is the same for every split."""
        if SPLIT not in self.folder:
            return self.folder
        return os.path.dirname(self.folder.partition(SPLIT)[0]) or "."

    def files(self, split: str) -> dict[str, str]:
        """What follows `start` in the path below the folder -> the whole path."""
        top, found = self.folder.replace(SPLIT, split), {}
        for base, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name[0] != "."]
            for path in (PurePosixPath(base, file) for file in files if file[0] != "."):
                inner = path.relative_to(top).as_posix()
                fits = inner.startswith(self.start) and inner.endswith(self.end or "")
                if fits and path.suffix.lower() in KINDS[self.flag][1]:
                    found[inner[len(self.start) :]] = str(path)
        return dict(sorted(found.items()))

    def pattern(self, end: str, *, home: str) -> str:
        """The pattern of these files below the dataset's folder."""
        folder = os.path.relpath(os.path.abspath(self.folder), home).replace(os.sep, "/")
        return str(PurePosixPath(folder, f"{self.start}{NAME}{end}"))


def find_layout(images: str, labels: str) -> Layout:
    """Looks at two folders and finds out how they belong together.

    Args:
      images: a folder, or a pattern such as `roads/{split}/{name}_left.png`. Without `{split}`,
        folders named train and val (or the like) right below it are the splits; where there are
        none all images are one set, and one in ten becomes val.
      labels: likewise.

    Raises:
      UserError: a folder is missing, or it is not clear which label belongs to which image.
    """
    image_side, label_side = _side(images, "--images"), _side(labels, "--labels")
    split_names = _splits(image_side.folder, label_side.folder)
    if split_names:
        image_side, label_side = (
            side if SPLIT in side.folder else replace(side, folder=f"{side.folder}/{SPLIT}")
            for side in (image_side, label_side)
        )
    home = os.path.commonpath([os.path.abspath(side.fixed) for side in (image_side, label_side)])
    trees = {
        split: (image_side.files(name), label_side.files(name))
        for split, name in (split_names or {"": ""}).items()
    }
    stem_end, label_end = _ends(list(trees.values()), image_side, label_side)
    pairs, bare, suffixes = {}, [], set()
    for split, tree in trees.items():
        pairs[split], alone, found = _pairs(tree, stem_end=stem_end, label_end=label_end)
        bare += alone
        suffixes |= found
    lists, splits = {}, {split: len(found) for split, found in pairs.items()}
    if split_names and bare:
        raise UserError(f"{bare[0]} has no label ({len(bare)} images have none); move them away")
    if not split_names:
        lists, splits = _lists(Path(home), sorted(pairs[""]))
    return Layout(
        root=Path(home).parent,
        folder=Path(home).name,
        images=tuple(image_side.pattern(stem_end + end, home=home) for end in sorted(suffixes)),
        labels=label_side.pattern(label_end, home=home),
        split_names={split: name for split, name in split_names.items() if split != name},
        listed=not split_names,
        lists=lists,
        splits=splits,
        files=tuple(Path(path) for found in pairs.values() for path in found.values()),
        bare=len(bare),
    )


def _side(text: str, flag: str) -> _Side:
    """Reads what was asked for: a folder, or a pattern whose last part has {name}."""
    folder, start, end = text.replace(os.sep, "/"), "", None
    if NAME in folder:
        folder, _, last = folder.rpartition("/")
        start, _, end = last.partition(NAME)
    side = _Side(flag, folder or ".", start, end)
    rest = side.folder.replace(SPLIT, "") + start + (end or "")
    if "{" in rest or "}" in rest:
        raise UserError(
            f"{flag} {text}: expected a folder, which may have {SPLIT} in it, or a folder and a "
            f"file name with one {NAME} in it"
        )
    if not os.path.isdir(side.fixed):
        raise UserError(f"{flag} {text}: {side.fixed} is no folder")
    return side


def _splits(*folders: str) -> dict[str, str]:
    """Split -> name of its folder on both sides; {} if the splits have no folders."""
    patterns = [folder if SPLIT in folder else f"{folder}/{SPLIT}" for folder in folders]
    found = {}
    for split, words in SPLIT_FOLDERS.items():
        for word in (*words, *map(str.capitalize, words)):
            there = all(os.path.isdir(pattern.replace(SPLIT, word)) for pattern in patterns)
            if there and split not in found:
                found[split] = word
    if len(found) == len(SPLIT_FOLDERS):
        return found
    for folder in folders:
        if SPLIT in folder:
            words = " and ".join("/".join(words) for words in SPLIT_FOLDERS.values())
            raise UserError(f"{folder}: no folders for both splits, called {words}")
    return {}


def _ends(trees: list[Tree], image_side: _Side, label_side: _Side) -> tuple[str, str]:
    """What follows the name in the stem of an image, and in the path of its label.

    The names of a few images are compared with those of labels. Of the endings found, those win
    that give the most images a label.
    """
    for i, side in enumerate((image_side, label_side)):
        if not any(tree[i] for tree in trees):
            kind = KINDS[side.flag][0]
            raise UserError(f"{side.flag} {side.folder}: no {kind} file; convert them to {kind}")
    image_files, label_files = next(tree for tree in trees if tree[0] and tree[1])
    guesses = Counter()
    for inner in list(image_files)[:PROBED]:
        stem = os.path.splitext(inner)[0]
        for label in label_files:
            for name in _common_names(inner, label, image_side.end, label_side.end):
                if os.path.basename(name) and stem.startswith(name) and label.startswith(name):
                    guesses[stem[len(name) :], label[len(name) :]] += 1
    score = {
        (stem_end, label_end): sum(
            len(_pairs(tree, stem_end=stem_end, label_end=label_end)[0]) for tree in trees
        )
        for (stem_end, label_end), _ in guesses.most_common(PROBED)
    }
    best = [ends for ends in score if score[ends] == max(score.values()) > 0]
    best = [ends for ends in best if ends[1] == f"{ends[0]}.png"] or best
    best = [ends for ends in best if ends[1][0] in SEPARATORS] or best
    if not best:
        raise UserError(
            f"{label_side.flag} {label_side.folder}: no label is named like an image, such as "
            f"{next(iter(image_files))} and {next(iter(label_files))}; give patterns, such as "
            f"--images {image_side.folder}/photo_{NAME}.jpg --labels "
            f"{label_side.folder}/mask_{NAME}.png"
        )
    if len(best) > 1:
        known = ", ".join(NAME + end for _, end in best)
        raise UserError(
            f"{label_side.flag} {label_side.folder}: there are several labels for an image "
            f"({known}); say which, such as --labels {label_side.folder}/{NAME}{best[0][1]}"
        )
    return best[0]


def _common_names(image: str, label: str, image_end: str | None, label_end: str | None) -> set[str]:
    """What the name of both files may be: known, or their common beginning."""
    if label_end is not None:
        return {label.removesuffix(label_end)}
    if image_end is not None:
        return {image.removesuffix(image_end)}
    common = os.path.commonprefix([os.path.splitext(image)[0], label])
    # 7_left and 7_label have 7_l in common, but 7 is meant: words may not be cut.
    whole = common[: max(common.rfind(sign) for sign in SEPARATORS) + 1]
    return {common.rstrip(SEPARATORS), whole.rstrip(SEPARATORS)}


def _pairs(
    tree: Tree, *, stem_end: str, label_end: str
) -> tuple[dict[str, str], list[str], set[str]]:
    """Name -> label file of each image that has one; images without; suffixes of those with."""
    known = {
        inner.removesuffix(label_end): path
        for inner, path in tree[1].items()
        if inner.endswith(label_end)
    }
    own = set(known.values())  # image and label may lie in one folder
    pairs, bare, suffixes = {}, [], set()
    for inner, path in tree[0].items():
        stem, suffix = os.path.splitext(inner)
        name = stem.removesuffix(stem_end)
        if path in own:
            continue
        if stem.endswith(stem_end) and name in known:
            pairs[name] = known[name]
            suffixes.add(suffix)
        else:
            bare.append(path)
    return pairs, bare, suffixes


def _lists(home: Path, names: list[str]) -> tuple[dict[Path, tuple[str, ...]], dict[str, int]]:
    """Lists to write, and the number of images of each split; lists that are there are used."""
    paths = {split: home / f"{split}.txt" for split in SPLIT_FOLDERS}
    there = {split: path for split, path in paths.items() if path.exists()}
    if there:
        if len(there) < len(paths):
            path = next(iter(there.values()))
            raise UserError(f"{path} is there, but no list of the other split; write or remove it")
        lines = {split: _lines(path) for split, path in paths.items()}
        return {}, {split: sum(bool(line.strip()) for line in lines[split]) for split in paths}
    if len(names) < 2:
        raise UserError(f"{home}: {len(names)} image with a label; expected at least 2")
    count = max(1, round(len(names) / ONE_IN))
    drawn = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])
    chosen = {
        "train": tuple(name for name in names if name not in drawn),
        "val": tuple(sorted(drawn)),
    }
    return (
        {paths[split]: found for split, found in chosen.items()},
        {split: len(found) for split, found in chosen.items()},
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this list of images: {error}") from error
