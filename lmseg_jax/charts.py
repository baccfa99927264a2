"""Charts with a word at every point: names by their embeddings, methods by their cost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import plain

DOT = 7  # pixels between the middles of the dots of one name
DIRECTIONS = 16  # that a label is tried in, around its point
DISTANCES = (7, 13, 20, 30, 44, 60)  # pixels from the point, tried in this order
GAP = 6  # pixels between labels on a line, and to the frame
PALETTE = 256  # colours of a saved chart: a third of the bytes, no difference that is seen


def need_scikit_learn() -> None:
    """Raises UserError if the library of the layout is not installed."""
    try:
        import sklearn.manifold  # noqa: F401  an extra, and seconds to import
    except ImportError as error:
        raise UserError(
            "scikit-learn is not installed, which lays out embeddings:"
            " pip install 'lmseg_jax[figures]'"
        ) from error


def distinct(
    taxonomies: Sequence[Sequence[str]], embeddings: Sequence[np.ndarray]
) -> tuple[list[str], np.ndarray, list[tuple[int, ...]]]:
    """Joins classes of the same name and the same embedding.

    Args:
      taxonomies: names of each.
      embeddings: f32 [K, D] of each.

    Returns:
      N names, embeddings f32 [N, D], and the numbers of the taxonomies that have each.
    """
    names, rows, members, known = [], [], [], {}
    for m, (listed, vectors) in enumerate(zip(taxonomies, embeddings, strict=True)):
        for name, vector in zip(listed, vectors, strict=True):
            i = known.setdefault(plain(name), len(names))
            if i < len(names) and np.allclose(rows[i], vector, rtol=1e-3, atol=1e-4):
                members[i] |= {m}
                continue
            names.append(name)
            rows.append(vector)
            members.append({m})
    return names, np.stack(rows), [tuple(sorted(found)) for found in members]


def lay_out(embeddings: np.ndarray) -> np.ndarray:
    """Places in the plane, f64 [N, 2] in 0..1, where near ones have a small angle (t-SNE).

    Perplexity is 30, or a third of the neighbours there are; seeded.

    Args:
      embeddings: f32 [N, D].

    Raises:
      UserError: there are fewer than three, or scikit-learn is missing.

    Source: van der Maaten and Hinton, 2008; LMSeg Fig. 2.
    """
    need_scikit_learn()
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < 3:
        raise UserError(f"{count} different names; a picture of embeddings needs 3 at least")
    perplexity = min(30.0, max(1.0, (count - 1) / 3))
    found = TSNE(
        perplexity=perplexity,
        metric="cosine",
        init="random",
        method="exact",  # for hundreds of names several times as fast as the approximation
        random_state=0,
    )
    places = found.fit_transform(np.asarray(embeddings, np.float32)).astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-12)


def names_chart(
    names: Sequence[str],
    places: np.ndarray,
    *,
    members: Sequence[Sequence[int]],
    taxonomies: Sequence[str],
    title: str,
    path: str | Path,
) -> int:
    """Writes a PNG of names, a dot of its colour for each taxonomy that has it.

    Args:
      names: N names.
      places: f64 [N, 2] in 0..1; see `lay_out`.
      members: for each name the numbers of its taxonomies.
      taxonomies: their names.
      title: above the chart.
      path: the file to write.

    Returns:
      How many names had no room for their word; the chart says so, too.
    """
    many = len(names)
    width, height = float(np.clip(7 + many / 45, 8, 16)), float(np.clip(4.5 + many / 45, 5, 13))
    figure, axes = _figure((width, height), title=title)
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.05, 1.05), xticks=[], yticks=[])
    for m, name in enumerate(taxonomies):
        axes.scatter([], [], s=28, color=f"C{m}", label=name)
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False)
    figure.canvas.draw()  # fixes the place of the axes, so that points have pixels
    pixels = axes.transData.transform(places)
    dots = []
    for point, found in zip(pixels, members, strict=True):
        for k, m in enumerate(found):
            dots.append((point[0] + DOT * (k - (len(found) - 1) / 2), point[1], m))
    spots = axes.transData.inverted().transform([dot[:2] for dot in dots])
    axes.scatter(*spots.T, s=18, color=[f"C{m}" for _, _, m in dots], zorder=2)
    size = 8.5 if many <= 150 else 6.5
    there = [dot[:2] for dot in dots]
    left_out = _label(axes, names, pixels, dots=there, colors=["black"] * many, size=size)
    if left_out:
        note = f"{left_out} of {many} names have no room"
        axes.text(0.995, 0.005, note, fontsize=8, ha="right", va="bottom", transform=axes.transAxes)
    _save(figure, path)
    return left_out


def cost_chart(
    rows: Sequence[dict], *, scores: dict[str, str], cost: str, unit: str, path: str | Path
) -> None:
    """Writes a PNG of scores against the cost of training: one chart a score, one colour a label.

    Rows with the same label are one method at several costs: a line joins their means.

    Args:
      rows: one dict a row: `label`, `cost` (of the whole method), `runs`: one dict a seed with the
        keys of `scores`.
      scores: {key of a run: title}; a run may lack one, or hold None.
      cost: what the x axis shows, such as "cost of training".
      unit: of the cost, behind its number, such as "FLOP"; "" = a count.
      path: the file to write.
    """
    from matplotlib.ticker import EngFormatter

    figure, charts = _figure((5.6 * len(scores), 4.4), title="", columns=len(scores))
    for axes, (key, title) in zip(np.atleast_1d(charts), scores.items(), strict=True):
        points, labels, colors, dots = [], [], [], []
        for k, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
            color, means = f"C{k % 10}", []
            for row in rows:
                values = [run[key] for run in row["runs"] if run.get(key) is not None]
                if row["label"] != label or not values:
                    continue
                x, y = row["cost"], float(np.mean(values))
                axes.scatter([x] * len(values), values, s=14, color=color, linewidths=0)
                axes.scatter([x], [y], s=50, color=color, edgecolors="white", zorder=3)
                means.append((x, y))
                dots += [(x, value) for value in (*values, y)]
            if means:
                means.sort()
                axes.plot(*zip(*means, strict=True), color=color, linewidth=1, alpha=0.6)
                points.append(means[-1])  # that is where its label goes
                labels.append(label)
                colors.append(color)
        costs = [x for x, _ in dots]
        if min(costs) > 0 and max(costs) > 5 * min(costs):
            axes.set_xscale("log")
        axes.margins(0.25, 0.15)
        if max(costs) < 1.2 * min(costs):  # about equal, and so they look
            axes.set_xlim(0.85 * min(costs), 1.15 * max(costs))
        axes.xaxis.set_major_formatter(EngFormatter(unit=unit))
        axes.xaxis.set_minor_formatter(EngFormatter(unit=unit))
        axes.tick_params(labelsize=8)
        axes.tick_params(axis="x", which="both", rotation=30)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=title, xlabel=cost, ylabel="%")
        figure.canvas.draw()
        there = axes.transData.transform(dots)
        places = axes.transData.transform(points)
        _label(axes, labels, places, dots=there, colors=colors, size=9)
    _save(figure, path)


def _figure(size: tuple[float, float], *, title: str, columns: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(1, columns)


def _label(axes, names, points, *, dots, colors, size: float) -> int:
    """Writes each name where it covers neither a dot nor another name; returns how many fit not."""
    from matplotlib.transforms import IdentityTransform

    axes.figure.set_layout_engine("none")  # from here on a pixel stays where it is
    renderer, frame = axes.figure.canvas.get_renderer(), axes.get_window_extent()
    here = {"transform": IdentityTransform()}
    style = {"fontsize": size, "va": "bottom", "zorder": 4}
    texts = [
        axes.text(0, 0, name, color=color, **style, **here)
        for name, color in zip(names, colors, strict=True)
    ]
    sizes = [text.get_window_extent(renderer) for text in texts]
    boxes = np.array([(x - 4, y - 4, x + 4, y + 4) for x, y in dots])  # left, low, right, high
    left_out = 0
    for k in np.argsort(_room(np.asarray(points))):
        (x, y), text, box = points[k], texts[k], sizes[k]
        found = None
        for left, low, near in _places(x, y, box.width, box.height):
            spot = np.array([left, low, left + box.width, low + box.height])
            inside = (
                frame.x0 + GAP < spot[0]
                and spot[2] < frame.x1 - GAP
                and frame.y0 < spot[1]
                and spot[3] < frame.y1
            )
            apart = (spot[:2] >= boxes[:, 2:]) | (spot[2:] <= boxes[:, :2])
            if inside and apart.any(axis=1).all():
                found = spot, near
                break
        if found is None:
            text.remove()
            left_out += 1
            continue
        spot, near = found
        text.set_position(spot[:2])
        boxes = np.vstack([boxes, spot + (-GAP, 0, GAP, 0)])
        if not near:
            end = np.clip((x, y), spot[:2], spot[2:])
            line = {"color": "0.7", "linewidth": 0.6, "zorder": 1, "scalex": False, "scaley": False}
            axes.plot((x, end[0]), (y, end[1]), **line, **here)
    return left_out


def _room(points: np.ndarray) -> np.ndarray:
    """Distance of each point to its nearest other; those with little room are labelled first."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def _places(x: float, y: float, width: float, height: float):
    """Lower left corners to try, each with whether it touches the point's surroundings."""
    for k, distance in enumerate(DISTANCES):
        for angle in 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS:
            dx, dy = np.cos(angle), np.sin(angle)
            left = x + dx * distance - width * (1 - dx) / 2
            low = y + dy * distance - height * (1 - dy) / 2
            yield left, low, k == 0


def _save(figure, path: str | Path) -> None:
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    try:
        small = picture.quantize(PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from error
