"""Captioned crops of world scenes: what the tiny CLIP of the worlds is pre-trained on."""

from dataclasses import dataclass

import cv2
import numpy as np

from lmseg_jax.datasets.world_scene import STUFF, STYLES, Scene, SceneObject, compose

COARSE = {
    "disc": "round thing",
    "ring": "round thing",
    "square": "angular thing",
    "triangle": "angular thing",
}

_SEED = 9  # beside the numbers of the styles, so that no crop shows a scene of a split
_STUFF_SHARE = 0.15  # of the crops show no object
_SMALLEST_WINDOW = 32  # pixels of the scene, so objects are enlarged to at most twice their size
_CLEAR = 80  # visible pixels that an object needs to be described


@dataclass(frozen=True)
class Crop:
    """A captioned picture of one object, or of one kind of stuff.

    Attributes:
      image: uint8 [size, size, 3], RGB.
      caption: says something true about it, not all of it.
      shape, color, texture: of the object in the middle; None where there is none.
      stuff: the kind that covers most of the ground in view; None where no kind has 60 % of it.
    """

    image: np.ndarray
    caption: str
    shape: str | None
    color: str | None
    texture: str | None
    stuff: str | None


def caption_crop(index: int, *, size: int = 64) -> Crop:
    """Crop number `index` >= 0: the same picture and words every time.

    Half of the crops are windows of `size` pixels of a scene, as a segmenter meets it; in the other
    half the object fills up to 95 % of the window, which is then resized.
    """
    rng = np.random.default_rng((_SEED, index))
    name = tuple(STYLES)[rng.integers(len(STYLES))]
    if rng.random() < _STUFF_SHARE:
        scene = compose(rng, STYLES[name], areas=1, count=0)
        box = _place(rng, scene, rng.uniform(0.2, 0.8, 2) * scene.ids.shape, size)
        stuff = STUFF[scene.stuff[0, 0]]
        caption = _stuff_caption(rng, stuff, water_is_ground=name in ("patterns", "shapes"))
        return Crop(_cut(scene.image, box, size), caption, None, None, None, stuff)

    scene = compose(rng, STYLES[name])
    chosen = _choose(rng, scene)
    rows, columns = np.nonzero(scene.ids == chosen.id)
    middle = np.array([rows.min() + rows.max() + 1, columns.min() + columns.max() + 1]) / 2
    side = size
    if rng.random() < 0.5:
        extent = 1 + max(np.ptp(rows), np.ptp(columns))
        side = max(_SMALLEST_WINDOW, round(extent / rng.uniform(0.45, 0.95)))
    box = _place(rng, scene, middle + rng.uniform(-0.1, 0.1, 2) * side, side)
    stuff = _main_stuff(scene, box)
    caption = _object_caption(rng, chosen, stuff)
    image = _cut(scene.image, box, size)
    return Crop(image, caption, chosen.shape, chosen.color, chosen.texture, stuff)


def _choose(rng: np.random.Generator, scene: Scene) -> SceneObject:
    """A random object that is not small and that others cover by at most 40 %."""
    clear = [item for item in scene.objects if item.area >= max(_CLEAR, 0.6 * item.painted)]
    if not clear:
        return max(scene.objects, key=lambda item: item.area)
    return clear[rng.integers(len(clear))]


def _place(
    rng: np.random.Generator, scene: Scene, middle: np.ndarray, side: int
) -> tuple[slice, slice]:
    """The square window around a point, moved into the image."""
    height, width = scene.ids.shape
    side = min(side, height, width)
    top, left = np.clip(np.rint(middle - side / 2), 0, (height - side, width - side)).astype(int)
    return slice(top, top + side), slice(left, left + side)


def _cut(image: np.ndarray, box: tuple[slice, slice], size: int) -> np.ndarray:
    window = np.ascontiguousarray(image[box])
    if len(window) == size:
        return window
    how = cv2.INTER_AREA if len(window) > size else cv2.INTER_LINEAR
    return cv2.resize(window, (size, size), interpolation=how)


def _main_stuff(scene: Scene, box: tuple[slice, slice]) -> str | None:
    ground = scene.stuff[box][scene.ids[box] < 0]
    counts = np.bincount(ground, minlength=len(STUFF))
    return STUFF[counts.argmax()] if len(ground) and counts.max() >= 0.6 * len(ground) else None


def _stuff_caption(rng: np.random.Generator, stuff: str, *, water_is_ground: bool) -> str:
    ground = rng.random() < 0.4 and (stuff != "water" or water_is_ground)
    return _opening(rng, "ground" if ground else stuff, articles=("", "", "the"))


def _object_caption(rng: np.random.Generator, item: SceneObject, stuff: str | None) -> str:
    """A class name of some world (one time in three), or a phrase of some of the attributes."""
    coarse = COARSE.get(item.shape)
    names = [f"{item.texture} object", f"{item.color} object", item.shape]
    names += [coarse] if coarse else []
    if rng.random() < 1 / 3:
        return _opening(rng, names[rng.integers(len(names))], articles=("", "", "a"))
    nouns = [item.shape, item.shape, "object", coarse or "object"]
    noun = nouns[rng.integers(len(nouns))]
    words = [word for word in (item.texture, item.color) if rng.random() < 0.6]
    if noun == "object" and not words:
        words = [item.color]
    phrase = _opening(rng, " ".join([*words, noun]), articles=("", "a", "a"))
    if stuff and rng.random() < 0.4:
        place = "ground" if stuff != "water" and rng.random() < 0.25 else stuff
        phrase += f" on {place}"
    return phrase


def _opening(rng: np.random.Generator, phrase: str, *, articles: tuple[str, ...]) -> str:
    """Adds an article, and "a photo of" one time in five."""
    article = articles[rng.integers(len(articles))]
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    phrase = f"{article} {phrase}".strip()
    return f"a photo of {phrase}" if rng.random() < 0.2 else phrase
