"""`lmseg plan`: what a run would cost on devices that need not be here."""

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import assembly, configuration, programs, report, sharding
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.augmentation import choose_recipe
from lmseg_jax.pipeline.buckets import Piece
from lmseg_jax.pipeline.orientation import expected_padding
from lmseg_jax.pipeline.policies import AnyPlan

MOST = 1024  # simulated devices; each is a thread
DRAWN_UPDATES = 1000  # whose mean stands for all where datasets are drawn
NOMINAL = (480, 640)  # height and width of the lying images that padding is estimated of
SHOWN = 6  # updates of the cycle, and collectives of a program, that are printed


def main(argv: Sequence[str]) -> int:
    """Compiles the programs of an update for a mesh and prints what they take.

    Raises:
      UserError: a flag or the config is wrong, or the mesh does not fit the batch.
    """
    parser = argparse.ArgumentParser(
        prog="lmseg plan",
        description=__doc__,
        epilog="--config.KEY=VALUE overrides a key of the config; config.mesh is laid over them.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a .py file, or the name of a shipped one")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--devices", type=int, help="how many, simulated on the CPU (1)")
    where.add_argument(
        "--topology", default="", help="compile for these TPUs instead, such as v5e:2x4"
    )
    parser.add_argument("--peak", type=float, help="of a device, TFLOP/s; also predict a speed")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak, 0..1")
    parser.add_argument("--json", default="", metavar="FILE", help="write the numbers here, too")
    options, rest = parser.parse_known_args(argv)
    configuration.check_flags(rest)
    devices = 1 if options.devices is None else options.devices
    if not 1 <= devices <= MOST:
        raise UserError(f"--devices is {devices}; expected 1 to {MOST}")
    if options.peak is not None and not 0 < options.peak < math.inf:
        raise UserError(f"--peak is {options.peak}; expected more than 0")
    if not 0 < options.efficiency <= 1:
        raise UserError(f"--efficiency is {options.efficiency}; expected more than 0, at most 1")
    config = configuration.load(options.config, rest)
    configuration.check(config)
    if not config.data.train:
        raise UserError(f"{options.config}: data.train names no dataset; there is nothing to plan")
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so no accelerator is taken
    if options.topology:
        mesh = topology_mesh(options.topology, config)
        compiler = f"TPU compiler, {options.topology}"
    else:
        jax.config.update("jax_num_cpu_devices", devices)
        mesh = sharding.make_mesh(
            config.mesh.data, config.mesh.fsdp, multiple=config.batching.multiple
        )
        compiler = "CPU compiler"
    found = measure(config, mesh) | {"compiler": compiler}
    if options.peak is not None:
        found["predicted"] = predict(found, peak=options.peak, efficiency=options.efficiency)
    print(table(found))
    report.write_asked(options.json, found)
    return 0


def topology_mesh(name: str, config: ConfigDict) -> Mesh:
    """The run's mesh over TPUs that are not here.

    Raises:
      UserError: libtpu is not installed or knows no such topology, or the mesh does not fit.
    """
    from jax.experimental import topologies

    # this machine is none of a pod: nobody is asked for its place in one
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # any type that libtpu knows will do, for programs are those of `name`; it asks for one
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    try:
        description = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except Exception as error:  # the plugin is missing, or refuses the name, in many ways
        raise UserError(
            f"--topology {name}: {str(error).splitlines()[0]}; it needs pip install "
            "'jax[tpu]' and a name such as v4:2x2x1, v5e:2x4 or v6e:4x4"
        ) from error
    return sharding.make_mesh(
        config.mesh.data,
        config.mesh.fsdp,
        multiple=config.batching.multiple,
        devices=description.devices,
    )


def batch_plan(config: ConfigDict, cards: Sequence[DatasetCard]) -> tuple[list[str], AnyPlan]:
    """Names of the feeds and the plan of batches, without any data.

    How many images of a dataset with two orientations lie is known from its files only; here half
    of them do.
    """
    names, shapes, parts = [], [], []
    for card in cards[: len(config.data.train)]:
        recipe = choose_recipe(card, config.data.augmentation)
        crops = {recipe.crop: card.name}
        if recipe.detr_crop is not None:
            lying, upright = recipe.oriented(1, 2).crop, recipe.oriented(2, 1).crop
            crops = {lying: f"{card.name}/landscape", upright: f"{card.name}/portrait"}
        names += crops.values()
        shapes += crops
        parts.append([1] * len(crops))
    return names, assembly.plan_of(config, shapes, parts)


def padding_of(config: ConfigDict, cards: Sequence[DatasetCard]) -> dict[str, float]:
    """Percent of padding in the crops of each feed whose images no crop cuts to one shape.

    Sizes of images are known from files only; here all are NOMINAL, lying or upright.
    """
    found = {}
    for card in cards[: len(config.data.train)]:
        recipe = choose_recipe(card, config.data.augmentation)
        if recipe.detr_crop is not None:
            for size, side in ((NOMINAL, "landscape"), (NOMINAL[::-1], "portrait")):
                share = expected_padding(recipe.oriented(*size), np.array([size]))
                found[f"{card.name}/{side}"] = share
    return found


def measure(config: ConfigDict, mesh: Mesh) -> dict:
    """Compiles every program of an update and reads what the compiler says of it.

    Returns:
      `mesh`, `devices`, `batch`; `updates` (images by feed of the first updates of the cycle);
      `padding` (percent, by feed that is padded); `programs` (a row each: flops a device, bytes,
      collectives); `flops` of the mean update over all devices, of which
      what each computes whole counts once, `flops_a_device`.
    """
    cards = assembly.load_cards(config)
    names, plan = batch_plan(config, cards)
    micro = config.batching.micro
    rows = []
    for program in programs.of_update(config, cards, mesh, buckets=plan.programs(micro=micro)):
        began = time.perf_counter()
        compiled = program.compile()
        print(f"{program.name}: {time.perf_counter() - began:.0f} s to compile", file=sys.stderr)
        memory = compiled.memory_analysis()
        messages = programs.collectives(compiled)
        rows.append(
            {
                "name": program.name,
                "flops": program.flops,
                "flops_a_device": program.flops // (mesh.size if program.shared else 1),
                "argument_bytes": memory.argument_size_in_bytes,
                "temporary_bytes": memory.temp_size_in_bytes,
                "message_bytes": sum(message.bytes for message in messages),
                "collectives": [dataclasses.asdict(message) for message in messages],
            }
        )
    updates = updates_of(plan, config)
    gradients, whole = mean_flops(plan, updates, {row["name"]: row["flops"] for row in rows})
    return {
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "batch": plan.batch,
        "plan": plan.describe(),
        "feeds": names,
        "padding": padding_of(config, cards),
        "updates": [_images(pieces, len(names)) for pieces in updates[:SHOWN]],
        "programs": rows,
        "flops": gradients + whole,
        "flops_a_device": gradients / mesh.size + whole,
    }


def updates_of(plan: AnyPlan, config: ConfigDict) -> list[list[Piece]]:
    """The pieces of every update of a plan's cycle, or of many where datasets are drawn."""
    count = DRAWN_UPDATES if config.batching.policy != "stratified" else plan.cycle
    return [plan.pieces(update, micro=config.batching.micro) for update in range(count)]


def mean_flops(
    plan: AnyPlan, updates: Sequence[Sequence[Piece]], flops: dict[str, int]
) -> tuple[float, float]:
    """FLOPs of the mean update over the whole mesh: of its gradients, and of all other programs.

    Gradients are added to those of the update's pieces before.
    """
    calls = [
        f"gradient {len(piece)}x{'x'.join(map(str, plan.shapes[piece.rows[0][0]]))}"
        for pieces in updates
        for piece in pieces
    ]
    gradients = sum(flops[call] for call in calls) / len(updates)
    sums = (len(calls) / len(updates) - 1) * flops["add"]
    return gradients, sums + sum(flops[name] for name in ("denominators", "text", "update"))


def update_flops(config: ConfigDict) -> float:
    """FLOPs of the mean update, counted; nothing is compiled."""
    cards = assembly.load_cards(config)
    _, plan = batch_plan(config, cards)
    mesh = sharding.make_mesh(1, 1, multiple=config.batching.multiple, devices=jax.devices()[:1])
    buckets = plan.programs(micro=config.batching.micro)
    found = programs.of_update(config, cards, mesh, buckets=buckets)
    flops = {program.name: program.flops for program in found}
    return sum(mean_flops(plan, updates_of(plan, config), flops))


def update_pixels(config: ConfigDict) -> float:
    """Pixels of all crops of the mean update."""
    _, plan = batch_plan(config, assembly.load_cards(config))
    updates = updates_of(plan, config)
    areas = [math.prod(shape) for shape in plan.shapes]
    pieces = [piece for pieces in updates for piece in pieces]
    return sum(len(piece) * areas[piece.rows[0][0]] for piece in pieces) / len(updates)


def _images(pieces: Sequence[Piece], sources: int) -> list[int]:
    """How many images each source gives to an update."""
    given = [source for piece in pieces for source, _ in piece.rows]
    return np.bincount(given, minlength=sources).tolist()


def predict(found: dict, *, peak: float, efficiency: float) -> dict[str, float]:
    """Seconds of an update and images a second, if nothing but arithmetic took time.

    Args:
      found: of `measure`.
      peak: of a device, TFLOP/s.
      efficiency: share of the peak that is reached, 0..1.
    """
    seconds = found["flops_a_device"] / (peak * 1e12 * efficiency)
    images = found["batch"] / seconds
    return {
        "peak": peak,
        "efficiency": efficiency,
        "seconds": seconds,
        "images_a_second": images,
    }


def table(found: dict) -> str:
    """What was found, for a person."""
    mesh = " x ".join(f"{count} {axis}" for axis, count in found["mesh"].items())
    lines = [
        f"{found['devices']} devices ({mesh}); {found['plan']}",
        "",
        "images of the first updates:",
    ]
    width = max(map(len, found["feeds"]))
    for feed, counts in zip(found["feeds"], np.array(found["updates"]).T.tolist(), strict=True):
        lines.append(f"  {feed:{width}}" + "".join(f"{count:6}" for count in counts))
    for feed, share in found["padding"].items():
        size = "{1}x{0}".format(*(NOMINAL if feed.endswith("landscape") else NOMINAL[::-1]))
        lines.append(f"  {share:.0f} % of {feed} is padding, if its images are {size}")
    width = max(len(row["name"]) for row in found["programs"])
    lines += [
        "",
        f"each program on one device (memory as the {found['compiler']} plans it):",
        f"  {'':{width}}  GFLOP  arguments MiB  temporaries MiB  messages MiB",
    ]
    for row in found["programs"]:
        mebibytes = [
            row[key] / 2**20 for key in ("argument_bytes", "temporary_bytes", "message_bytes")
        ]
        cells = f"{row['flops_a_device'] / 1e9:7.1f}" + "".join(
            f"{value:{size}.1f}" for value, size in zip(mebibytes, (15, 17, 14), strict=True)
        )
        lines.append(f"  {row['name']:{width}}{cells}")
    for row in found["programs"]:
        if row["collectives"]:
            lines += ["", f"messages of {row['name']}, most bytes first:"]
        for message in row["collectives"][:SHOWN]:
            size = f"{message['bytes'] / 2**20:9.3f} MiB"
            lines.append(f"{size}  {message['count']} x {message['kind']} {message['shape']}")
        more = len(row["collectives"]) - SHOWN
        if more > 0:
            lines.append(f"            and {more} more")
    whole, each = found["flops"] / 1e12, found["flops_a_device"] / 1e12
    lines += [
        "",
        f"an update: {whole:.2f} TFLOP over all devices (text and update, which each computes "
        f"whole, counted once), {each:.2f} on each",
    ]
    if "predicted" in found:
        predicted = found["predicted"]
        lines.append(
            f"at {predicted['efficiency']:.0%} of {predicted['peak']:g} TFLOP/s: "
            f"{predicted['seconds']:.3f} s an update, {predicted['images_a_second']:.1f} images/s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("plan")
