"""Pre-training on crops of rendered scenes: worlds-clip, or an encoder that reads no text.

python -m lmseg_jax.main --config configs/clip_worlds.py[:VARIANT] --workdir DIR

`pretrain.objective` says what is learned: "captions" (pretrain_captions.py) or "classifier"
(pretrain_classifier.py). Crops, order, flips, optimizer and number of updates are the same.

Writes NAME.safetensors and NAME.json to the workdir at every evaluation, NAME being worlds_clip or
worlds_classifier. A run that was interrupted begins anew; only its rendered crops are kept.
"""

import functools
import importlib.metadata
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import logs, pretrain_captions, pretrain_classifier, sharding
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.pipeline import crops as crops_module
from lmseg_jax.pretrained import clip
from lmseg_jax.step import KEEP_BARRIERS, on_cpu

OBJECTIVES = {"captions": pretrain_captions, "classifier": pretrain_classifier}

# Switches of an experiment, with the values that make worlds-clip.
SWITCHES = {"objective": "captions", "shuffled": False, "unnamed": ()}


def run(config: ConfigDict, workdir: Path) -> None:
    """Pre-trains for `optimizer.steps` updates and writes weights and manifest.

    Raises:
      UserError: if the devices do not divide the batch, or `pretrain.unnamed` is no list of names
        that captions say.
    """
    objective = OBJECTIVES[config.pretrain.objective]
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, multiple=config.batching.multiple)
    keys = config.pretrain
    render = functools.partial(
        crops_module.load_or_render, workdir / "crops", size=keys.size, processes=keys.processes
    )
    unseen = render(keys.unseen_first, keys.unseen)
    seen = crops_module.without_names(render(0, keys.crops), keys.unnamed)
    known = objective.targets(seen)
    if keys.shuffled:
        others = strangers(len(seen), seed=config.seed)
        known = {name: array[others] for name, array in known.items()}

    optimizer = make_optimizer(config.optimizer)
    graphdef, params, constants = create(config)
    everywhere = sharding.replicated(mesh)
    state = jax.device_put((params, constants, optimizer.init(params)), everywhere)
    update = make_update(objective.make_loss(graphdef, config), optimizer, mesh=mesh)
    score = objective.make_score(graphdef, config)

    log, batch = logs.Logs(workdir), config.batching.batch
    log.truncate(-1)
    progress = logs.Progress(config.optimizer.steps, images=batch)
    for step in range(config.optimizer.steps):
        rows, flips = draw(step, batch, total=len(seen), seed=config.seed)
        arrays = {name: array[rows] for name, array in known.items()}
        arrays |= {"image": seen.images[rows], "flip": flips}
        batch_arrays = sharding.batch_to_global(arrays, mesh)
        state, measured = update(state, batch_arrays, np.int32(step))
        done, last = step + 1, step + 1 == config.optimizer.steps
        if done % config.log.every == 0 or last:
            values = {name: float(value) for name, value in measured.items()}
            log.write(done, values)
            progress.update(done, values, compiled=step < config.log.every)
        if done % config.evaluation.every == 0 or last:
            with progress.paused():
                accuracy = score(state, unseen)
                log.write(done, accuracy)
                progress.message(
                    f"update {done}: "
                    + "  ".join(f"{name} {value:.1f}" for name, value in accuracy.items())
                )
                write(workdir, state, known, config, accuracy=accuracy, steps=done)
    log.close()


def create(config: ConfigDict) -> tuple[nnx.GraphDef, dict, dict]:
    """Graph, parameters and running averages of a new model."""
    make = functools.partial(OBJECTIVES[config.pretrain.objective].make_model, config)

    @jax.jit
    def arrays():
        _, params, constants = nnx.split(make(), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(constants)

    params, constants = arrays()
    if "text" in params:  # a table that no file needs to store whole
        width = params["text"]["tokens"].shape[1]
        params["text"]["tokens"] = jnp.asarray(clip.token_table(width, seed=config.seed))
    return nnx.graphdef(nnx.eval_shape(make)), params, constants


def strangers(total: int, *, seed: int) -> np.ndarray:
    """A row for each of `total` rows, i64 [total]: a permutation that leaves none in place."""
    order = np.random.default_rng((seed, 2)).permutation(total)
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    return others


def draw(step: int, batch: int, *, total: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an update, each crop once in an epoch, and which of them to flip, bool [B, 2].

    A function of (seed, step) only.
    """
    epoch, place = divmod(step, total // batch)
    order = np.random.default_rng((seed, 0, epoch)).permutation(total)
    flips = np.random.default_rng((seed, 1, step)).random((batch, 2)) < 0.5
    return order[place * batch : (place + 1) * batch], flips


def make_update(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, mesh: Mesh
) -> Callable:
    """The jitted `(state, batch, step) -> (state, measurements)` of an objective's loss."""

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=on_cpu(mesh, KEEP_BARRIERS))
    def update(state, batch, step):
        params, constants, moments = state
        (loss, (constants, measured)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, constants, batch, step
        )
        changes, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, changes)
        measured |= {"loss": loss, "gradient": optax.tree.norm(grads)}
        return (params, constants, moments), measured

    return update


def write(
    workdir: Path,
    state,
    known: dict[str, np.ndarray],
    config: ConfigDict,
    *,
    accuracy: dict[str, float],
    steps: int,
) -> None:
    """Writes the weights and the manifest that says how they came about."""
    objective = OBJECTIVES[config.pretrain.objective]
    params, constants, _ = jax.device_get(state)
    image = _joined(params["image"], constants["image"])
    path = workdir / f"{objective.NAME}.safetensors"
    objective.write(path, params, image, known=known, config=config)
    manifest = {
        "accuracy": {name: round(value, 2) for name, value in accuracy.items()},
        "unseen_crops": [config.pretrain.unseen_first, config.pretrain.unseen],
        "steps": steps,
        "images": steps * config.batching.batch,
        "command": _command(config),
        "seed": config.seed,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
    }
    path.with_suffix(".json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _command(config: ConfigDict) -> str:
    """What makes the same weights again."""
    words = ["python -m lmseg_jax.main --config configs/clip_worlds.py --workdir DIR"]
    words.append(f"--config.optimizer.steps={config.optimizer.steps}")
    for key, usual in SWITCHES.items():
        value = config.pretrain[key]
        if value != usual:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words.append(shlex.quote(f"--config.pretrain.{key}={text}"))
    return " ".join(words)


def _joined(first: dict, second: dict) -> dict:
    """One nested dict of two whose leaves never collide."""
    return first | {
        key: _joined(first[key], value) if key in first else value for key, value in second.items()
    }
