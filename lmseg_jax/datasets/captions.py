"""Captioned crops of world scenes: what the tiny CLIP of the worlds is pre-trained on."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from lmseg_jax.datasets.world_scene import (
    SMALLEST,
    STUFF,
    STYLES,
    Scene,
    SceneObject,
    Style,
    compose,
)

COARSE = {
    "disc": "round thing",
    "ring": "round thing",
    "square": "angular thing",
    "triangle": "angular thing",
}

_SEED = 9  # beside the numbers of the styles, so that no crop shows a scene of a split
_STUFF_SHARE = 0.15  # of the crops show no object
_ALONE_SHARE = 0.75  # of the others show one object alone, the rest one among others
_CANVAS = (88, 88)  # pixels, of the scene of a lone object
_FAR_SHARE = 0.35  # of the lone objects are seen at their own size
_SMALLEST_WINDOW = 24  # pixels of the scene that are enlarged to a crop
_TRIES = 8  # scenes that are drawn until an object is wholly inside


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

    Three quarters of the objects are alone on their ground: which object a caption speaks of must
    be plain, or even colours are learned slowly. Most windows are close: the object fills 60 to
    95 % of them. One in three of the lone objects is seen at its own size, as a segmenter meets it.
    """
    rng = np.random.default_rng((_SEED, index))
    name = tuple(STYLES)[rng.integers(len(STYLES))]
    if rng.random() < _STUFF_SHARE:
        scene = compose(rng, STYLES[name], areas=1, count=0)
        box = _place(rng, scene, rng.uniform(0.2, 0.8, 2) * scene.ids.shape, size)
        stuff = STUFF[scene.stuff[0, 0]]
        caption = _stuff_caption(rng, stuff, water_is_ground=name in ("patterns", "shapes"))
        return Crop(_cut(scene.image, box, size), caption, None, None, None, stuff)

    alone = rng.random() < _ALONE_SHARE
    scene, chosen = _scene_with_object(rng, STYLES[name], alone=alone)
    rows, columns = np.nonzero(scene.ids == chosen.id)
    middle = np.array([rows.min() + rows.max() + 1, columns.min() + columns.max() + 1]) / 2
    side = size
    if not alone or rng.random() >= _FAR_SHARE:
        extent = 1 + max(np.ptp(rows), np.ptp(columns))
        side = max(_SMALLEST_WINDOW, round(extent / rng.uniform(0.6, 0.95)))
    box = _place(rng, scene, middle + rng.uniform(-0.05, 0.05, 2) * side, side)
    stuff = _main_stuff(scene, box)
    caption = _object_caption(rng, chosen, stuff)
    image = _cut(scene.image, box, size)
    return Crop(image, caption, chosen.shape, chosen.color, chosen.texture, stuff)


def _scene_with_object(
    rng: np.random.Generator, style: Style, *, alone: bool
) -> tuple[Scene, SceneObject]:
    """A scene and an object in it that is wholly inside and hardly covered, if a few tries do."""
    for _ in range(_TRIES):
        if alone:
            scene = compose(rng, replace(style, size=_CANVAS), count=1)
        else:
            scene = compose(rng, style)
        whole = [item for item in scene.objects if _is_whole(scene, item)]
        if whole:
            return scene, whole[rng.integers(len(whole))]
    return scene, max(scene.objects, key=lambda item: item.area)


def _is_whole(scene: Scene, item: SceneObject) -> bool:
    """Whether an object does not touch the frame and others cover less than a quarter of it."""
    here = scene.ids == item.id
    frame = here[0].any() or here[-1].any() or here[:, 0].any() or here[:, -1].any()
    return item.area >= max(SMALLEST, 0.75 * item.painted) and not frame


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
