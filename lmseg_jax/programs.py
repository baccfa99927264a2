"""The programs of an update on arrays that need not exist: lowered, measured, compared."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lmseg_jax import assembly, flops, sharding, state
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.step import make_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Program:
    """One program of an update.

    Attributes:
      name: "text", "gradient 16x512x512", ...
      function: jitted.
      arguments: `jax.ShapeDtypeStruct`s with shardings.
      flops: of one call, over the whole mesh; see `flops.count`.
      shared: whether the devices share the work; else each does all of it.
    """

    name: str
    function: Callable
    arguments: tuple
    flops: int
    shared: bool

    def compile(self) -> jax.stages.Compiled:
        return self.function.lower(*self.arguments).compile()


@dataclass(frozen=True)
class Collective:
    """Messages of one kind and shape between the devices of a compiled program.

    Attributes:
      kind: one of COLLECTIVES.
      shape: of the array on one device, dtype first: "f32[256,256]".
      count: how many; those in the body of a loop count once.
      bytes: of all of them, on one device.
    """

    kind: str
    shape: str
    count: int
    bytes: int


def of_update(
    config: ConfigDict,
    cards: Sequence[DatasetCard],
    mesh: Mesh,
    *,
    buckets: Sequence[tuple[int, int, int]],
) -> list[Program]:
    """Every program of an update; no array is made.

    Args:
      config: of the run.
      cards: of all its datasets.
      mesh: where they would run.
      buckets: (images, height, width) of each gradient call; see `Plan.programs`.
    """
    vocabulary = assembly.vocabulary_of(config, cards)
    abstract, shardings = assembly.abstract_state(config, mesh, vocabulary=vocabulary)
    step = make_step(
        config,
        state.graph(config.model, vocabulary),
        make_optimizer(config.optimizer),
        vocabulary=vocabulary,
        mesh=mesh,
        shardings=shardings,
    )
    everywhere = sharding.replicated(mesh)
    split = NamedSharding(mesh, sharding.BATCH)

    def on(tree, place):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    def bucket(images, height, width):
        targets = config.data.max_targets
        return {
            "image": jax.ShapeDtypeStruct((images, height, width, 3), jnp.uint8, sharding=split),
            "segments": jax.ShapeDtypeStruct((images, height, width), jnp.int16, sharding=split),
            "classes": jax.ShapeDtypeStruct((images, targets), jnp.int32, sharding=split),
            "dataset": jax.ShapeDtypeStruct((images,), jnp.int32, sharding=split),
        }

    classes = bucket(config.batching.batch, 32, 32)["classes"]
    text = on(jax.eval_shape(step.encode_text, abstract.params, abstract.frozen), everywhere)
    totals = on(jax.eval_shape(step.denominators, classes), everywhere)
    key = on(jax.eval_shape(lambda: jax.random.key(0)), everywhere)

    def arguments_of(shape):
        return abstract.params, abstract.frozen, text, bucket(*shape), totals, key

    shape = next(iter(buckets), (config.batching.batch, 32, 32))  # all sums are alike
    made = step.gradients.eval_shape(*arguments_of(shape))
    sums = {
        "params": assembly.abstract(made["params"], shardings.params),
        "text": on(made["text"], everywhere),
        "parts": on(made["parts"], everywhere),
    }

    found = [
        ("denominators", step.denominators, (classes,), False),
        ("text", step.encode_text, (abstract.params, abstract.frozen), False),
    ]
    for shape in buckets:
        name = "gradient " + "x".join(map(str, shape))
        found.append((name, step.gradients, arguments_of(shape), True))
    found.append(("add", step.add, (sums, sums), False))
    found.append(("update", step.update, (abstract, sums), False))
    return [
        Program(name, function, arguments, flops.count(function, *arguments), shared)
        for name, function, arguments, shared in found
    ]


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """The messages of a compiled program, most bytes first."""
    counts: dict[tuple[str, str], int] = {}
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if match:
            for kind, sides in _results(SHAPE.findall(match[1]), match[2], started=bool(match[3])):
                key = (match[2], f"{kind}[{sides}]")
                counts[key] = counts.get(key, 0) + 1
    found = [
        Collective(kind, shape, count, count * size(shape))
        for (kind, shape), count in counts.items()
    ]
    return sorted(found, key=lambda collective: -collective.bytes)


def _results(shapes: list, kind: str, *, started: bool) -> list:
    """The shapes that a message leaves behind, of all that its line in the program names.

    Where a message is started and awaited apart, as on accelerators, the line of an all-gather has
    operands before results, that of a permutation operand, result and two counters.
    """
    if started and kind == "all-gather":
        return shapes[len(shapes) // 2 :]
    if started and kind == "collective-permute":
        return shapes[1:2]
    return shapes


def size(shape: str) -> int:
    """Bytes of an array such as "f32[256,256]"."""
    kind, sides = SHAPE.fullmatch(shape).groups()
    return BYTES.get(kind, 4) * int(np.prod([int(side) for side in sides.split(",") if side]))
