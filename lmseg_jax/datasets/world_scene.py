"""The renderer of the demo worlds: textured shapes on natural-looking ground, with exact truth.

NumPy and OpenCV only, no files. Everything up to the first rounding is float64 and everything after
it is integer, so that a scene is the same on every processor; a test pins eight scenes.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

SHAPES = ("disc", "ring", "square", "triangle", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple")
TEXTURES = ("striped", "checkered", "dotted", "plain")
STUFF = ("grass", "water", "sand", "rock")

SMALLEST = 24  # visible pixels below which an object is void in every taxonomy

_OBJECT_RGB = {
    "red": (186, 62, 56),
    "green": (76, 146, 70),
    "blue": (70, 108, 174),
    "yellow": (208, 178, 84),
    "purple": (138, 74, 154),
}
_STUFF_RGB = {
    "grass": (106, 134, 82),
    "water": (88, 120, 146),
    "sand": (178, 156, 118),
    "rock": (132, 122, 116),
}
_BLADE = np.ones((8, 1), np.uint8)
_PEBBLE = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0]], np.uint8)
_OBJECT_JITTER = 20.0  # s.d. of a channel of one object
_STUFF_JITTER = 25.0
_STUFF_DRIFT = 25.0  # within an image


@dataclass(frozen=True)
class Style:
    """How the images of one world look.

    Attributes:
      number: part of the seed.
      size: height and width in pixels.
      noise: s.d. of the sensor noise, of 255.
      brightness: factor on the light.
      radius: smallest and largest object radius in pixels.
    """

    number: int
    size: tuple[int, int]
    noise: float
    brightness: float
    radius: tuple[float, float]


STYLES = {
    "patterns": Style(1, (96, 96), 6.0, 1.0, (11.0, 25.0)),
    "colors": Style(2, (96, 128), 10.0, 1.05, (9.0, 22.0)),
    "coarse": Style(3, (128, 96), 13.0, 0.8, (10.0, 24.0)),
    "shapes": Style(4, (96, 96), 8.0, 0.95, (9.0, 20.0)),
}


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
      shape, color, texture: words of SHAPES, COLORS and TEXTURES.
      id: its value in `Scene.ids`.
      area: its visible pixels, possibly 0.
      painted: its pixels inside the image before others covered it.
    """

    shape: str
    color: str
    texture: str
    id: int
    area: int
    painted: int


@dataclass(frozen=True)
class Scene:
    """One rendered image and all that is true about it.

    Attributes:
      image: uint8 [H, W, 3], RGB.
      stuff: int32 [H, W], index into STUFF, also under the objects.
      objects: in the order they were painted; later ones cover earlier ones.
      ids: int32 [H, W], index of the visible object, -1 where none is.
    """

    image: np.ndarray
    stuff: np.ndarray
    objects: tuple[SceneObject, ...]
    ids: np.ndarray


def render(style: str, index: int) -> Scene:
    """Scene number `index` >= 0 of a style; the same arguments always give the same pixels.

    Raises:
      ValueError: the style is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"unknown world style {style!r}; use one of {', '.join(STYLES)}")
    return compose(np.random.default_rng((STYLES[style].number, index)), STYLES[style])


def compose(
    rng: np.random.Generator,
    style: Style,
    *,
    areas: int | None = None,
    count: int | None = None,
) -> Scene:
    """A scene drawn from `rng`, of 1 to 3 stuff areas and 3 to 8 objects unless told otherwise."""
    areas = int(rng.integers(1, 4)) if areas is None else areas
    count = int(rng.integers(3, 9)) if count is None else count
    stuff, canvas = _paint_stuff(rng, style.size, areas)
    ids = np.full(style.size, -1, np.int32)
    painted = [_paint_object(rng, canvas, ids, style=style, number=i) for i in range(count)]
    visible = np.bincount(ids.ravel() + 1, minlength=count + 1)[1:]
    objects = tuple(
        SceneObject(*words, id=i, area=int(visible[i]), painted=int(pixels))
        for i, (words, pixels) in enumerate(painted)
    )
    return Scene(_photograph(rng, canvas, style), stuff, objects, ids)


@lru_cache(maxsize=64)
def _spline(length: int, spacing: float) -> np.ndarray:
    """Cubic B-spline basis, float64 [length, knots], rows sum to 1."""
    place = (np.arange(length) + 0.5) / spacing
    knots = np.arange(math.ceil(length / spacing) + 3) - 1
    distance = np.abs(place[:, None] - knots)
    near = 2 / 3 - distance**2 * (1 - distance / 2)
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def _field(
    rng: np.random.Generator,
    size: tuple[int, int],
    spacing: float,
    *,
    layers: tuple[int, ...] = (),
) -> np.ndarray:
    """Smooth noise of about unit variance with bumps `spacing` wide, float64 [*layers, H, W]."""
    rows, columns = _spline(size[0], spacing), _spline(size[1], spacing)
    knots = rng.standard_normal((*layers, rows.shape[1], columns.shape[1]))
    return 2.0 * rows @ knots @ columns.T


def _marks(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
    """What tells a kind of stuff from the others, float64 [H, W], in grey levels.

    The marks are sparse, so that a few pixels seldom show which kind it is.
    """
    if kind == "water":  # lying crests
        rows = np.arange(size[0])[:, None] / rng.uniform(13.0, 19.0)
        return 42.0 * (np.sin(2 * np.pi * (rows + 0.3 * _field(rng, size, 20.0))) > 0.8)
    if kind == "rock":  # dark cracks
        return -46.0 * (np.abs(_field(rng, size, 11.0)) < 0.13)
    stamp, share = (_BLADE, 0.009) if kind == "grass" else (_PEBBLE, 0.005)
    seeds = (rng.random((2, *size)) < share).astype(np.uint8)
    return 38.0 * cv2.dilate(seeds[0], stamp) - 40.0 * cv2.dilate(seeds[1], stamp)


def _paint_stuff(
    rng: np.random.Generator, size: tuple[int, int], areas: int
) -> tuple[np.ndarray, np.ndarray]:
    """The map of stuff, int32 [H, W], and its picture, float64 [3, H, W]."""
    kinds = rng.permutation(len(STUFF))[:areas]
    winner = _field(rng, size, 36.0, layers=(areas,)).argmax(axis=0)
    tints = np.array([_STUFF_RGB[STUFF[number]] for number in kinds], float)
    tints += _STUFF_JITTER * rng.standard_normal(tints.shape)
    canvas = _STUFF_DRIFT * _field(rng, size, 30.0, layers=(3,))
    canvas += tints.T[:, winner]
    relief = 7.0 * _field(rng, size, 9.0)
    for place, number in enumerate(kinds):
        np.add(relief, _marks(rng, STUFF[number], size), out=relief, where=winner == place)
    canvas += relief
    return kinds[winner].astype(np.int32), canvas


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points belong to the shape of radius 1 around the origin, bool, same shape as x."""
    if shape == "disc":
        return x * x + y * y < 0.88
    if shape == "ring":
        square = x * x + y * y
        return (square < 1.0) & (square > 0.2)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) < 0.8
    if shape == "triangle":
        return (y < 0.55) & (np.abs(x) * math.sqrt(3) - y < 1.1)
    if shape == "cross":
        across, along = (
            np.minimum(np.abs(x), np.abs(y)),
            np.maximum(np.abs(x), np.abs(y)),
        )
        return (across < 0.36) & (along < 1.0)
    # A five-pointed star holds the points that are inside at least four of its five lines.
    turns = np.arange(5) * (2 * math.pi / 5)
    return sum((x * math.cos(t) + y * math.sin(t) < 0.36).astype(np.int8) for t in turns) >= 4


def _pattern(
    rng: np.random.Generator, texture: str, x: np.ndarray, y: np.ndarray, radius: float
) -> np.ndarray:
    """Where the second tone of a texture goes, bool; x and y in pixels, turned at random."""
    angle = rng.uniform(0, math.pi)
    u = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0, 20)
    v = y * math.cos(angle) - x * math.sin(angle) + rng.uniform(0, 20)
    if texture == "striped":
        period = max(7.0, radius * rng.uniform(0.55, 0.9))
        return np.floor(2 * u / period) % 2 == 0
    if texture == "checkered":
        cell = max(4.5, radius * rng.uniform(0.33, 0.52))
        return (np.floor(u / cell) + np.floor(v / cell)) % 2 == 0
    if texture == "dotted":
        period = max(7.0, radius * rng.uniform(0.5, 0.8))
        return (u % period - period / 2) ** 2 + (v % period - period / 2) ** 2 < (
            0.31 * period
        ) ** 2
    return np.zeros(x.shape, bool)


def _paint_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    ids: np.ndarray,
    *,
    style: Style,
    number: int,
) -> tuple[tuple[str, str, str], int]:
    """Paints one random object into `canvas` and `ids`; returns its three words and its pixels."""
    shape, color, texture = (
        words[rng.integers(len(words))] for words in (SHAPES, COLORS, TEXTURES)
    )
    height, width = ids.shape
    radius = rng.uniform(*style.radius)
    center_y, center_x = rng.uniform(0.05, 0.95, 2) * (height, width)
    top, bottom = (
        max(0, int(center_y - radius)),
        min(height, int(center_y + radius) + 2),
    )
    left, right = max(0, int(center_x - radius)), min(width, int(center_x + radius) + 2)
    y = np.arange(top, bottom)[:, None] + 0.5 - center_y
    x = np.arange(left, right) + 0.5 - center_x
    angle = rng.uniform(0, 2 * math.pi)
    turned_x = x * math.cos(angle) + y * math.sin(angle)
    turned_y = y * math.cos(angle) - x * math.sin(angle)
    inside = _inside(shape, turned_x / radius, turned_y / radius)

    first = np.array(_OBJECT_RGB[color]) + _OBJECT_JITTER * rng.standard_normal(3)
    dark = rng.random() < 0.5
    second = rng.uniform(20, 60) if dark else rng.uniform(200, 240)
    second = second + 8.0 * rng.standard_normal(3)
    marked = _pattern(rng, texture, turned_x, turned_y, radius)
    paint = np.where(marked, second[:, None, None], first[:, None, None])
    toward = rng.uniform(0, 2 * math.pi)
    steep = rng.uniform(0.1, 0.35) / radius
    paint *= 1 + steep * (x * math.cos(toward) + y * math.sin(toward))
    np.copyto(canvas[:, top:bottom, left:right], paint, where=inside)
    np.copyto(ids[top:bottom, left:right], number, where=inside)
    return (shape, color, texture), np.count_nonzero(inside)


def _photograph(rng: np.random.Generator, canvas: np.ndarray, style: Style) -> np.ndarray:
    """Light, white balance, lens blur and sensor noise; float64 [3, H, W] -> uint8 [H, W, 3]."""
    balance = np.exp(0.15 * rng.standard_normal(3))
    canvas *= style.brightness * np.exp(0.12 * _field(rng, style.size, 48.0))
    canvas *= balance[:, None, None]
    exposed = np.rint(np.clip(canvas, 0, 255, out=canvas)).astype(np.uint8)
    exposed = np.ascontiguousarray(exposed.transpose(1, 2, 0))
    blurred = cv2.GaussianBlur(exposed, (3, 3), rng.uniform(0.4, 0.9))
    noise = np.rint(style.noise * rng.standard_normal(blurred.shape)).astype(np.int16)
    return np.clip(noise + blurred, 0, 255).astype(np.uint8)
