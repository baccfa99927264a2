"""Pictures of a suite's results."""

from pathlib import Path

from lmseg_jax.experiment_tables import METRICS, value

PARTS = {"mean": "average", "elsewhere": "off the diagonal"}


def scores(found: dict, path: Path) -> None:
    """Writes a PNG: a line for each row, a dot for each seed, a bar at their mean.

    Args:
      found: of `experiment_tables.collect`.
      path: of the picture; nothing is written where there is no result.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["rows"]
    charts = [
        (part, metric)
        for metric in METRICS
        for part in PARTS
        if any(value(run, metric, where=part) is not None for row in rows for run in row["runs"])
    ]
    if not charts:
        return
    figure = Figure(
        figsize=(1.8 + 2.7 * len(charts), 1.1 + 0.34 * len(rows)), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    first = None
    for place, (part, metric) in enumerate(charts, start=1):
        axes = figure.add_subplot(1, len(charts), place, sharey=first)
        axes.set_title(f"{METRICS[metric]}, {PARTS[part]}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for line, row in enumerate(rows):
            known = [value(run, metric, where=part) for run in row["runs"]]
            known = [number for number in known if number is not None]
            if known:
                axes.plot(known, [line] * len(known), "o", markersize=4, color="C0", alpha=0.7)
                mean = sum(known) / len(known)
                axes.plot([mean, mean], [line - 0.3, line + 0.3], color="C3", linewidth=2)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9)
        if first is None:
            first = axes
            axes.invert_yaxis()
        else:
            axes.tick_params(labelleft=False)
    figure.savefig(path)
