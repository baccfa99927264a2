"""Seconds of the parts of an update, each compiled by itself."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import losses, matcher
from lmseg_jax.models.keys import Rngs
from lmseg_jax.state import TrainState, merge
from lmseg_jax.step import IN_PLACE, KEEP_BARRIERS, on_cpu

# Parameters that each part has gradients of.
PARTS = {
    "backbone": ("backbone",),
    "fpn": ("pixel_decoder",),
    "decoder": ("decoder", "mask_head", "head", "query_mlp"),
    "text": ("prompt", "adapter", "adapter_norm"),
}


def measure(
    config: ConfigDict,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    state: TrainState,
    bucket: dict[str, jax.Array],
    vocabulary: dict,
    mesh: Mesh,
    runs: int,
) -> dict[str, float]:
    """Median seconds of each part.

    `backbone forward` alone; `backbone`, `fpn`, `decoder` (with masks and classes) forward and
    backward; `text` (forward, then forward and backward again, as an update does it; only for
    heads that read names); `matching` (costs and assignment of all layers); `loss` (forward and
    backward, matching left out); `optimizer` (into new memory, where an update changes its state in
    place). Parts are not fused with their neighbours and write all of their results, so their sum
    is not the update.

    Args:
      config: of the run.
      graphdef: of its model.
      optimizer: optax.
      state: is only read.
      bucket: a Batch on the device.
      vocabulary: tokens, index and valid.
      mesh: of one device.
      runs: timed calls of each part, after one that is not.
    """
    whole = (state.params, state.frozen)  # an argument: as a constant it would be folded away
    key = jax.random.key(0)
    words, index, valid = (jnp.asarray(vocabulary[name]) for name in ("tokens", "index", "valid"))

    def part_of(names: Sequence[str]) -> dict:
        return {name: state.params[name] for name in names if name in state.params}

    def model_of(whole, part: dict):
        params, frozen = whole
        return merge(graphdef, params | part, frozen)

    def see(whole, part, images):
        return model_of(whole, part).backbone(images)

    def pyramid(whole, part, levels):
        return model_of(whole, part).pixel_decoder(levels)

    def decode(whole, part, features):
        b, height, width, _ = features["levels"]["pixel4"].shape
        return model_of(whole, part).answer(
            features["levels"],
            {"embeddings": features["text"], "valid": valid},
            jnp.zeros(b, jnp.int32),
            valid=jnp.ones((b, 4 * height, 4 * width), bool),
            rngs=Rngs(key),
        )

    def names(whole, part):
        return model_of(whole, part).encode_text(words, index, valid)["embeddings"]

    def both_ways(forward: Callable) -> Callable:
        """Forward and backward, with the outputs as their own cotangents."""

        def run(whole, *inputs):
            out, back = jax.vjp(lambda *inputs: forward(whole, *inputs), *inputs)
            return back(out)

        return run

    def see_both_ways(whole, part, images):  # images have no gradient
        return both_ways(lambda whole, part: see(whole, part, images))(whole, part)

    def match(predictions, bucket):
        targets = losses.targets_of(bucket, unlabelled=config.loss.unlabelled)
        weights = {name: config.matcher[name] for name in ("classification", "focal", "dice")}
        cost = jax.lax.map(
            lambda layer: losses.matching_cost(*layer, targets, weights=weights),
            (predictions["logits"], predictions["masks"]),
        )
        count = jnp.sum(targets.real, axis=-1).astype(jnp.int32)
        return matcher.assign(cost, count, where=config.matcher.where, mesh=mesh)

    def lose(predictions, bucket):
        queries, no_object = config.model.queries, config.loss.no_object
        return losses.total_loss(
            predictions,
            bucket,
            losses.denominators(bucket["classes"], queries=queries, no_object=no_object),
            valid=valid,
            loss=config.loss,
            matching=config.matcher,
            mesh=mesh,
        )[0]

    def change(grads, memory, params):
        changes, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, changes), memory

    images = jax.random.normal(key, bucket["image"].shape, config.model.dtype)
    backbone, fpn, decoder, reader = (
        part_of(PARTS[name]) for name in ("backbone", "fpn", "decoder", "text")
    )
    clock = functools.partial(timed, runs=runs, options=on_cpu(mesh, KEEP_BARRIERS))
    in_place = on_cpu(mesh, IN_PLACE)  # the options of each program are those of an update's
    found = {}
    found["backbone forward"], levels = clock(see, whole, backbone, images)
    found["backbone"], _ = clock(see_both_ways, whole, backbone, images)
    _, pixels = clock(pyramid, whole, fpn, levels, runs=0)
    found["fpn"], _ = clock(both_ways(pyramid), whole, fpn, levels)
    reads = config.model.head == "text"
    forward, text = clock(names, whole, reader, runs=runs if reads else 0, options=None)
    features = {"levels": levels | pixels, "text": text}
    _, predictions = clock(decode, whole, decoder, features, runs=0)
    found["decoder"], _ = clock(both_ways(decode), whole, decoder, features)
    if reads:
        found["text"] = forward + clock(both_ways(names), whole, reader, options=in_place)[0]
    found["matching"], _ = clock(match, predictions, bucket)
    both, _ = clock(jax.value_and_grad(lose), predictions, bucket)
    found["loss"] = max(0.0, both - found["matching"])
    memory = state.optimizer
    found["optimizer"], _ = clock(change, state.params, memory, state.params, options=in_place)
    return found


def timed(function: Callable, *arguments, runs: int, options: dict | None) -> tuple[float, Any]:
    """Median seconds of a call compiled with `options` (0 without runs), and its result.

    One call before is not timed. Nothing is donated, so results are written to new memory.
    """
    program = jax.jit(function, compiler_options=options)
    result = jax.block_until_ready(program(*arguments))
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        found.append(time.perf_counter() - began)
    return (statistics.median(found) if found else 0.0), result
