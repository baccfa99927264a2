"""One update as five programs: denominators, text, gradients of a bucket, their sum, optimizer.

Programs are compiled once each, the gradient program once a bucket shape; the composition of an
update never recompiles anything, and only one bucket's activations live at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import losses, sharding
from lmseg_jax.models.keys import Rngs
from lmseg_jax.state import TrainState, merge, project

# XLA's CPU compiler removes barriers before it merges equal computations and fuses their parts. So
# it would keep what `remat` computes again, and compute again what `layers` has finished.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
# It would copy donated moments for the sake of the parameters, which read them first anyway.
IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
# What the gradient program tells of a bucket: losses, counts, and arrays of both; see `total_loss`.
PARTS = ("loss", "classification", "focal", "dice", "final", "matched", "no_object", "nonfinite")
PARTS += ("layers", "datasets", "images")


def on_cpu(mesh: Mesh, options: dict[str, str | bool]) -> dict[str, str | bool] | None:
    """Compiler options for programs of a mesh, if that is one of CPUs."""
    return options if mesh.devices.flat[0].platform == "cpu" else None


@dataclass(frozen=True)
class Step:
    """The jitted programs of an update; see `make_step` and `run_update`.

    Attributes:
      denominators: classes i32 [batch, T] -> scalars.
      encode_text: (params, frozen) -> Text.
      gradients: (params, frozen, text, bucket, denominators, key) -> sums over a bucket.
      add: (sums, sums) -> sums; donates the first.
      update: (state, sums) -> (state, metrics); donates the state. Where the loss or the gradient
        is no number the state stays as it was, its update count too.
    """

    denominators: Callable
    encode_text: Callable
    gradients: Callable
    add: Callable
    update: Callable

    def programs(self) -> int:
        """Number of programs compiled so far."""
        return sum(
            getattr(self, name)._cache_size()
            for name in ("denominators", "encode_text", "gradients", "add", "update")
        )


def make_step(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    vocabulary: dict[str, np.ndarray],
    mesh: Mesh,
    shardings: TrainState,
) -> Step:
    """Compiles nothing yet; returns the programs of an update.

    Args:
      config: the whole run's.
      graphdef: of the model.
      optimizer: optax.
      vocabulary: tokens i32 [N, S], index i32 [M, K], valid bool [M, K].
      mesh: over which batches and parameters are split.
      shardings: of every leaf of the state.
    """
    everywhere = sharding.replicated(mesh)
    valid = jnp.asarray(vocabulary["valid"])

    def gathered(params, frozen):
        """The model with whole parameters: without this, activations may travel instead."""
        return merge(graphdef, *jax.lax.with_sharding_constraint((params, frozen), everywhere))

    def text_of(params, frozen):
        model = gathered(params, frozen)
        return model.encode_text(vocabulary["tokens"], vocabulary["index"], vocabulary["valid"])

    def denominators(classes):
        return losses.denominators(
            classes, queries=config.model.queries, no_object=config.loss.no_object
        )

    def gradients(params, frozen, text, bucket, denominators, key):
        def loss_fn(params, embeddings):
            model = gathered(params, frozen)
            predictions = model(
                bucket["image"],
                {"embeddings": embeddings, "valid": text["valid"]},
                bucket["dataset"],
                valid=bucket["segments"] != -2,
                rngs=Rngs(key),
            )
            return losses.total_loss(
                predictions,
                bucket,
                denominators,
                valid=valid,
                loss=config.loss,
                matching=config.matcher,
                mesh=mesh,
            )

        (loss, parts), (grads, text_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, text["embeddings"])
        return {"params": grads, "text": text_grads, "parts": parts | {"loss": loss}}

    def add(sums, more):
        return jax.tree.map(jnp.add, sums, more)

    def update(state, sums):
        _, text_path = jax.vjp(lambda p: text_of(p, state.frozen)["embeddings"], state.params)
        grads = jax.tree.map(jnp.add, sums["params"], text_path(sums["text"])[0])
        norm = optax.tree.norm(grads)
        changes, memory = optimizer.update(grads, state.optimizer, state.params)
        params = project(optax.apply_updates(state.params, changes))
        average = state.average
        if average:
            # young averages forget faster, so that random initial weights do not linger
            count = state.step.astype(jnp.float32)
            keep = jnp.minimum(config.optimizer.average, (1 + count) / (10 + count))
            average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        made = TrainState(state.step + 1, params, state.frozen, memory, average)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums["parts"]["loss"])
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), made, state)
        told = {"gradient_norm": norm}
        told |= {f"gradient_norm/{part}": optax.tree.norm(tree) for part, tree in grads.items()}
        if config.model.temperature_learned:
            told["temperature"] = params["head"]["temperature"]
        return state, sums["parts"] | told

    sums = {
        "params": shardings.params,
        "text": everywhere,
        "parts": dict.fromkeys(PARTS, everywhere),
    }
    return Step(
        denominators=jax.jit(denominators, out_shardings=everywhere),
        encode_text=jax.jit(text_of, out_shardings=everywhere),
        gradients=jax.jit(
            gradients, out_shardings=sums, compiler_options=on_cpu(mesh, KEEP_BARRIERS)
        ),
        add=jax.jit(add, donate_argnums=0, out_shardings=sums),
        update=jax.jit(
            update,
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
            compiler_options=on_cpu(mesh, IN_PLACE),
        ),
    )


def sound(metrics: dict[str, Any]) -> bool:
    """Whether the update that told these metrics was made; waits until it is computed."""
    return all(np.isfinite(metrics[key]) for key in ("loss", "gradient_norm"))


def gradient(
    step: Step,
    state: TrainState,
    buckets: Sequence[dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    seed: int,
) -> dict[str, Any]:
    """Sums over the buckets of one update: gradients of `params` and `text`, loss `parts`.

    Args:
      step: the programs.
      state: is only read.
      buckets: this process's share of the update's batches.
      mesh: over which batches are split.
      seed: of dropout; combined with the update and the bucket's number.
    """
    classes = np.concatenate([bucket["classes"] for bucket in buckets])
    totals = step.denominators(sharding.batch_to_global({"classes": classes}, mesh)["classes"])
    text = step.encode_text(state.params, state.frozen)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sums = None
    for number, bucket in enumerate(buckets):
        found = step.gradients(
            state.params,
            state.frozen,
            text,
            sharding.batch_to_global(bucket, mesh),
            totals,
            jax.random.fold_in(key, number),
        )
        sums = found if sums is None else step.add(sums, found)
    return sums


def run_update(
    step: Step,
    state: TrainState,
    buckets: Sequence[dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    seed: int,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer update; `state` is donated. Returns the new state and scalar metrics."""
    return step.update(state, gradient(step, state, buckets, mesh=mesh, seed=seed))
