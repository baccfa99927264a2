"""Reads a file of class names, as people keep them beside their labels."""

import re
from pathlib import Path

from lmseg_jax.errors import UserError

NOTHING = ("void", "unlabeled", "unlabelled", "unknown", "ignore", "ignored")  # names of void


def id_names(path: str, present: list[int]) -> dict[int, str]:
    """Name of each id, from a file of class names.

    Args:
      path: each line is "id name"; or each line is a name: of ids 0, 1, ... where there are enough
        lines for the largest id, else of the present ids in their order.
      present: ids that labels hold, sorted.

    Raises:
      UserError: a line cannot be read, or the number of names fits no ids.
    """
    lines = _lines(path)
    pairs = {number: re.fullmatch(r"(\d+)[\s,;:=]+(\S.*)", line) for number, line in lines}
    if pairs[lines[0][0]]:
        for number, line in lines:
            if not pairs[number]:
                raise UserError(f'{path}: line {number}: {line!r}; expected "id name", as before')
        return _distinct(path, [(n, int(pair[1]), pair[2]) for n, pair in pairs.items()])
    if len(lines) > max(present, default=0):
        ids = range(len(lines))
    elif len(lines) == len(present):
        ids = present
    else:
        raise UserError(
            f"{path} has {len(lines)} names, but labels hold the {len(present)} ids "
            f'{", ".join(map(str, present))}; write "id name" in each line'
        )
    return _distinct(path, [(n, id, line) for id, (n, line) in zip(ids, lines, strict=True)])


def color_names(path: str) -> dict[int, str]:
    """Name of each colour, red << 16 | green << 8 | blue, from lines "red green blue name".

    Raises:
      UserError: a line cannot be read.
    """
    rows = []
    for number, line in _lines(path):
        match = re.fullmatch(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;:=]+(\S.*)", line)
        parts = [int(match[i]) for i in (1, 2, 3)] if match else [256]
        if max(parts) > 255:
            raise UserError(
                f"{path}: line {number}: {line!r}; the labels are colours, so expected "
                '"red green blue name" in each line'
            )
        rows.append((number, parts[0] << 16 | parts[1] << 8 | parts[2], match[4]))
    return _distinct(path, rows)


def _distinct(path: str, rows: list[tuple[int, int, str]]) -> dict[int, str]:
    """Value -> name of (line, value, name); neither may come twice."""
    seen = {}
    for number, value, word in rows:
        for key in (value, word.lower()):
            if key in seen and key not in NOTHING:
                raise UserError(f"{path}: line {number}: {key!r} is in line {seen[key]} as well")
            seen[key] = number
    return {value: word for _, value, word in rows}


def _lines(path: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names {path}: cannot read this file: {error}") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(f"--names {path}: is empty; expected one name a line")
    return found
