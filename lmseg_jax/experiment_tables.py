"""Results of a suite as tables, and what their paired differences say of the paper's claims."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lmseg_jax.suites import Claim, Row

METRICS = {"miou": "mIoU", "pq": "PQ"}
WHERE = {"mean": "average", "diagonal": "diagonal", "elsewhere": "off the diagonal"}


def collect(suite: str, rows: Sequence[Row], *, results: Path) -> dict:
    """Reads the result files of a suite.

    Returns:
      `suite` and `rows`: of each row with a result `name`, `label`, `of` (the row whose models it
      scores again, or ""), `method` (of `suites.Row`), `cost` (`updates`, `images`, `gflop`) and
      `runs`, a dict for each seed: `seed`, `miou` and `pq` (means over the datasets), `diagonal`
      and `elsewhere` (means of the worlds x taxonomies table on and off its diagonal, by metric;
      None without a table), `scores`, `cross`.
    """
    found = []
    for row in rows:
        paths = [results / f"{row.name}-{seed}.json" for seed in seeds(results, row)]
        runs = [json.loads(path.read_text()) for path in paths]
        if not runs:
            continue
        found.append(
            {
                "name": row.name,
                "label": row.label,
                "of": row.of,
                "method": row.method,
                "cost": {key: runs[0]["cost"][key] for key in ("updates", "images", "gflop")},
                "runs": [_summary(run) for run in runs],
            }
        )
    return {"suite": suite, "rows": found}


def seeds(results: Path, row: Row) -> list[int]:
    """Of which a folder has a result of a row, in order."""
    found = (path.stem.rpartition("-") for path in results.glob(f"{row.name}-*.json"))
    return sorted(int(seed) for name, _, seed in found if name == row.name and seed.isdecimal())


def _summary(run: dict) -> dict:
    scores, cross = run["scores"], run["cross"]
    means = {
        key: float(np.mean([score[key] for score in scores.values()]))
        for key in METRICS
        if all(key in score for score in scores.values())
    }
    return {
        "seed": run["seed"],
        **means,
        "diagonal": _cells(cross, lambda scenes, words: scenes == words),
        "elsewhere": _cells(cross, lambda scenes, words: scenes != words),
        "scores": {
            name: {key: score[key] for key in METRICS if key in score}
            for name, score in scores.items()
        },
        "cross": cross,
    }


def _cells(cross: dict, chosen: Callable[[str, str], bool]) -> dict[str, float] | None:
    """Mean of some cells of a worlds x taxonomies table, by metric."""
    cells = [
        cell
        for scenes, line in cross.items()
        for words, cell in line.items()
        if chosen(scenes, words)
    ]
    if not cells:
        return None
    return {
        key: float(np.mean([cell[key] for cell in cells])) for key in METRICS if key in cells[0]
    }


def value(run: dict, metric: str, *, where: str) -> float | None:
    """A run's mean over datasets, or over cells of its worlds x taxonomies table.

    Without a table the scores are a diagonal with nothing beside it.

    Args:
      run: of `collect`.
      metric: a key of METRICS.
      where: a key of WHERE.
    """
    if where == "elsewhere":
        return (run["elsewhere"] or {}).get(metric)
    return ((where == "diagonal" and run["diagonal"]) or run).get(metric)


def values(rows: dict[str, dict], name: str, metric: str, *, where: str) -> dict[int, float]:
    """{seed: value} of a row; empty if it has none."""
    runs = rows[name]["runs"] if name in rows else []
    found = {run["seed"]: value(run, metric, where=where) for run in runs}
    return {seed: number for seed, number in found.items() if number is not None}


def judge(rows: dict[str, dict], claim: Claim, metric: str, *, where: str) -> dict | None:
    """Paired differences of a claim, seed by seed.

    The row is compared with that one of the others whose mean over the common seeds is highest.
    "holds" if it is above it for every seed, "fails" if below for every seed, else "undecided"; so
    is one seed alone.

    Returns:
      `other`, `differences` ({seed: percent points}), `mean` and `verdict`; None if there is no
      seed that all compared rows have.
    """
    better = values(rows, claim.better, metric, where=where)
    others = {name: values(rows, name, metric, where=where) for name in claim.others}
    others = {name: found for name, found in others.items() if found}
    seeds = set(better).intersection(*others.values()) if others else set()
    if not seeds:
        return None
    means = {name: np.mean([found[seed] for seed in seeds]) for name, found in others.items()}
    other = max(means, key=means.get)
    differences = {seed: better[seed] - others[other][seed] for seed in sorted(seeds)}
    signs = {np.sign(difference) for difference in differences.values()}
    decided = {1.0: "holds", -1.0: "fails"}
    verdict = decided.get(signs.pop(), "undecided") if len(signs) == 1 else "undecided"
    return {
        "other": other,
        "differences": differences,
        "mean": float(np.mean(list(differences.values()))),
        "verdict": verdict if len(seeds) > 1 else "undecided",
    }


def judgements(found: dict, claims: Sequence[Claim]) -> list[dict]:
    """Every claim that both sides have results for, in each metric and part of the table.

    Returns:
      Of each what `judge` returns, and `claim`, `better`, `where`, `metric`, `paper` (differences
      in the paper, where known: they are those of the datasets' own words) and `about`.
    """
    rows = {row["name"]: row for row in found["rows"]}
    judged = []
    for claim in claims:
        crossed = any(run["cross"] for run in rows.get(claim.better, {"runs": ()})["runs"])
        for where in ("mean", "elsewhere") if claim.words and crossed else ("mean",):
            for metric in METRICS:
                verdict = judge(rows, claim, metric, where=where)
                if verdict is not None:
                    known = {
                        "claim": claim.text,
                        "better": claim.better,
                        "where": where,
                        "metric": metric,
                        "paper": list(claim.paper.get(metric, ())) if where == "mean" else [],
                        "about": claim.about,
                    }
                    judged.append(known | verdict)
    return judged


def markdown(found: dict, claims: Sequence[Claim]) -> str:
    """All tables of a suite."""
    rows = {row["name"]: row for row in found["rows"]}
    if not rows:
        return "No run has finished yet.\n"
    parts = [
        f"# Suite {found['suite']}",
        "Percent. Averages over the datasets: the mean of the seeds, bold, and each seed. Single"
        " datasets: the mean of the seeds.",
        "## Methods",
        _methods(rows),
        *_crosses(rows),
        "## Claims",
        "Paired differences, seed by seed: the same order of images, and the same first weights of"
        " pixel decoder and backbone, where it is not the backbone's weights that are compared."
        ' "undecided": signs differ, or there is one seed only. The paper\'s numbers are of other'
        " datasets and hundreds of times the training.",
        _verdicts(found, claims),
    ]
    return "\n\n".join(parts) + "\n"


def _methods(rows: dict[str, dict]) -> str:
    metrics = [key for key in METRICS if any(key in row["runs"][0] for row in rows.values())]
    names = list(dict.fromkeys(name for row in rows.values() for name in row["runs"][0]["scores"]))
    heads = ["", "TFLOP"]
    for key in metrics:
        heads += [f"average {METRICS[key]}", *(f"{name} {METRICS[key]}" for name in names)]
    lines = [heads]
    for row in rows.values():
        cells = [row["label"], f"{row['cost']['gflop'] / 1e3:,.0f}"]
        for key in metrics:
            cells.append(_seeds([run.get(key) for run in row["runs"]]))
            for name in names:
                found = [run["scores"].get(name, {}).get(key) for run in row["runs"]]
                known = [number for number in found if number is not None]
                cells.append(f"{np.mean(known):.1f}" if known else "-")
        lines.append(cells)
    return table(lines)


def _seeds(found: Sequence[float | None]) -> str:
    """The mean, bold, and each seed."""
    known = [number for number in found if number is not None]
    if not known:
        return "-"
    each = ", ".join(f"{number:.1f}" for number in known)
    return f"**{np.mean(known):.1f}** ({each})"


def _crosses(rows: dict[str, dict]) -> list[str]:
    """Means on and off the diagonal of each row, and its whole table of means."""
    crossed = {name: row for name, row in rows.items() if row["runs"][0]["cross"]}
    if not crossed:
        return []
    metrics = [key for key in METRICS if key in next(iter(crossed.values()))["runs"][0]["diagonal"]]
    lines = [
        ["", *(f"{WHERE[part]} {METRICS[key]}" for key in metrics for part in list(WHERE)[1:])]
    ]
    for row in crossed.values():
        cells = [row["label"]]
        for key in metrics:
            for part in list(WHERE)[1:]:
                cells.append(_seeds([value(run, key, where=part) for run in row["runs"]]))
        lines.append(cells)
    words = list(next(iter(crossed.values()))["runs"][0]["cross"])
    cells = [["", "scenes", *(f"asked as {name}" for name in words)]]
    for row in crossed.values():
        for scenes in words:
            cells.append([row["label"], scenes, *(_cell(row, scenes, name) for name in words)])
    return [
        "## Worlds x taxonomies",
        "Each world's scenes asked in each world's words. Off the diagonal a model cannot go by the"
        " look of the scenes: it has to be told the words, or, without words, the head or the model"
        " that answers in them.",
        table(lines),
        f"Means of the seeds, {' / '.join(METRICS[key] for key in metrics)}:",
        table(cells),
    ]


def _cell(row: dict, scenes: str, words: str) -> str:
    cells = [run["cross"][scenes][words] for run in row["runs"]]
    return " / ".join(
        f"{np.mean([cell[key] for cell in cells]):.1f}" for key in METRICS if key in cells[0]
    )


def _verdicts(found: dict, claims: Sequence[Claim]) -> str:
    lines = [
        ["claim", "where", "metric", "compared with", "differences", "mean", "verdict", "paper"]
    ]
    labels = {row["name"]: row["label"] for row in found["rows"]}
    for judged in judgements(found, claims):
        paper = ", ".join(f"{number:+.2f}" for number in judged["paper"])
        lines.append(
            [
                judged["claim"],
                WHERE[judged["where"]],
                METRICS[judged["metric"]],
                labels[judged["other"]],
                ", ".join(f"{number:+.1f}" for number in judged["differences"].values()),
                f"{judged['mean']:+.1f}",
                judged["verdict"],
                f"{paper} ({judged['about']})" if paper and judged["about"] else paper,
            ]
        )
    return table(lines) if len(lines) > 1 else "No claim has both of its sides yet."


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = lines
    marks = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, marks, *body])
