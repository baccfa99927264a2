"""Scores as text and files: what a run prints and writes when it is done."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmseg_jax.errors import UserError


class ImageProgress:
    """Percent on stderr: one changing line on a terminal, else one line every ten seconds."""

    def __init__(self, name: str):
        self.name, self.last = name, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self.last < (0.2 if terminal else 10) and not (terminal and done == total):
            return
        self.last = now
        line = f"{self.name}: {100 * done // total} %, {done} of {total} images"
        if terminal:
            print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def flat(scores: dict[str, dict]) -> dict[str, float]:
    """{"score/<dataset>/<metric>": value} of every metric that is one number."""
    return {
        f"score/{name}/{key}": value
        for name, score in scores.items()
        for key, value in score.items()
        if isinstance(value, int | float)
    }


def numbers(scores: dict[str, dict]) -> dict[str, dict[str, float]]:
    """The same of each dataset without tables: {dataset: {metric: value}}, two decimals."""
    return {
        name: {key: round(v, 2) for key, v in score.items() if isinstance(v, int | float)}
        for name, score in scores.items()
    }


def add_means(scores: dict[str, dict], rows: Sequence[dict], *, count: int) -> None:
    """Adds `mean_of_last` = the mean mIoU and PQ of a run's last `count` evaluations.

    Args:
      scores: {dataset: scores}, changed in place.
      rows: of metrics.jsonl, the final evaluation last.
      count: how many; fewer if the run had fewer, which `evaluations` then says.
    """
    for name, score in scores.items():
        last = [row for row in rows if f"score/{name}/miou" in row][-count:]
        score["mean_of_last"] = {"evaluations": len(last)} | {
            key: float(np.mean([row[f"score/{name}/{key}"] for row in last]))
            for key in ("miou", "pq")
            if last and all(f"score/{name}/{key}" in row for row in last)
        }


def format_details(scores: dict) -> str:
    """Every class of one dataset and its means: IoU, for panoptic scores also PQ and counts."""
    panoptic = "pq" in scores
    names = {name: name if len(name) <= 40 else f"{name[:37]}..." for name in scores["iou"]}
    width = max(12, *map(len, names.values()))

    def line(title, values, kinds):
        cells = [
            "-" if value is None else f"{value:.{kind}f}"
            for value, kind in zip(values, kinds, strict=False)
        ]
        return f"{title:{width}}" + "".join(f"{cell:>8}" for cell in cells)

    heads = ["IoU"] + (["PQ", "SQ", "RQ", "TP", "FP", "FN"] if panoptic else [])
    rows = [f"{'class':{width}}" + "".join(f"{head:>8}" for head in heads)]
    for name, short in names.items():
        segments = list(scores["classes"][name].values()) if panoptic else []
        rows.append(line(short, [scores["iou"][name], *segments], (1, 1, 1, 1, 0, 0, 0)))
    means = {"mIoU": "miou", "legacy": "miou_legacy", "fwIoU": "fwiou", "mACC": "macc"}
    means["pACC"] = "pacc"
    rows += ["", f"{'':{width}}" + "".join(f"{head:>8}" for head in means)]
    rows.append(line("all pixels", [scores[key] for key in means.values()], [2] * len(means)))
    if panoptic:
        rows += ["", f"{'':{width}}" + "".join(f"{head:>8}" for head in ("PQ", "SQ", "RQ"))]
        for group, suffix in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            found = [scores[key + suffix] for key in ("pq", "sq", "rq")]
            rows.append(line(group, found, (2, 2, 2)))
    return "\n".join(rows)


def diagonal_share(table: dict, key: str) -> float:
    """Mean off the diagonal over mean on it, in percent; a column may be all there is."""
    cells = [
        (scenes == words, cell[key]) for scenes in table for words, cell in table[scenes].items()
    ]
    diagonal = np.mean([value for own, value in cells if own])
    others = [value for own, value in cells if not own]
    return 100 * float(np.mean(others) / diagonal) if diagonal else float("nan")


def format_scores(scores: dict[str, dict], baselines: dict[str, dict] | None) -> str:
    """A table a dataset a row: mIoU and PQ, beside the trivial baselines' mIoU if given."""
    kinds = list(next(iter(baselines.values()))) if baselines else []
    header = f"{'dataset':<18}{'mIoU':>8}{'PQ':>8}" + "".join(f"{kind:>12}" for kind in kinds)
    rows = [header + ("   (baselines: mIoU)" if kinds else "")]

    def cell(value, width):
        return f"{'-':>{width}}" if value is None else f"{value:>{width}.1f}"

    def row(name, score, others):
        return f"{name:<18}" + cell(score.get("miou"), 8) + cell(score.get("pq"), 8) + others

    for name, score in scores.items():
        others = "".join(cell(baselines[name][kind]["miou"], 12) for kind in kinds)
        rows.append(row(name, score, others))
    means = {
        key: float(np.mean(values))
        for key in ("miou", "pq")
        if (values := [s[key] for s in scores.values() if s.get(key) is not None])
    }
    others = "".join(
        cell(float(np.mean([baselines[name][kind]["miou"] for name in scores])), 12)
        for kind in kinds
    )
    return "\n".join([*rows, row("mean", means, others)])


def format_means(scores: dict[str, dict]) -> str:
    """One line of `mean_of_last`, empty where there is none."""
    cells = []
    for name, score in scores.items():
        mean = score.get("mean_of_last", {})
        found = [(label, mean.get(key)) for label, key in (("mIoU", "miou"), ("PQ", "pq"))]
        known = [f"{label} {value:.1f}" for label, value in found if value is not None]
        if known:
            cells.append(" ".join([f"{name} (last {mean['evaluations']})", *known]))
    return "mean of the last evaluations: " + ", ".join(cells) if cells else ""


def format_cross(table: dict, key: str) -> str:
    """The worlds x taxonomies table of one score: rows are scenes, columns the words asked."""
    words = next(iter(table.values()))
    rows = [f"{key + ': scenes / words':<24}" + "".join(f"{name:>18}" for name in words)]
    for name, row in table.items():
        rows.append(f"{name:<24}" + "".join(f"{row[words][key]:>18.1f}" for words in row))
    share = diagonal_share(table, key)
    return "\n".join([*rows, f"off the diagonal: {share:.0f} % of the diagonal's mean"])


def write_json(path: Path, value: object) -> None:
    """Writes through a second file, so that no reader ever sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)


def write_asked(path: str, value: object) -> None:
    """Writes the file that a command's `--json` names, if it names one.

    Raises:
      UserError: it cannot be written.
    """
    if path:
        try:
            write_json(Path(path), value)
        except OSError as error:
            problem = f"cannot write: {error.strerror or error}"
            raise UserError(f"--json {path}: {problem}") from error
