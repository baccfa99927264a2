"""Pictures that a person reads: coloured label maps, legends, panels and training curves.

Images are uint8 [H, W, 3], RGB, everywhere in this module.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (38, 42, 51)
SMALLEST, LARGEST = 288, 640  # side lengths between which panels show an image
LEGEND_LIMIT = 24  # a legend of more classes lists only those that occur
COUNT = "loss/nonfinite"  # of costs, so no part of the loss


def colorize(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Picture of a label map; negative labels are black.

    Args:
      labels: int32 [H, W], class 0..K-1, negative where void.
      colors: uint8 [K, 3], RGB.

    Returns:
      uint8 [H, W, 3].
    """
    table = np.append(np.asarray(colors, np.uint8), np.zeros((1, 3), np.uint8), axis=0)
    return table[np.where(labels < 0, len(table) - 1, labels)]


def borders(labels: np.ndarray) -> np.ndarray:
    """bool [H, W], True where a pixel differs from its right or its lower neighbour."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    *,
    alpha: float = 0.5,
    edges: bool = True,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """The image tinted with the colours of its labels; void pixels keep the image's own colour.

    Args:
      image: uint8 [H, W, 3].
      labels: int32 [H, W], class 0..K-1, negative where void.
      colors: uint8 [K, 3], RGB.
      alpha: share of the label's colour, 0..1.
      edges: True draws a line of one pixel between regions.
      segments: int [H, W], ids of the regions whose borders are drawn; None = `labels`.

    Returns:
      uint8 [H, W, 3].
    """
    mixed = (1 - alpha) * image + alpha * colorize(labels, colors)
    mixed = np.where((labels < 0)[..., None], image, mixed + 0.5).astype(np.uint8)
    if edges:
        mixed[borders(labels if segments is None else segments)] = PAPER
    return mixed


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """[H, W, ...] -> [factor * H, factor * W, ...]; every pixel becomes a square."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def legend(
    names: Sequence[str], colors: np.ndarray, *, width: int, scale: float = 1.0
) -> np.ndarray:
    """A swatch and a name for each class, in as many columns as `width` has room for.

    Args:
      names: K names; one that is too long for a column of the full width is cut.
      colors: uint8 [K, 3], RGB.
      width: width of the picture in pixels.
      scale: size of the text, 1.0 = 14 pixels.

    Returns:
      uint8 [h, width, 3] on white, h as needed.
    """
    font, line = _font(scale), round(22 * scale)
    swatch, gap = round(14 * scale), round(6 * scale)
    names = [_cut(name, font=font, room=width - swatch - 3 * gap) for name in names]
    item = swatch + 3 * gap + math.ceil(max((font.getlength(name) for name in names), default=0))
    columns = max(1, min(len(names), (width - gap) // item))
    rows = -(-len(names) // columns)
    picture = Image.new("RGB", (width, rows * line + gap), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = gap + i // rows * item, gap // 2 + i % rows * line
        top = y + (line - swatch) // 2
        box = (x, top, x + swatch - 1, top + swatch - 1)
        draw.rectangle(box, fill=tuple(map(int, color)), outline=(110, 110, 110))
        draw.text((x + swatch + gap, y + line // 2), name, fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def title_bar(text: str, width: int, *, scale: float = 1.0) -> np.ndarray:
    """uint8 [h, width, 3]: white text, centred on a dark bar; text that is too long is cut."""
    return _bar(text, width, scale=scale, ink=PAPER, paper=INK)


def grid(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 4) -> np.ndarray:
    """Pictures in rows and columns on white, each at the top left of its cell.

    Args:
      rows: rows of uint8 [h, w, 3]; sizes and the number of pictures in a row may differ.
      gap: white pixels between cells.

    Returns:
      uint8 [H, W, 3]; a column is as wide as its widest picture, a row as high as its highest.
    """
    heights = [max((picture.shape[0] for picture in row), default=0) for row in rows]
    count = max((len(row) for row in rows), default=0)
    widths = [max(row[i].shape[1] for row in rows if i < len(row)) for i in range(count)]
    height = sum(heights) + gap * max(0, len(heights) - 1)
    width = sum(widths) + gap * max(0, count - 1)
    canvas = np.full((height, width, 3), 255, np.uint8)
    y = 0
    for row, row_height in zip(rows, heights, strict=True):
        x = 0
        for picture, column_width in zip(row, widths, strict=False):
            canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += column_width + gap
        y += row_height + gap
    return canvas


def panel(rows: Sequence[dict], *, across: int = 2) -> np.ndarray:
    """A picture "image | truth | prediction" of some images of a dataset, titled, with a legend.

    Args:
      rows: one dict an image: `title`, `image` uint8 [H, W, 3], `truth` and `prediction` int32
        [H, W] (negative = void), `names` [K], `colors` uint8 [K, 3]; optional `truth_segments` and
        `prediction_segments` int [H, W], ids of the segments, so that neighbouring instances of
        one class are told apart. Title, names and colours are those of the first.
      across: images side by side, at most.
    """
    cells, present = [], set()
    for row in rows:
        picture = _fit(row["image"])
        maps = [_painted(row, key, like=picture) for key in ("truth", "prediction")]
        cells.append([picture, *maps])
        present.update(np.unique(row["truth"]), np.unique(row["prediction"]))
    columns = min(across, len(cells))
    stacks = []
    for i in range(columns):
        width = max(cell[0].shape[1] for cell in cells[i::columns])
        labels = [
            _bar(text, width, scale=1.1, ink=INK, paper=(232, 234, 238))
            for text in ("image", "truth", "prediction")
        ]
        stacks.append(grid([labels, *cells[i::columns]]))
    body = grid([stacks], gap=20)
    names, colors = _listed(rows[0]["names"], rows[0]["colors"], present=present)
    under = legend(names, colors, width=body.shape[1], scale=1.3)
    return grid([[title_bar(rows[0]["title"], body.shape[1], scale=1.4)], [body], [under]])


def panels(rows: Sequence[dict], path: str | Path, *, across: int = 2) -> None:
    """Writes a PNG with a `panel` for each dataset.

    Args:
      rows: of `panel`; neighbours of equal title share one.
      path: the file to write.
      across: images side by side in a panel, at most.
    """
    groups = groupby(rows, key=lambda row: row["title"])
    _write(grid([[panel(list(group), across=across)] for _, group in groups], gap=16), path)


def taxonomies(
    images: Sequence[np.ndarray], predictions: Sequence[dict], *, path: str | Path
) -> None:
    """Writes a PNG of the same images asked in several taxonomies: one column for each.

    Args:
      images: uint8 [H, W, 3] each, one row each.
      predictions: one dict a taxonomy: `title`, `names` [K], `colors` uint8 [K, 3], `labels`: an
        int32 [H, W] for each image; optional `segments`: an int [H, W] for each image.
      path: the file to write.
    """
    pictures = [_fit(image) for image in images]
    width = max(picture.shape[1] for picture in pictures)
    head, foot, columns = [title_bar("image", width)], [np.full((1, width, 3), 255, np.uint8)], []
    for asked in predictions:
        present = {value for labels in asked["labels"] for value in np.unique(labels)}
        names, colors = _listed(asked["names"], asked["colors"], present=present)
        head.append(title_bar(asked["title"], width))
        foot.append(legend(names, colors, width=width))
        segments = asked.get("segments", asked["labels"])
        columns.append(
            [
                _map(labels, asked["colors"], segments=ids, like=picture)
                for labels, ids, picture in zip(asked["labels"], segments, pictures, strict=True)
            ]
        )
    body = [
        [_centred(picture, width) for picture in row]
        for row in zip(pictures, *columns, strict=True)
    ]
    _write(grid([head, *body, foot], gap=6), path)


def curves(rows: Sequence[dict], path: str | Path) -> None:
    """Writes a PNG of losses, learning rate, gradient norm and scores over updates.

    Args:
      rows: rows of `metrics.jsonl`: dicts with `step` and any of `loss`, `loss/<part>`, `rate`,
        `gradient_norm`, `score/<dataset>/miou`, `score/<dataset>/pq`. A chart without a number
        is left out; None and non-finite values are skipped.
      path: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = _series(rows)
    charts = {
        "loss": [key for key in series if key.partition("/")[0] == "loss" and key != COUNT],
        "learning rate": [key for key in series if key == "rate" or key.startswith("rate/")],
        "gradient norm": [key for key in series if key == "gradient_norm"],
        "mIoU, %": [key for key in series if _is_score(key, "miou")],
        "PQ, %": [key for key in series if _is_score(key, "pq")],
    }
    charts = {title: keys for title, keys in charts.items() if keys}
    datasets = sorted({key.split("/")[1] for key in series if key.startswith("score/")})
    last = max((1, *(steps[-1] for steps, _ in series.values())))
    columns = min(3, max(1, len(charts)))
    lines = max(1, -(-len(charts) // columns))
    figure = Figure(figsize=(5.2 * columns, 3.7 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, keys) in enumerate(charts.items(), start=1):
        axes = figure.add_subplot(lines, columns, place, title=title, xlabel="update")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for key in sorted(keys):
            x, y = series[key]
            if title.endswith("%"):
                name = key.split("/")[1]
                color = f"C{datasets.index(name)}"
                axes.plot(x, y, marker="o", markersize=3, label=name, color=color)
            else:
                (line,) = axes.plot(x, y, alpha=0.25, linewidth=1)
                axes.plot(x, _smooth(y), color=line.get_color(), label=key, linewidth=1.6)
        axes.set_xlim(0, last)
        if title.endswith("%"):
            axes.set_ylim(0, 100)
        if title in ("loss", "gradient norm") and all(min(series[key][1]) > 0 for key in keys):
            axes.set_yscale("log")
        if len(keys) > 1 or title.endswith("%"):
            axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _series(rows: Sequence[dict]) -> dict[str, tuple[list, list]]:
    """Steps and values of every key that has a finite number."""
    series = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                steps, values = series.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(value)
    return series


def _is_score(key: str, metric: str) -> bool:
    return key.startswith("score/") and key.count("/") == 2 and key.endswith("/" + metric)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred mean over about a twentieth of the curve; shorter windows at the ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _fit(image: np.ndarray) -> np.ndarray:
    """Enlarges a small image by a whole factor, shrinks a large one, leaves the others."""
    height, width = image.shape[:2]
    if max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return enlarge(image, max(1, SMALLEST // min(height, width)))


def _centred(picture: np.ndarray, width: int) -> np.ndarray:
    room = width - picture.shape[1]
    return np.pad(picture, ((0, 0), (room // 2, room - room // 2), (0, 0)), constant_values=255)


def _painted(row: dict, key: str, *, like: np.ndarray) -> np.ndarray:
    segments = row.get(f"{key}_segments")
    segments = row[key] if segments is None else segments
    return _map(row[key], row["colors"], segments=segments, like=like)


def _map(labels, colors, *, segments, like) -> np.ndarray:
    """A label map in its legend's colours, borders white, at the size of the picture `like`."""
    size = (like.shape[1], like.shape[0])
    labels, segments = (
        cv2.resize(np.asarray(x, np.float64), size, interpolation=cv2.INTER_NEAREST).astype(int)
        for x in (labels, segments)
    )
    picture = colorize(labels, colors)
    picture[borders(segments)] = PAPER
    return picture


def _listed(names: Sequence[str], colors: np.ndarray, *, present: set) -> tuple[list, np.ndarray]:
    """What a legend lists: all classes, of a long list those that occur, and void if it occurs."""
    names, colors = list(names), np.asarray(colors, np.uint8).reshape(-1, 3)
    if len(names) > LEGEND_LIMIT:
        kept = sorted(int(value) for value in present if value >= 0)
        names, colors = [names[i] for i in kept], colors[kept]
    if any(value < 0 for value in present):
        names, colors = [*names, "(void)"], np.append(colors, np.zeros((1, 3), np.uint8), axis=0)
    return names, colors


@lru_cache
def _font(scale: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=14 * scale)


def _cut(text: str, *, font: ImageFont.FreeTypeFont, room: float) -> str:
    """The text, or its longest beginning that leaves room for three dots."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def _bar(text: str, width: int, *, scale: float, ink: tuple, paper: tuple) -> np.ndarray:
    font, height = _font(scale), round(24 * scale)
    picture = Image.new("RGB", (width, height), paper)
    text = _cut(text, font=font, room=width - 8)
    ImageDraw.Draw(picture).text((width / 2, height / 2), text, fill=ink, font=font, anchor="mm")
    return np.asarray(picture)


def _write(picture: np.ndarray, path: str | Path) -> None:
    framed = np.pad(picture, ((8, 8), (8, 8), (0, 0)), constant_values=255)
    Image.fromarray(framed).save(path)
