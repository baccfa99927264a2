"""Pictures of a suite's results."""

from collections.abc import Sequence
from pathlib import Path

from lmseg_jax.experiment_tables import METRICS, value

PARTS = {"mean": "average", "elsewhere": "off the diagonal"}
DIFFERENCES = (-10, -5, 0, 5, 10, 30)  # ticks
MARKS = {
    "a seed": {"marker": "o", "markersize": 4, "color": "C0", "alpha": 0.7},
    "mean of the seeds": {"marker": "|", "markersize": 14, "markeredgewidth": 2, "color": "C3"},
    "the paper": {"marker": "x", "markersize": 6, "color": "black"},
}


def scores(found: dict, path: Path) -> None:
    """Writes a PNG: a line for each row, a dot for each seed, a bar at their mean.

    Args:
      found: of `experiment_tables.collect`.
      path: of the picture; nothing is written where there is no result.
    """
    rows = found["rows"]
    charts = {}
    for metric in METRICS:
        for part in PARTS:
            known = [[value(run, metric, where=part) for run in row["runs"]] for row in rows]
            known = [[number for number in line if number is not None] for line in known]
            if any(known):
                charts[f"{METRICS[metric]}, {PARTS[part]}"] = [(line, ()) for line in known]
    _draw(charts, [row["label"] for row in rows], path)


def claims(judged: Sequence[dict], path: Path) -> None:
    """Writes a PNG: a line for each claim with its paired differences, and the paper's beside them.

    Args:
      judged: of `experiment_tables.judgements`.
      path: of the picture; nothing is written where nothing was judged.
    """
    labels = list(dict.fromkeys(found["claim"] for found in judged))
    charts = {}
    for metric in METRICS:
        for part in PARTS:
            known = {
                found["claim"]: (list(found["differences"].values()), found["paper"])
                for found in judged
                if (found["metric"], found["where"]) == (metric, part)
            }
            if known:
                title = f"difference in {METRICS[metric]},\n{PARTS[part]}"
                charts[title] = [known.get(label, ((), ())) for label in labels]
    _draw(charts, labels, path, zero=True)


def _draw(charts: dict, labels: Sequence[str], path: Path, *, zero: bool = False) -> None:
    """Charts beside each other that share their lines.

    Args:
      charts: by title, of each line the seeds' numbers and the paper's.
      labels: of the lines.
      path: of the picture.
      zero: whether a line at zero parts better from worse.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not charts:
        return
    size = (1.8 + 2.7 * len(charts), 1.6 + 0.34 * len(labels))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    first = None
    for place, (title, lines) in enumerate(charts.items(), start=1):
        axes = figure.add_subplot(1, len(charts), place, sharey=first)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if zero:
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_xscale("symlog", linthresh=10, linscale=2)  # small ones far apart
            axes.set_xticks(DIFFERENCES, map(str, DIFFERENCES), fontsize=9)
            axes.minorticks_off()
        for line, (seeds, paper) in enumerate(lines):
            mean = [sum(seeds) / len(seeds)] if len(seeds) else []
            for numbers, marks in zip((seeds, mean, paper), MARKS.values(), strict=True):
                axes.plot(numbers, [line] * len(numbers), linestyle="", **marks)
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        if first is None:
            first = axes
            axes.invert_yaxis()
        else:
            axes.tick_params(labelleft=False)
    shown = [name for name in MARKS if zero or name != "the paper"]
    handles = [Line2D([], [], linestyle="", label=name, **MARKS[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.savefig(path)
