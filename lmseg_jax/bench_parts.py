"""Seconds of the parts of an update, each compiled by itself."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import losses, matcher
from lmseg_jax.state import TrainState, merge

OF_FEATURES = {"fpn": ("pixel_decoder",), "decoder": ("decoder", "mask_head", "head", "query_mlp")}
OF_TEXT = ("prompt", "adapter", "adapter_norm")


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
    backward, matching left out); `optimizer`. Parts are not fused with their neighbours and write
    all of their results, so their sum is not the update.

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
    params, frozen = state.params, state.frozen
    key = jax.random.key(0)

    def model_with(part: dict):
        return merge(graphdef, params | part, frozen)

    def part_of(names: Sequence[str]) -> dict:
        return {name: params[name] for name in names if name in params}

    def both_ways(forward: Callable, names: Sequence[str], inputs) -> float:
        """Forward and backward, with the outputs as their own cotangents."""

        def run(part, inputs):
            out, back = jax.vjp(forward, part, inputs)
            return back(out)

        return seconds(run, part_of(names), inputs, runs=runs)

    images = jax.random.normal(key, bucket["image"].shape)
    b, height, width, _ = images.shape
    valid = jnp.ones((b, height, width), bool)
    backbone = part_of(["backbone"])

    def see(part, images):
        return model_with(part).backbone(images)

    def see_both_ways(part, images):  # images have no gradient
        out, back = jax.vjp(lambda part: see(part, images), part)
        return back(out)

    def decode(part, features):
        model = model_with(part)
        return model.answer(
            features["levels"],
            {"embeddings": features["text"], "valid": jnp.asarray(vocabulary["valid"])},
            bucket["dataset"],
            valid=valid,
            rngs=nnx.Rngs(dropout=key),
        )

    def pyramid(part, features):
        return model_with(part).pixel_decoder(features)

    def names(part):
        return model_with(part).encode_text(
            vocabulary["tokens"], vocabulary["index"], vocabulary["valid"]
        )["embeddings"]

    def names_backward(part, cotangent):
        return jax.vjp(names, part)[1](cotangent)

    levels = jax.jit(see)(backbone, images)
    text = jax.jit(names)(part_of(OF_TEXT))
    features = levels | jax.jit(pyramid)(part_of(OF_FEATURES["fpn"]), levels)
    features = {"levels": features, "text": text}
    predictions = jax.jit(decode)(part_of(OF_FEATURES["decoder"]), features)
    totals = losses.denominators(
        bucket["classes"], queries=config.model.queries, no_object=config.loss.no_object
    )
    targets = losses.targets_of(bucket, unlabelled=config.loss.unlabelled)
    weights = {name: config.matcher[name] for name in ("classification", "focal", "dice")}

    def match(predictions):
        cost = jax.lax.map(
            lambda layer: losses.matching_cost(*layer, targets, weights=weights),
            (predictions["logits"], predictions["masks"]),
        )
        count = jnp.sum(targets.real, axis=-1).astype(jnp.int32)
        return matcher.assign(cost, count, where=config.matcher.where, mesh=mesh)

    def lose(predictions):
        return losses.total_loss(
            predictions,
            bucket,
            totals,
            valid=jnp.asarray(vocabulary["valid"]),
            loss=config.loss,
            matching=config.matcher,
            mesh=mesh,
        )[0]

    def change(grads, memory, params):
        changes, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, changes), memory

    found = {
        "backbone forward": seconds(see, backbone, images, runs=runs),
        "backbone": seconds(see_both_ways, backbone, images, runs=runs),
        "fpn": both_ways(pyramid, OF_FEATURES["fpn"], levels),
        "decoder": both_ways(decode, OF_FEATURES["decoder"], features),
    }
    if config.model.head == "text":
        found["text"] = seconds(names, part_of(OF_TEXT), runs=runs)
        found["text"] += seconds(names_backward, part_of(OF_TEXT), text, runs=runs)
    found["matching"] = seconds(match, predictions, runs=runs)
    whole = seconds(jax.value_and_grad(lose), predictions, runs=runs)
    found["loss"] = max(0.0, whole - found["matching"])
    found["optimizer"] = seconds(change, params, state.optimizer, params, runs=runs)
    return found


def seconds(function: Callable, *arguments, runs: int) -> float:
    """Median seconds of a compiled call, after one call that is not timed."""
    program = jax.jit(function)
    jax.block_until_ready(program(*arguments))
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        found.append(time.perf_counter() - began)
    return statistics.median(found)
