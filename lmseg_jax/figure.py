"""`lmseg figure`: pictures of what a model knows and what methods cost (docs/taxonomy.md)."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lmseg_jax import charts, label_space, visualize
from lmseg_jax.datasets.card import TASKS
from lmseg_jax.errors import UserError
from lmseg_jax.predict import find_images
from lmseg_jax.segmentation import pixels
from lmseg_jax.segmenter import Segmenter, load
from lmseg_jax.taxonomy import Taxonomy

SCORES = {"miou": "average mIoU", "pq": "average PQ"}
COSTS = {
    "gflop": ("cost of training", "FLOP", 1e9),
    "images": ("images of training", "", 1),
    "updates": ("updates of training", "", 1),
}


def _asked(model: Segmenter, names: Sequence[str]) -> dict[str, Taxonomy]:
    """The taxonomies of a command, by what they are called in its picture."""
    names = names or list(model.spaces)
    found = {}
    for name in names:
        space, _ = label_space.look_up(model.spaces, name, None, head=model.model.head)
        found[name] = space.taxonomy
    return found


def _title(name: str) -> str:
    """A taxonomy's name without the path of its card."""
    return Path(name).stem if name.endswith(".toml") else name


def _embeddings(options: argparse.Namespace) -> None:
    charts.need_scikit_learn()
    model = load(options.checkpoint)
    asked = _asked(model, options.taxonomies)
    named = [list(taxonomy.names) for taxonomy in asked.values()]
    rows = [model.embeddings(classes=classes)[:-1] for classes in named]  # without background
    names, vectors, members = charts.distinct(named, rows)
    charts.names_chart(
        names,
        charts.lay_out(vectors),
        members=members,
        taxonomies=[_title(name) for name in asked],
        title="class names, as the model compares its queries with them",
        path=options.output,
    )


def _taxonomies(options: argparse.Namespace) -> None:
    images = [pixels(path) for path in find_images(options.input, without=options.output)]
    model = load(options.checkpoint)
    predictions = []
    for name, taxonomy in _asked(model, options.taxonomies).items():
        found = [model.segment(image, taxonomy=name, task=options.task) for image in images]
        predictions.append(
            {
                "title": _title(name),
                "names": taxonomy.names,
                "colors": taxonomy.colors,
                "labels": [answer.labels for answer in found],
                "segments": [answer.segments for answer in found],
            }
        )
    try:
        visualize.taxonomies(images, predictions, path=options.output)
    except OSError as error:
        problem = f"cannot write: {error.strerror or error}"
        raise UserError(f"--output {options.output}: {problem}") from error


def _cost(options: argparse.Namespace) -> None:
    rows = read_tables(options.tables, cost=options.cost)
    kept = {
        key: title
        for key, title in SCORES.items()
        if any(run.get(key) is not None for row in rows for run in row["runs"])
    }
    title, unit, factor = COSTS[options.cost]
    for row in rows:
        row["cost"] *= factor
    charts.cost_chart(rows, scores=kept, cost=title, unit=unit, path=options.output)


def read_tables(path: Path, *, cost: str) -> list[dict]:
    """The rows of a `tables.json` of `lmseg experiments` that have a run and models of their own.

    Args:
      path: of the file.
      cost: key of a row's `cost`.

    Returns:
      One dict a row: `label` (its method's, where rows of several budgets share one), `cost` (a
      number), `runs`: dicts with `miou` and `pq`, percent.

    Raises:
      UserError: it cannot be read, or lacks something.
    """
    try:
        rows = [
            {
                "label": str(row.get("method") or row["label"]),
                "cost": float(row["cost"][cost]),
                "runs": [
                    {key: run[key] and float(run[key]) for key in SCORES if key in run}
                    for run in row["runs"]
                ],
            }
            for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
            if row["runs"] and not row.get("of")  # what is scored again cost nothing
        ]
    except OSError as error:
        raise UserError(f"--tables {path}: cannot read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"--tables {path}: no tables.json of lmseg experiments with costs in {cost!r}"
            f" ({type(error).__name__}: {error}); write it again"
        ) from error
    if not any(run.get(key) is not None for row in rows for run in row["runs"] for key in SCORES):
        raise UserError(f"--tables {path}: has no run with a score; run lmseg experiments first")
    return rows


def main(argv: Sequence[str]) -> int:
    """Draws one picture.

    Raises:
      UserError: a flag, the checkpoint, the image or the tables are wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg figure", description=__doc__, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True)

    def add(name: str, run, about: str) -> argparse.ArgumentParser:
        part = kinds.add_parser(name, help=about, description=about, allow_abbrev=False)
        part.set_defaults(run=run)
        part.add_argument("--output", type=Path, default=Path(f"{name}.png"), help="PNG to write")
        return part

    part = add("embeddings", _embeddings, "class names in the plane, as a model sees them")
    _model_flags(part)
    part = add("cost", _cost, "average score against the cost of training")
    part.add_argument("--tables", required=True, type=Path, help="tables.json of lmseg experiments")
    part.add_argument("--cost", choices=list(COSTS), default="gflop", help="the x axis (gflop)")
    part = add("taxonomies", _taxonomies, "the same images in several taxonomies")
    _model_flags(part)
    part.add_argument("--input", required=True, type=Path, help="an image, or a folder of a few")
    part.add_argument("--task", choices=TASKS, default="semantic")
    options = parser.parse_args(argv)
    options.run(options)
    print(options.output)
    return 0


def _model_flags(part: argparse.ArgumentParser) -> None:
    part.add_argument("--checkpoint", required=True, help="workdir of a run, or a converted model")
    part.add_argument(
        "--taxonomies", nargs="+", default=[], help="trained ones, cards, unions a+b (all trained)"
    )


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("figure")
