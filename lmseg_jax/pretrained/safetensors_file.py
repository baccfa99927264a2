"""Reads a safetensors file, which anybody may have made: its header is checked before its data."""

import json
from pathlib import Path

import numpy as np
import safetensors

from lmseg_jax.errors import UserError

LARGEST_HEADER = 2**24  # bytes; thousands of names need about one megabyte
FLOATS = ("F16", "F32")
INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # counters, row numbers


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and the file's metadata.

    Args:
      path: of an existing file.

    Raises:
      UserError: the file is cut off, its header is too long or no JSON, or it holds numbers of a
        kind that is not read, such as bfloat16.
    """
    header, data = _header(path)
    _check(path, header, data=data)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _header(path: Path) -> tuple[dict, int]:
    """The table at the head of the file (8 bytes of length, then JSON), and the bytes after it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(
                    f"{path}: not a readable safetensors file: its header should have {length}"
                    f" bytes, the file has {size}; fetch it again"
                )
            if length > LARGEST_HEADER:
                raise UserError(
                    f"{path}: not a readable safetensors file: its header has {length} bytes,"
                    f" at most {LARGEST_HEADER} are read"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file: its header is no JSON ({error})"
        ) from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a readable safetensors file: its header lists no tensors")
    return header, size - 8 - length


def _check(path: Path, header: dict, *, data: int) -> None:
    """Refuses tensors that lie beyond the end of the file, and kinds of number not read here."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        kinds = {name: entry["dtype"] for name, entry in entries.items()}
        ends = {name: entry["data_offsets"][1] for name, entry in entries.items()}
        end = max(ends.values(), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file: a line of its header is incomplete"
        ) from error
    if not isinstance(end, int) or end > data:
        raise UserError(
            f"{path}: cut off: its tensors have {end} bytes, {data} are there; fetch it again"
        )
    unread = [name for name, kind in kinds.items() if kind not in FLOATS + INTEGERS]
    if unread:
        found = ", ".join(sorted({str(kinds[name]) for name in unread}))
        raise UserError(
            f"{path}: {len(unread)} tensors are {found}, such as {unread[0]}; F16 and F32 are read,"
            " save it again as one of them (docs/weights.md)"
        )
