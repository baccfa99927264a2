"""The end of a run, and `mode = evaluate`: all scores, the tables and the pictures."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import assembly, checkpoint, logs, report, sharding, state, visualize
from lmseg_jax.baselines import trivial_baselines
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.scoring import EvaluationSet, Network, Picture, averaging, evaluate_all, evaluate_set


def run(config: ConfigDict, workdir: Path) -> int:
    """Scores the newest checkpoint of a workdir on every evaluation set of the config.

    Raises:
      UserError: there is no checkpoint, or it is one of another model.
    """
    network, sets, step = trained(config, workdir)
    finish(network, sets, config, workdir, step=step)
    return 0


def trained(config: ConfigDict, workdir: Path) -> tuple[Network, list[EvaluationSet], int]:
    """The newest checkpoint's network with its weights, the sets to score, and its update.

    Raises:
      UserError: there is no checkpoint, or it is one of another model.
    """
    cards = assembly.load_cards(config)
    sets = assembly.evaluation_sets(config, cards)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, multiple=config.batching.multiple)
    vocabulary = assembly.vocabulary_of(config, cards)
    params, frozen = state.shapes(config.model, vocabulary)
    folder = workdir / assembly.CHECKPOINTS
    name = "average" if config.optimizer.average else "params"
    expected = {name: params, "frozen": frozen}
    weights = checkpoint.read_weights(folder, names=(name, "frozen"), expected=expected)
    network = Network(state.graph(config.model, vocabulary), vocabulary, mesh)
    network.load(*jax.device_put((weights[name], weights["frozen"]), sharding.replicated(mesh)))
    return network, sets, checkpoint.latest(folder)


def finish(
    network: Network,
    sets: Sequence[EvaluationSet],
    config: ConfigDict,
    workdir: Path,
    *,
    step: int,
) -> tuple[dict[str, dict], dict[str, list[Picture]]]:
    """Evaluates once more and writes scores.json, cross.json, baselines.json and the pictures.

    Args:
      network: with weights loaded.
      sets: to be scored.
      config: of the run.
      workdir: where files go.
      step: updates that made the weights; earlier rows of metrics.jsonl give the curves and the
        mean of the last evaluations.

    Returns:
      {dataset: scores} and {dataset: pictures}.
    """
    scores, pictures = evaluate_all(network, sets, config)
    # these weights may have been scored before; once is enough
    rows = [r for r in logs.read(workdir) if r["step"] < step or r["step"] == step and "loss" in r]
    rows.append({"step": step} | report.flat(scores))
    if config.evaluation.average > 1:
        report.add_means(scores, rows, count=config.evaluation.average)
    baselines = {}
    if config.evaluation.baselines:
        for data in sets:
            train = open_source(data.card, config.data.train_split, root=config.data.root)
            baselines[data.card.name] = trivial_baselines(
                train, data.source, data.card.taxonomy, seed=config.seed
            )
    cross = assembly.worlds_by_taxonomies(network, sets, config) if config.evaluation.cross else {}
    asked = _asked(network, sets, config) if config.evaluation.pictures else []
    if jax.process_index() != 0:
        return scores, pictures

    report.write_json(workdir / "scores.json", scores)
    print(report.format_scores(scores, baselines))
    if means := report.format_means(scores):
        print(means)
    if baselines:
        report.write_json(workdir / "baselines.json", baselines)
    if cross:
        report.write_json(workdir / "cross.json", cross)
        for key in ("miou", "pq"):
            print(report.format_cross(cross, key))
    visualize.curves(rows, workdir / "curves.png")
    if config.evaluation.pictures:
        visualize.panels(_panel_rows(sets, pictures), workdir / "panels.png")
        _draw_taxonomies(asked, workdir / "taxonomies.png")
    print(f"scores and pictures are in {workdir}", flush=True)
    return scores, pictures


def example_panels(
    sets: Sequence[EvaluationSet], pictures: dict[str, list[Picture]]
) -> dict[str, np.ndarray]:
    """{"examples/<dataset>": uint8 [H, W, 3]}: image, truth and prediction, with a legend."""
    rows = groupby(_panel_rows(sets, pictures), key=lambda row: row["title"])
    return {f"examples/{name}": visualize.panel(list(group)) for name, group in rows}


def _panel_rows(sets: Sequence[EvaluationSet], pictures: dict[str, list[Picture]]) -> list[dict]:
    """Rows of `visualize.panels`."""
    rows = []
    for data in sets:
        for picture in pictures[data.card.name]:
            row = {
                "title": data.card.name,
                "image": picture.sample.image,
                "truth": picture.truth,
                "prediction": picture.prediction,
                "names": data.card.taxonomy.names,
                "colors": data.card.taxonomy.colors,
            }
            if picture.segments is not None:
                row["truth_segments"] = picture.sample.segments
                row["prediction_segments"] = picture.segments
            rows.append(row)
    return rows


def _asked(
    network: Network, sets: Sequence[EvaluationSet], config: ConfigDict
) -> list[tuple[EvaluationSet, list[Picture]]]:
    """The first image of each set, asked in the taxonomy of every set: (words, pictures)."""
    found = []
    for words in sets:
        pictures = []
        for scenes in sets:
            image = assembly.without_truth(scenes.source[0])
            data = EvaluationSet([image], words.card, words.dataset, scenes=scenes.card)
            pictures += evaluate_set(
                network, data, batch=1, threads=config.data.threads, pictures=1, **averaging(config)
            )[1]
        found.append((words, pictures))
    return found


def _draw_taxonomies(asked: list[tuple[EvaluationSet, list[Picture]]], path: Path) -> None:
    """One column for each taxonomy."""
    predictions = []
    for words, pictures in asked:
        prediction = {
            "title": words.card.name,
            "names": words.card.taxonomy.names,
            "colors": words.card.taxonomy.colors,
            "labels": [np.asarray(picture.prediction) for picture in pictures],
        }
        if all(picture.segments is not None for picture in pictures):
            prediction["segments"] = [picture.segments for picture in pictures]
        predictions.append(prediction)
    visualize.taxonomies([picture.sample.image for picture in asked[0][1]], predictions, path=path)
