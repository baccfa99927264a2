"""`lmseg experiments`: trains the models of a comparison one after the other and writes its tables.

A finished run is one JSON file, so the same command goes on where it was stopped, in the middle of
a training too; files of other sessions or machines can be put beside it.
"""

import argparse
import collections
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lmseg_jax import (
    configuration,
    experiment_jobs,
    experiment_plots,
    experiment_tables,
    plan,
    report,
    suites,
)
from lmseg_jax.errors import UserError
from lmseg_jax.main import usable_cores
from lmseg_jax.suites import Row, Suite

SPEED = 0.64  # megapixels of crops a second: the demo's 57 images on two cores, docs/results.md
START = 100  # seconds of a process that are not updates: compilation, evaluation
PRETRAINED = 1500  # seconds of a pre-training, likewise
PLACE = ("mesh.", "log.", "checkpoint.", "data.root", "data.workers", "data.threads")
PLACE += ("evaluation.batch", "evaluation.pictures", "seed")
PRETRAINING = collections.defaultdict(threading.Lock)  # by folder: several runs may need it


def main(argv: Sequence[str]) -> int:
    """Says what is to be done and what it takes, does it, and writes tables and plots.

    Raises:
      UserError: a flag is wrong, a run failed, or a result was made by another recipe.
    """
    parser = argparse.ArgumentParser(
        prog="lmseg experiments",
        description=__doc__,
        epilog="--config.KEY=VALUE is laid over the config of every run, not of pre-trainings.",
        allow_abbrev=False,
    )
    parser.add_argument("--suite", required=True, choices=sorted(suites.SUITES))
    parser.add_argument("--seeds", type=int, default=0, help="runs of each row; 0 = the suite's")
    parser.add_argument("--workdir", required=True, type=Path, help="where the runs go")
    parser.add_argument("--rows", default="", help="only these, such as lmseg,multi_head")
    parser.add_argument("--results", type=Path, help="one JSON file a run; default WORKDIR/results")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each on its share of the cores"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing, write the tables")
    parser.add_argument(
        "--quick", action="store_true", help="two updates each: tries the machinery"
    )
    options, overrides = parser.parse_known_args(argv)
    configuration.check_flags(overrides)
    jax.config.update("jax_platforms", "cpu")  # here FLOPs are counted; the runs are processes
    suite = suites.SUITES[options.suite]
    if options.seeds < 0:
        raise UserError(f"--seeds is {options.seeds}; expected 1 or more, or 0 for the suite's")
    if not 1 <= options.jobs <= usable_cores():
        raise UserError(
            f"--jobs is {options.jobs}; expected 1 to {usable_cores()}, the cores of this process"
        )
    rows = chosen(suite, options.rows)
    flags = [*(suites.QUICK if options.quick else ()), *overrides]
    if options.quick and any(row.pretraining for row in rows):
        rows = [row for row in rows if not row.pretraining]
        print("--quick: rows that need a pre-training are left out")
    results = options.results or options.workdir / "results"
    for folder in (options.workdir, results):
        folder.mkdir(parents=True, exist_ok=True)
    runs = [(seed, row) for seed in range(options.seeds or suite.seeds) for row in rows]
    costs = {row.name: cost(row, flags) for row in rows}
    there = {
        (seed, row.name)
        for row in rows
        for seed in {*experiment_tables.seeds(results, row), *range(options.seeds or suite.seeds)}
        if finished(results, row, seed, expected=costs[row.name]["recipe"])
    }
    missing = [(seed, row) for seed, row in runs if (seed, row.name) not in there]
    print(announce(runs, missing, costs, workdir=options.workdir, jobs=options.jobs), flush=True)
    if not options.tables:
        need_models(missing, rows, workdir=options.workdir, results=results)
    tell = threading.Lock()

    def run(number: int, seed: int, row: Row) -> int:
        with tell:
            print(f"{number} of {len(missing)}: {row.label}, seed {seed}", flush=True)
        status = run_row(
            row, seed, costs[row.name], workdir=options.workdir, results=results, flags=flags
        )
        if not status:
            with tell:
                write(suite, options.suite, results=results, rows=rows, workdir=options.workdir)
        return status

    if not options.tables and (status := experiment_jobs.run_all(missing, run, jobs=options.jobs)):
        return status
    write(suite, options.suite, results=results, rows=rows, workdir=options.workdir)
    print((options.workdir / "tables.md").read_text())
    return 0


def chosen(suite: Suite, names: str) -> list[Row]:
    """The rows of a comma-separated list, all of them if it is empty; what a row needs comes first.

    Raises:
      UserError: there is no such row.
    """
    known = {row.name: row for row in suite.rows}
    asked = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    for name in asked:
        if name not in known:
            raise UserError(f"--rows {name}: no such row; there are {', '.join(known)}")
    needed = {known[name].of for name in asked}
    return [row for row in suite.rows if row.name in asked or row.name in needed]


def cost(row: Row, flags: Sequence[str]) -> dict:
    """What a row's models see in training together, and a hash of the configs that make them.

    Returns:
      `updates`, `images`, `megapixels` of their crops, and `recipe`. Keys with the value of
      configs/base.py, and those that say where and how fast, are no part of the recipe; so it knows
      nothing of another default there, of code or of cards.
    """
    updates, images, megapixels, keys = 0, 0, 0.0, []
    base = configuration.flat(configuration.load("base"))
    for config in configs_of(row, flags):
        updates += config.optimizer.steps
        images += config.optimizer.steps * config.batching.batch
        megapixels += config.optimizer.steps * plan.update_pixels(config) / 1e6
        values = configuration.flat(config)
        keys.append({k: v for k, v in values.items() if v != base[k] and not k.startswith(PLACE)})
    text = json.dumps([keys, row.flags, row.pretraining], sort_keys=True)
    recipe = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"updates": updates, "images": images, "megapixels": megapixels, "recipe": recipe}


def configs_of(row: Row, flags: Sequence[str]) -> list[ConfigDict]:
    """The checked configs of a row's models, without what comes from its pre-training."""
    known = [flag for flag in row.flags if "{weights}" not in flag]
    configs = [configuration.load(name, [*flags, *known]) for name in row.configs]
    for config in configs:
        configuration.check(config)
    return configs


def gigaflops(row: Row, flags: Sequence[str]) -> float:
    """Of all updates of a row's models, counted."""
    return sum(
        config.optimizer.steps * plan.update_flops(config) / 1e9
        for config in configs_of(row, flags)
    )


def file_of(results: Path, row: Row, seed: int) -> Path:
    """Where a run's result is."""
    return results / f"{row.name}-{seed}.json"


def finished(results: Path, row: Row, seed: int, *, expected: str) -> bool:
    """Whether a run's result is there.

    Raises:
      UserError: it is, but of another recipe, or cannot be read.
    """
    path = file_of(results, row, seed)
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text())["cost"]["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no result of a run ({error}): remove it to run it again"
        ) from error
    if found != expected:
        raise UserError(
            f"{path} was made by another recipe ({found}, now {expected}): remove it to run it "
            "again, or name other --results"
        )
    return True


def need_models(
    missing: Sequence[tuple[int, Row]], rows: Sequence[Row], *, workdir: Path, results: Path
) -> None:
    """Refuses runs that score models which are neither there nor to be trained.

    Raises:
      UserError: a result is there, as one of another machine may be, but not its model.
    """
    trained = {(seed, row.name) for seed, row in missing if not row.of}
    known = {row.name: row for row in rows}
    for seed, row in missing:
        if row.of and (seed, row.of) not in trained:
            for folder, _ in folders(known[row.of], seed, workdir=workdir):
                if not (folder / "checkpoints").exists():
                    raise UserError(
                        f"row {row.name} scores the model of {folder}, which is not there: use the"
                        " --workdir that trained it, or remove"
                        f" {file_of(results, known[row.of], seed)} to train it again"
                    )


def folders(row: Row, seed: int, *, workdir: Path) -> list[tuple[Path, str]]:
    """Workdir and config of each of a row's models."""
    top = workdir / f"{row.name}-{seed}"
    if len(row.configs) == 1:
        return [(top, row.configs[0])]
    return [(top / config.partition(":")[2], config) for config in row.configs]


def announce(
    runs: Sequence[tuple[int, Row]],
    missing: Sequence[tuple[int, Row]],
    costs: dict[str, dict],
    *,
    workdir: Path,
    jobs: int = 1,
) -> str:
    """What there is, what is still to be trained, and about how long that takes."""
    trained = [row for _, row in missing if not row.of]
    images = sum(costs[row.name]["images"] for row in trained)
    megapixels = sum(costs[row.name]["megapixels"] for row in trained)
    pretrainings = {row.pretraining for row in trained if row.pretraining}
    pretrainings = sorted(name for name in pretrainings if not made(weights_of(name, workdir)))
    around = START * sum(len(row.configs) for _, row in missing) + PRETRAINED * len(pretrainings)
    minutes = (megapixels / SPEED + around) / 60 / jobs
    before = f", with {', '.join(pretrainings)} before them" if pretrainings else ""
    return (
        f"{len(runs)} runs, {len(runs) - len(missing)} finished; to do: {len(trained)} trainings "
        f"of {images:,} images in all: about {minutes:.0f} minutes where, as on two cores, the "
        f"demo's model sees {SPEED} megapixels of crops a second{before}"
    )


def run_row(
    row: Row,
    seed: int,
    known: dict,
    *,
    workdir: Path,
    results: Path,
    flags: Sequence[str],
) -> int:
    """Trains the models of a row, or scores those of another row again, and writes its result.

    Returns:
      Exit status: 0, or that of a run which was stopped.
    """
    weights = weights_of(row.pretraining, workdir)
    if row.pretraining and (status := pretrain(row.pretraining, weights)):
        return status
    own = [flag.format(weights=weights) for flag in row.flags]
    scores, cross = {}, {}
    arguments = [f"--config.seed={seed}", *flags, *own]
    models = folders(row, seed, workdir=workdir)
    if row.of:
        trained = folders(replace(row, name=row.of), seed, workdir=workdir)
        for (source, _), (folder, _) in zip(trained, models, strict=True):
            shutil.copytree(source / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
        arguments.append("--config.mode=evaluate")
    for folder, config in models:
        if status := launch(config, folder, arguments):
            return status
        scores |= json.loads((folder / "scores.json").read_text())
        if (folder / "cross.json").exists():
            for scenes, line in json.loads((folder / "cross.json").read_text()).items():
                cross[scenes] = cross.get(scenes, {}) | line
    result = {
        "row": row.name,
        "seed": seed,
        "configs": list(row.configs),
        "flags": list(row.flags),
        "cost": known | {"gflop": gigaflops(row, flags)},
        "scores": scores,
        "cross": cross,
    }
    report.write_json(file_of(results, row, seed), result)
    return 0


def weights_of(pretraining: str, workdir: Path) -> Path:
    """Where a pre-training's weights are."""
    return workdir / pretraining.replace(":", "_")


def made(weights: Path) -> bool:
    """Whether a pre-training has come to its end."""
    return (weights / "done").exists()


def pretrain(config: str, weights: Path) -> int:
    """Makes weights that are not there yet; who asks meanwhile waits. Returns `launch`'s status."""
    with PRETRAINING[weights]:
        if not made(weights):
            if status := launch(config, weights, []):
                return status
            (weights / "done").touch()
    return 0


def launch(config: str, workdir: Path, flags: Sequence[str]) -> int:
    """Runs `lmseg_jax.main` in a process of its own; what it prints goes to WORKDIR/log.txt.

    Returns:
      0, or 130 if it was asked to stop.

    Raises:
      UserError: it failed; the message has the end of its log.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "log.txt"
    command = [sys.executable, "-m", "lmseg_jax.main", "--config", config]
    with log.open("a") as file:
        status = subprocess.run(
            [*command, "--workdir", str(workdir), *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status not in (0, experiment_jobs.STOPPED):
        last = " / ".join(log.read_text().strip().splitlines()[-3:])
        raise UserError(f"{' '.join(command[2:])} failed ({status}); {log} ends: {last}")
    return status


def write(suite: Suite, name: str, *, results: Path, rows: Sequence[Row], workdir: Path) -> None:
    """Writes tables.json, tables.md, scores.png and claims.png of the results that are there."""
    found = experiment_tables.collect(name, rows, results=results)
    judged = experiment_tables.judgements(found, suite.claims)
    report.write_json(workdir / "tables.json", found | {"claims": judged})
    text = experiment_tables.markdown(found, suite.claims)
    (workdir / "tables.md").write_text(text)
    experiment_plots.scores(found, workdir / "scores.png")
    experiment_plots.claims(judged, workdir / "claims.png")


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("experiments")
