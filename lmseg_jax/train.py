"""Training: one model on all datasets of a config, from start or checkpoint to scores."""

import functools
import hashlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lmseg_jax import assembly, finetuning, logs, sharding, state
from lmseg_jax.checkpoint import Checkpoints
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.errors import UserError
from lmseg_jax.evaluate import example_panels, finish
from lmseg_jax.optimizer import make_optimizer, schedule
from lmseg_jax.pipeline import skipping
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.orientation import padding
from lmseg_jax.pipeline.policies import AnyPlan
from lmseg_jax.report import flat
from lmseg_jax.scoring import Network, evaluate_all
from lmseg_jax.step import gradient, make_step, sound

PARTS = ("classification", "focal", "dice", "final", "nonfinite")  # shown as parts of the loss


def run(config: ConfigDict, workdir: Path) -> int:
    """Trains until `optimizer.steps` updates are made, evaluates, and writes what came of it.

    The same command goes on where a workdir stopped, to the same bits.

    Args:
      config: checked by `configuration.check`.
      workdir: holds checkpoints, metrics.jsonl, TensorBoard events, scores.json and pictures.

    Returns:
      Exit status: 0, or 130 if it was asked to stop before the end.
    """
    main = jax.process_index() == 0

    # ---- data: cards, words, and which images go into which update
    cards = assembly.load_cards(config)
    vocabulary = assembly.vocabulary_of(config, cards)
    feeds = assembly.training_feeds(config, cards)
    sets = assembly.evaluation_sets(config, cards)
    plan = assembly.training_plan(config, feeds)
    loader = Loader(
        feeds,
        plan,
        seed=config.seed,
        max_targets=config.data.max_targets,
        micro=config.batching.micro,
        workers=config.data.workers,
        threads=config.data.threads,
        on_error=config.data.on_error,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # ---- restore: a workdir made by another config is refused before anything is computed
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, multiple=config.batching.multiple)
    checkpoints = Checkpoints(
        workdir / assembly.CHECKPOINTS, keep=config.checkpoint.keep, every=config.checkpoint.every
    )
    run_facts = {
        "fingerprint": assembly.fingerprint(config, cards, feeds),
        "config": config.to_dict(),
    }
    newest = checkpoints.latest()
    if newest is not None:
        saved = checkpoints.read_run(newest)
        assembly.refuse_other(saved["fingerprint"], run_facts["fingerprint"], workdir)

    # ---- model and optimizer; pretrained weights are only read before the first update
    origin = []
    if newest is None:
        begun, origin = finetuning.begin(config, cards, vocabulary=vocabulary)
        train_state, shardings = assembly.initial_state(
            config, mesh, vocabulary=vocabulary, begun=begun
        )
    else:
        abstract, shardings = assembly.abstract_state(config, mesh, vocabulary=vocabulary)
        train_state = checkpoints.restore(newest, abstract)
    graphdef = state.graph(config.model, vocabulary)
    optimizer = make_optimizer(config.optimizer)
    rate = schedule(config.optimizer)
    step = make_step(
        config, graphdef, optimizer, vocabulary=vocabulary, mesh=mesh, shardings=shardings
    )
    network = Network(graphdef, vocabulary, mesh)

    # ---- what is told
    names = [card.name for card in cards]
    first, last = int(train_state.step), config.optimizer.steps
    log = logs.Logs(workdir)
    log.truncate(first)
    if main:
        assembly.write_run(workdir, config, cards)
        told = describe(train_state, cards, feeds=feeds, plan=plan, mesh=mesh, first=first)
        print("\n".join([told, *origin]), flush=True)
    progress = logs.Progress(last, images=config.batching.batch, start=first)
    stop = asked_to_stop(mesh)
    halt = functools.partial(refuse, loader=loader, checkpoints=checkpoints, run_facts=run_facts)

    def due(done: int) -> bool:
        return done % config.evaluation.every == 0 and 0 < done < last

    def evaluate(done: int, train_state: state.TrainState) -> None:
        with progress.paused():
            network.load(*assembly.evaluated_weights(train_state))
            scores, pictures = evaluate_all(network, sets, config)
        log.write(done, flat(scores))
        log.draw(done, example_panels(sets, pictures))
        progress.message(summary(done, scores))

    if due(first) and unscored(workdir, first):  # it ended within the evaluation
        evaluate(first, train_state)

    # ---- the loop
    recent, dropped, skipped, told, programs = [], {}, {}, set(), 0
    updates = loader.iterate(first, last)
    for update in updates:
        sums = gradient(step, train_state, update.buckets, mesh=mesh, seed=config.seed)
        if recent and not sound(recent[-1]):  # waits: at most two updates are under way
            halt(update.step - 1, train_state)
        train_state, metrics = step.update(train_state, sums)
        recent.append(metrics)
        for name, count in update.dropped.items():
            dropped[name] = dropped.get(name, 0) + count
        for name, problems in update.skipped.items():
            skipped[name] = skipped.get(name, ()) + problems
        done = update.step + 1

        logged = done % config.log.every == 0 or done == last
        kept = done % config.checkpoint.every == 0
        if (logged or due(done) or kept) and not sound(metrics):
            halt(update.step, train_state)

        if logged:
            row = mean_of(recent, datasets=names, queries=config.model.queries)
            row["rate"] = float(rate(update.step))
            row["rate/backbone"] = row["rate"] * config.optimizer.backbone_rate
            if config.model.head == "text":
                row.setdefault("temperature", config.model.temperature)
            shown = {key: row[key] for key in ("loss", "loss/final", "rate")}
            progress.update(done, shown, compiled=step.programs() > programs)
            programs = row["programs"] = step.programs()
            row |= {f"dropped/{name}": count for name, count in dropped.items() if count}
            row |= {f"skipped/{name}": len(files) for name, files in skipped.items() if files}
            for line in skipping.describe(skipped, told):
                progress.message(line)
            row["images_per_second"] = progress.speed() * config.batching.batch
            log.write(done, row)
            recent, dropped, skipped = [], {}, {}

        ending = stop() and done < last and sound(metrics)  # else the next update refuses
        with progress.paused():  # an evaluation takes long: what it scores is safe before
            force = ending or due(done) or done == last
            checkpoints.save(done, train_state, run_facts, force=force)
        if ending:
            updates.close()
            checkpoints.close()
            log.close()
            if main:
                progress.close()
                print(f"stopped after update {done} of {last}; the same command goes on from there")
            return 130
        if due(done):
            evaluate(done, train_state)
    progress.close()

    # ---- the end: scores, tables, pictures; everything is saved, so from here a signal just ends
    checkpoints.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    network.load(*assembly.evaluated_weights(train_state))
    try:
        scores, pictures = finish(network, sets, config, workdir, step=last)
    except KeyboardInterrupt:
        print(f"stopped after update {last} of {last}; the same command goes on from there")
        return 130
    if unscored(workdir, last):
        log.write(last, flat(scores))
        log.draw(last, example_panels(sets, pictures))
    total = digest(train_state, mesh)
    if main:
        print(f"weights and optimizer state: sha256 {total}")
    checkpoints.close()
    log.close()
    return 0


def describe(
    train_state: state.TrainState,
    cards: Sequence[DatasetCard],
    *,
    feeds: Sequence[Feed],
    plan: AnyPlan,
    mesh: Mesh,
    first: int,
) -> str:
    """What is about to be trained, in three lines."""
    trainable, frozen = state.count(train_state.params), state.count(train_state.frozen)
    names = ", ".join(f"{card.name} ({len(card.taxonomy)} classes)" for card in cards)
    where = "from the start" if first == 0 else f"from update {first}"
    devices = " x ".join(f"{count} {axis}" for axis, count in mesh.shape.items())
    waste = [f"{padding(feed):.0f} % of {feed.name}" for feed in feeds if feed.recipe.detr_crop]
    padded = f"{' and '.join(waste)} is padding; " if waste else ""
    return (
        f"datasets: {names}\n"
        f"model: {trainable:,} trainable, {frozen:,} frozen values; mesh {devices}\n"
        f"plan: {plan.describe()}; {padded}{where}"
    )


def mean_of(metrics: Sequence[dict], *, datasets: Sequence[str], queries: int) -> dict[str, float]:
    """What a few updates told, under the names of metrics.jsonl.

    The loss of a dataset is that of its own images, as if the whole update were of this dataset.

    Args:
      metrics: of each update.
      datasets: their names, in the order of their numbers.
      queries: of an image.
    """
    values = jax.device_get(list(metrics))
    total = {key: np.sum([value[key] for value in values], axis=0) for key in values[0]}
    of_dataset, images = total.pop("datasets"), total.pop("images")
    layers = total.pop("layers") / len(values)
    asked = float(images.sum()) * queries
    row = {f"queries/{key}": float(total.pop(key)) / asked for key in ("matched", "no_object")}
    means = {key: float(value) / len(values) for key, value in total.items()}
    row |= {f"loss/{key}" if key in PARTS else key: value for key, value in means.items()}
    row |= {f"loss_of_layer/{i}": float(value) for i, value in enumerate(layers, start=1)}
    share = images / images.sum() * len(values)
    return row | {
        f"loss_of_dataset/{name}": float(value / part)
        for name, value, part in zip(datasets, of_dataset, share, strict=True)
        if part
    }


def refuse(
    update: int,
    train_state: state.TrainState,
    *,
    loader: Loader,
    checkpoints: Checkpoints,
    run_facts: dict,
) -> NoReturn:
    """Ends a run whose loss is no number any more, after what it knew before is saved.

    Args:
      update: number of the update that was not made, from 0.
      train_state: before it.
      loader: names its images.
      checkpoints: where the state is saved.
      run_facts: saved beside it.

    Raises:
      UserError: always.
    """
    checkpoints.save(update, train_state, run_facts, force=True)
    checkpoints.close()
    named = loader.names(update)
    images = "; ".join(f"{feed}: {', '.join(names)}" for feed, names in named.items())
    raise UserError(
        f"the loss or its gradient became infinite or NaN in update {update + 1} and changed "
        f"nothing; the state before it is saved as checkpoint {update}; its images were {images}; "
        "look at these, or lower optimizer.rate with a new --workdir"
    )


def summary(update: int, scores: dict[str, dict]) -> str:
    """One line of scores."""
    cells = []
    for name, score in scores.items():
        found = [(label, score.get(key)) for label, key in (("mIoU", "miou"), ("PQ", "pq"))]
        known = [f"{label} {value:.1f}" for label, value in found if value is not None]
        cells.append(" ".join([name, *known]))
    return f"evaluation after update {update}: " + ", ".join(cells)


def asked_to_stop(mesh: Mesh) -> Callable[[], bool]:
    """From now on SIGINT and SIGTERM only ask; the result says whether one came to any process.

    All processes call it once an update. Of several, the answer is what they knew at the call
    before: that message has arrived by then, so no device waits for the host.
    """
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(True))
    if jax.process_count() == 1:
        return lambda: bool(asked)
    split = NamedSharding(mesh, sharding.BATCH)
    most = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
    devices = len(mesh.local_devices)
    before = [np.int32(0)]

    def answer() -> bool:
        mine = np.full(devices, len(asked), np.int32)
        before.append(most(jax.make_array_from_process_local_data(split, mine)))
        return bool(np.asarray(before.pop(0)))

    return answer


def unscored(workdir: Path, step: int) -> bool:
    """Whether metrics.jsonl, as process 0 sees it, lacks the scores of an update; all call it."""
    scored = any("loss" not in row for row in logs.read(workdir) if row["step"] == step)
    return not multihost_utils.broadcast_one_to_all(np.int32(scored))


def digest(train_state: state.TrainState, mesh: Mesh) -> str:
    """SHA-256 over parameters, optimizer state and average, in the tree's order; all call it."""
    gather = jax.jit(lambda leaf: leaf, out_shardings=sharding.replicated(mesh))
    total = hashlib.sha256()
    for leaf in jax.tree.leaves((train_state.params, train_state.optimizer, train_state.average)):
        whole = leaf if leaf.is_fully_addressable else gather(leaf)
        total.update(np.asarray(whole.addressable_data(0) if whole is not leaf else leaf).tobytes())
    return total.hexdigest()
