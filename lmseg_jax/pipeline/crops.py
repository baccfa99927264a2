"""A pool of captioned crops of world scenes, rendered once and kept beside the run."""

import concurrent.futures
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from lmseg_jax.datasets.captions import caption_crop
from lmseg_jax.errors import UserError

CHUNK = 250  # crops that a process renders at a time
SHAPES = ("disc", "ring", "square", "triangle", "star", "cross")
ROUND, ANGULAR = ("disc", "ring"), ("square", "triangle")
WORDS = {
    "shape": SHAPES,
    "color": ("red", "green", "blue", "yellow", "purple"),
    "texture": ("striped", "checkered", "dotted", "plain"),
    "coarse": ("round", "angular"),
    "stuff": ("grass", "water", "sand", "rock"),
}
PHRASES = {  # how a word of each kind is said, after an opening
    "shape": "{}",
    "color": "{} object",
    "texture": "{} object",
    "coarse": "{} thing",
    "stuff": "{}",
}
OPENINGS = ("", "a", "a photo of a")
PHOTO = "a photo of"


@dataclass(frozen=True)
class Crops:
    """N captioned crops.

    Attributes:
      images: uint8 [N, size, size, 3], RGB.
      captions, shapes, colors, textures, stuff: str [N], "" where a crop has none.
    """

    images: np.ndarray
    captions: np.ndarray
    shapes: np.ndarray
    colors: np.ndarray
    textures: np.ndarray
    stuff: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def render_crops(first: int, count: int, *, size: int, processes: int = 0) -> Crops:
    """Crops number `first` to `first + count - 1`, the same for any number of processes.

    Args:
      first: index of the first crop.
      count: how many.
      size: of their sides in pixels.
      processes: that render; 0 = this one.
    """
    ends = [*range(first, first + count, CHUNK), first + count]
    chunks = [(a, b, size) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    if processes:
        context = multiprocessing.get_context("spawn")  # a fork of a process with JAX may hang
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            parts = list(pool.map(_render_chunk, chunks))
    else:
        parts = [_render_chunk(chunk) for chunk in chunks]
    return Crops(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def load_or_render(folder: Path, first: int, count: int, *, size: int, processes: int = 0) -> Crops:
    """`render_crops`, kept in a folder; rendered anew if the renderer draws differently by now."""
    name = f"crops-{first}-{count}-{size}"
    images_path, words_path = folder / f"{name}.npy", folder / f"{name}.json"
    if images_path.exists() and words_path.exists():
        images = np.load(images_path, mmap_mode="r")
        last = caption_crop(first + count - 1, size=size)
        words = json.loads(words_path.read_text(encoding="utf-8"))
        if np.array_equal(images[-1], last.image) and words["captions"][-1] == last.caption:
            return Crops(images, **{key: np.array(value) for key, value in words.items()})
    crops = render_crops(first, count, size=size, processes=processes)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(images_path, crops.images)
    words = {field.name: getattr(crops, field.name).tolist() for field in fields(crops)[1:]}
    words_path.write_text(json.dumps(words), encoding="utf-8")
    return crops


def without_names(crops: Crops, names: Sequence[str]) -> Crops:
    """The same crops with captions that say none of some names, the colour is left out instead.

    "a striped red disc on sand" becomes "a striped disc on sand" where "red disc" is a name.
    Captions that say the colour or the shape alone stay as they are.

    Args:
      crops: captioned.
      names: each a colour and a shape, as captions say it: "red disc".

    Raises:
      UserError: a name is something else.
    """
    for name in names:
        color, _, shape = str(name).partition(" ")
        if color not in WORDS["color"] or shape not in WORDS["shape"]:
            raise UserError(
                f"config.pretrain.unnamed: {name!r} is not a colour and a shape of the worlds,"
                " such as 'red disc'; set --config.pretrain.unnamed=..."
            )
    captions = crops.captions
    for name in names:
        captions = np.char.replace(captions, name, name.split()[1])
    return replace(crops, captions=captions)


def statements(captions: np.ndarray) -> np.ndarray:
    """What captions say: i32 [N, 7], -1 where a caption is silent.

    Columns: the entries of `WORDS`, as the number of the word; whether there is an object (always
    said); whether the ground is dry (1 where a caption calls it "ground").
    """
    texts, where = np.unique(captions, return_inverse=True)
    rows = []
    for text in texts:
        words = text.split()
        row = [
            next((i for i, word in enumerate(known) if word in words), -1)
            for known in WORDS.values()
        ]
        thing = any(value >= 0 for value in row[:4])
        rows.append([*row, int(thing), 1 if "ground" in words else -1])
    return np.array(rows, np.int32)[where]


def facts(crops: Crops) -> np.ndarray:
    """What is true of crops: i32 [N, 7], columns as in `statements`, -2 where nothing is."""
    coarse = np.where(np.isin(crops.shapes, ROUND), "round", "")
    coarse = np.where(np.isin(crops.shapes, ANGULAR), "angular", coarse)
    columns = []
    truths = (crops.shapes, crops.colors, crops.textures, coarse, crops.stuff)
    for values, known in zip(truths, WORDS.values(), strict=True):
        number = {word: i for i, word in enumerate(known)}
        columns.append([number.get(value, -2) for value in values.tolist()])
    columns += [crops.shapes != "", crops.stuff != "water"]
    return np.array(columns, np.int32).T


def phrases(opening: str) -> list[str]:
    """All words of all kinds as short texts: "a disc", ..., "a red object", ..., "rock".

    Args:
      opening: one of `OPENINGS`; stuff takes no article.
    """
    texts = []
    for kind, words in WORDS.items():
        for word in words:
            start = opening if kind != "stuff" else PHOTO * opening.startswith(PHOTO)
            phrase = PHRASES[kind].format(word)
            if start.endswith("a") and phrase[0] in "aeiou":
                start += "n"
            texts.append(f"{start} {phrase}".strip())
    return texts


def truths(crops: Crops) -> np.ndarray:
    """Word of each kind that is true of each crop, i32 [N, 5], -1 where it is not asked.

    Columns: `WORDS`. Stuff is asked where there is no object.
    """
    table = facts(crops)
    table[table[:, 5] == 1, 4] = -1
    return np.maximum(table[:, : len(WORDS)], -1)


def zero_shot(images: np.ndarray, texts: np.ndarray, crops: Crops) -> dict[str, float]:
    """Percent of crops whose most similar text among those of a kind is the true one.

    Args:
      images: f32 [N, C] of unit length.
      texts: f32 [T, C] of unit length, of `phrases`.
      crops: their truth; a crop without a word of a kind does not count there.
    """
    return accuracy(images @ texts.T, crops)


def accuracy(scores: np.ndarray, crops: Crops) -> dict[str, float]:
    """Percent of crops whose word of a kind has the largest score of that kind, by kind.

    Args:
      scores: f32 [N, T], of each crop and word; T words, in the order of `phrases`.
      crops: their truth; a crop without a word of a kind does not count there.
    """
    percent, first = {}, 0
    for (kind, words), true in zip(WORDS.items(), truths(crops).T, strict=True):
        asked = true >= 0
        guess = scores[asked, first : first + len(words)].argmax(axis=1)
        percent[kind] = 100 * float(np.mean(guess == true[asked]))
        first += len(words)
    return percent


def _render_chunk(chunk: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    first, end, size = chunk
    crops = [caption_crop(index, size=size) for index in range(first, end)]
    keys = ("caption", "shape", "color", "texture", "stuff")
    words = [np.array([getattr(crop, key) or "" for crop in crops]) for key in keys]
    return (np.stack([crop.image for crop in crops]), *words)
