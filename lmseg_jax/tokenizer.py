"""Class names to CLIP token ids, without any download.

The tokenizer is transformers' own CLIPTokenizer over the merges shipped in `assets/merges.txt.gz`.
Ids: 256 bytes, the same 256 with an end-of-word mark, 48,894 merges, SOT 49406, EOT 49407.
"""

import functools
import gzip
import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import plain

START, END = 49406, 49407
BACKGROUND = "background"  # stands for "no object"; the last name of every dataset
LENGTH = 77  # positions of CLIP's text tower
PROMPT = 8  # learnable vectors between SOT and name, LMSeg Sec. 3.2
TEMPLATE = "{name}"  # what stands behind the prompt


@dataclass(frozen=True)
class Vocabulary:
    """The names of several datasets, each name once.

    Attributes:
      names: the N different names, in order of first use, "background" among them.
      tokens: i32 [N, S], see `tokenize`.
      index: i32 [M, K], row of `names` of each class of each dataset; 0 where not valid.
      valid: bool [M, K], False beyond a dataset's own classes; its last valid one is "background".
    """

    names: tuple[str, ...]
    tokens: np.ndarray
    index: np.ndarray
    valid: np.ndarray


def longest_name(prompt: int = PROMPT) -> int:
    """Tokens of a name that fit between a prompt of this length and EOT."""
    return LENGTH - 1 - prompt - 1


def tokenize(names: Sequence[str], *, prompt: int = PROMPT, template: str = TEMPLATE) -> np.ndarray:
    """Tokens of each name and EOT, to stand behind a prompt.

    Args:
      names: class names; case and repeated spaces do not matter, underscores are spaces.
      prompt: vectors that stand before each name.
      template: words around each name, which replaces "{name}".

    Returns:
      i32 [N, S], name tokens, EOT, then EOT as padding; no SOT. S = 1 + tokens of the longest row.

    Raises:
      UserError: for an empty name, or one of more tokens than fit behind the prompt.
    """
    longest = longest_name(prompt)
    rows = []
    for name in names:
        if not _ids(name):
            raise UserError(f"class name {name!r} has no letters, digits or signs; give it a name")
        row = _ids(template.replace("{name}", name))
        if len(row) > longest:
            where = "" if template == TEMPLATE else f" in the template {template[:40]!r}"
            raise UserError(
                f"class name {name[:40]!r}...{where} has {len(row)} tokens; at most {longest} fit "
                "behind the prompt, use a shorter name"
            )
        rows.append([*row, END])
    return _padded(rows, length=max(map(len, rows), default=1))


def tokenize_full(texts: Sequence[str], *, length: int = LENGTH) -> np.ndarray:
    """SOT, tokens, EOT of each text, padded with EOT. i32 [N, length].

    Raises:
      UserError: for a text that does not fit.
    """
    rows = [[START, *_ids(text), END] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > length:
            raise UserError(f"text {text[:40]!r}... has {len(row)} tokens; at most {length} fit")
    return _padded(rows, length=length)


def vocabulary(
    taxonomies: Sequence[Sequence[str]], *, prompt: int = PROMPT, template: str = TEMPLATE
) -> Vocabulary:
    """Names of all datasets without repetition, each dataset ending in "background".

    Names that read the same (case, spaces and underscores aside) are one name. `prompt` vectors
    will stand before each; `template` has the words around each, "background" too.

    Raises:
      UserError: a class is called "background", or as `tokenize`.
    """
    names, index, valid = number_names(taxonomies)
    return Vocabulary(names, tokenize(names, prompt=prompt, template=template), index, valid)


def number_names(
    taxonomies: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """`names`, `index` and `valid` of a `Vocabulary`; no name becomes tokens.

    Raises:
      UserError: a class is called "background".
    """
    if BACKGROUND in (plain(name) for names in taxonomies for name in names):
        raise UserError(
            f'a class is called "{BACKGROUND}", which stands for no object; call it by what is '
            'there ("other", "ground"), or list its id in void'
        )
    rows = [[plain(name) for name in names] + [BACKGROUND] for names in taxonomies]
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    position = {name: i for i, name in enumerate(names)}
    shape = (len(rows), max(map(len, rows), default=0))
    index, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for m, row in enumerate(rows):
        index[m, : len(row)] = [position[name] for name in row]
        valid[m, : len(row)] = True
    return names, index, valid


def _ids(text: str) -> list[int]:
    return _tokenizer()(plain(text), add_special_tokens=False)["input_ids"]


def _padded(rows: Sequence[Sequence[int]], *, length: int) -> np.ndarray:
    tokens = np.full((len(rows), length), END, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens


@functools.cache
def _tokenizer():
    """Built once a process: 49k merges take a moment."""
    # The library says at import that it has no PyTorch; only its tokenizers are used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer  # seconds to import; most commands need no text

    packed = importlib.resources.files("lmseg_jax").joinpath("assets/merges.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(packed).decode().splitlines()]
    # CLIP's order of the bytes: those that print, then the rest under characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + i) for i in range(256 - len(printable))]
    words = letters + [letter + "</w>" for letter in letters]
    words += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)
