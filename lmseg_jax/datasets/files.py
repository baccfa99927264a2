"""Finds the image and label files of a split. Reads folders and the list file, opens no image."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lmseg_jax.datasets.card import CONTROL, DatasetCard
from lmseg_jax.errors import UserError

LARGEST_LIST = 2**26  # bytes; a million names fit


class MissingRoot(UserError):
    """The folder that holds every dataset's tree is not set or not there."""


def check_root(card: DatasetCard, root: str | Path) -> None:
    """Refuses a root that is no folder.

    Raises:
      MissingRoot: and where the dataset comes from.
    """
    if not os.path.isdir(root):
        found = f"is {str(root)!r}, which is no folder" if str(root) else "is not set"
        raise MissingRoot(
            f"config.data.root (--root) {found}; {_where(card)}; its tree is in data/README.md"
        )


def entries(
    card: DatasetCard, split: str, *, root: str | Path, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Lists the images of a split and their label files, as the card's [files] say.

    Args:
      card: its `files` have `images` and `labels`, and may have `instances`.
      split: a key of the card's `splits`.
      root: folder that holds every dataset's tree.
      names: the images of the split where `files.segments` has told them; None = the names in
        `files.list`, or every image that is found.

    Returns:
      (name, image, label) or (name, image, label, instances) of every sample, files relative to
      the root; in the order of the names, or sorted by name.

    Raises:
      UserError: the root or a folder is missing, the split is empty, an image has no label, or
        a list names what is not there.
    """
    check_root(card, root)
    where = _where(card)
    patterns = [filled(card, split, pattern) for pattern in card.files.images]
    label_patterns = [
        filled(card, split, pattern)
        for pattern in (card.files.labels, card.files.instances)
        if pattern
    ]
    labels = [_matches(pattern, root=root, where=where) for pattern in label_patterns]
    known = {path for found in labels for path in found.values()}
    images = {}
    for pattern in patterns:
        for name, path in _matches(pattern, root=root, where=where).items():
            if path in known:  # image and label lie in one folder
                continue
            if name in images:
                raise UserError(
                    f"{Path(root) / path} and {Path(root) / images[name]} are both the image "
                    f"{name!r} of {card.name}; remove one"
                )
            images[name] = path
    if names is not None:
        absent = [name for name in names if name not in images]
        if absent:
            raise UserError(
                f"{Path(root, filled(card, split, card.files.segments))}: lists {absent[0]!r}, but "
                f"no file under {root} matches {' or '.join(patterns)} ({len(absent)} of "
                f"{len(names)} images are not there); complete the download, or correct [files] in "
                f"{card.path}"
            )
    elif card.files.list:
        names = _listed(card, split, root=root, images=images)
    else:
        names = sorted(images)
    if not names:
        raise UserError(
            f"{card.name}/{split} is empty: no file under {root} matches {' or '.join(patterns)}; "
            f"the card expects {card.splits[split]} images; {where}"
        )
    for pattern, found in zip(label_patterns, labels, strict=True):
        bare = [name for name in names if name not in found]
        if bare:
            raise UserError(
                f"{Path(root) / images[bare[0]]} has no label "
                f"{Path(root) / pattern.replace('{name}', bare[0])} "
                f"({len(bare)} of {len(names)} images have none)"
            )
    return tuple((name, images[name], *(found[name] for found in labels)) for name in names)


def filled(card: DatasetCard, split: str, pattern: str) -> str:
    """A pattern of the card's [files], relative to the root, with the split in its place."""
    path = str(PurePosixPath(card.files.folder, pattern))
    return path.replace("{split}", card.files.split_names.get(split, split))


def _where(card: DatasetCard) -> str:
    return f"{card.name} comes from {card.about.get('source', 'where its card says')}"


def _matches(pattern: str, *, root: str | Path, where: str) -> dict[str, str]:
    """Name -> file, relative to the root, of what matches; a name may contain folders."""
    before, after = pattern.split("{name}")
    folder, _, start = before.rpartition("/")
    top = Path(root, folder)
    if not os.path.isdir(top):
        raise UserError(f"{top}: no such folder; {where}; its tree is in data/README.md")
    found = {}
    for base, files in _walk(top):
        for file in files:
            path = Path(base, file).relative_to(top).as_posix()
            long_enough = len(path) > len(start) + len(after)
            if long_enough and path.startswith(start) and path.endswith(after) and file[0] != ".":
                if CONTROL.search(path):
                    raise UserError(
                        f"{top}: the file name {path!r} has bytes that cannot be printed; rename it"
                    )
                found[path[len(start) : len(path) - len(after)]] = str(PurePosixPath(folder, path))
    return found


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files), through links to folders, but never around a loop of them."""
    above = {str(top): (os.path.realpath(top),)}  # a folder and those it lies in, without links
    for base, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        chain = above.pop(base)
        inside = {}
        for name in folders:
            path = os.path.join(base, name)
            link = os.path.islink(path)
            inside[name] = os.path.realpath(path) if link else os.path.join(chain[-1], name)
        folders[:] = [name for name in folders if name[0] != "." and inside[name] not in chain]
        above |= {os.path.join(base, name): (*chain, inside[name]) for name in folders}
        yield base, files


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot read this folder: {error.strerror}") from error


def _listed(
    card: DatasetCard, split: str, *, root: str | Path, images: dict[str, str]
) -> list[str]:
    """The names in the card's list file; a line may also be the image's path in the dataset."""
    path = Path(root, filled(card, split, card.files.list))
    try:
        if path.stat().st_size > LARGEST_LIST:
            problem = f"has {path.stat().st_size} bytes, a list of images {LARGEST_LIST} at most"
            raise UserError(f"{path}: {problem}; name the list itself")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        problem = error.strerror or error
        raise UserError(f"{path}: cannot read this list of images: {problem}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a list of images has to be text in UTF-8: {error}") from error
    by_path = {image: name for name, image in images.items()}
    names = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = by_path.get(str(PurePosixPath(card.files.folder, line.strip())), line.strip())
        if name not in images:
            raise UserError(
                f"{path}: line {number}: {line.strip()[:100]!r} is no image of {card.name}"
            )
        if name in names:
            raise UserError(f"{path}: line {number}: {name!r} is also in line {names[name]}")
        names[name] = number
    if not names:
        raise UserError(f"{path}: names no image; write one name a line, or leave out files.list")
    return list(names)
