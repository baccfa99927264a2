"""`lmseg bench loader|step|matcher|inference`: how fast data is read, models learn and answer."""

import argparse
from collections.abc import Sequence

from lmseg_jax import (
    bench_inference,
    bench_loader,
    bench_matcher,
    bench_step,
    configuration,
    plan,
    report,
)
from lmseg_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes it as JSON if asked to.

    Raises:
      UserError: a flag or the config is wrong, or data is missing.
    """
    parser = argparse.ArgumentParser(prog="lmseg bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    loader = commands.add_parser(
        "loader",
        help="images a second of the training data, beside the same recipe written with Pillow",
        epilog="--config.KEY=VALUE overrides a key of the config.",
        allow_abbrev=False,
    )
    loader.add_argument("--config", required=True, help="a .py file, or the name of a shipped one")
    loader.add_argument("--images", type=int, default=64, help="images of each dataset in a run")
    loader.add_argument("--runs", type=int, default=5, help="alternating runs, of which the median")
    step = commands.add_parser(
        "step",
        help="seconds, FLOPs and memory of an update of the paper's model, and its parts",
        epilog="--config.KEY=VALUE overrides a key of lmseg_semantic.",
        allow_abbrev=False,
    )
    step.add_argument("--size", type=int, default=256, help="of the square images")
    step.add_argument("--batch", type=int, default=2, help="images of an update")
    step.add_argument("--head", choices=bench_step.HEADS, default="text")
    step.add_argument("--targets", type=int, default=24, help="segments of an image")
    step.add_argument("--slots", type=int, default=0, help="room for segments; 0 = --targets")
    step.add_argument("--runs", type=int, default=5, help="updates, of which the median")
    matching = commands.add_parser(
        "matcher",
        help="seconds of the assignment of all decoder layers, on the host beside the device",
        allow_abbrev=False,
    )
    matching.add_argument("--batch", type=int, default=16, help="images")
    matching.add_argument("--queries", type=int, default=100, help="of an image")
    matching.add_argument("--targets", type=int, default=24, help="segments of an image")
    matching.add_argument("--slots", type=int, default=0, help="room for segments; 0 = --targets")
    matching.add_argument("--layers", type=int, default=6, help="of the decoder")
    matching.add_argument("--runs", type=int, default=11, help="alternating runs, and the median")
    inference = commands.add_parser(
        "inference",
        help="seconds an image of LMSeg with cached names, beside MaskFormer with a linear head",
        epilog="--config.KEY=VALUE overrides a key of lmseg_semantic.",
        allow_abbrev=False,
    )
    inference.add_argument("--size", type=int, default=512, help="of the square image")
    inference.add_argument("--runs", type=int, default=11, help="alternating runs, and the median")
    for command in (loader, step, matching, inference):
        command.add_argument("--json", default="", metavar="FILE", help="write the numbers here")
    options, rest = parser.parse_known_args(argv)
    configuration.check_flags(rest)
    for flag in ("images", "runs", "batch", "queries", "targets", "layers"):
        if getattr(options, flag, 1) < 1:
            raise UserError(f"--{flag} is {getattr(options, flag)}; expected at least 1")
    size = getattr(options, "size", 32)
    if size < 32 or size % 32:
        raise UserError(f"--size is {size}; expected a multiple of 32")
    run = {"loader": _loader, "step": _step, "matcher": _matcher, "inference": _inference}
    found, text = run[options.command](options, rest)
    print(text)
    report.write_asked(options.json, found)
    return 0


def _loader(options: argparse.Namespace, overrides: list[str]) -> tuple[dict, str]:
    config = configuration.load(options.config, overrides)
    configuration.check(config)
    if not config.data.train:
        raise UserError(f"{options.config}: data.train names no dataset; there is nothing to load")
    found = bench_loader.measure(config, images=options.images, runs=options.runs)
    return found, bench_loader.table(found)


def _step(options: argparse.Namespace, overrides: list[str]) -> tuple[dict, str]:
    slots = _slots(options)
    config = bench_step.paper_config(
        options.head, batch=options.batch, slots=slots, overrides=tuple(overrides)
    )
    found = bench_step.measure(
        config, size=options.size, targets=options.targets, runs=options.runs
    )
    if "text" in found:  # of a batch of the recipe's own crops, whatever --batch and --size are
        update = plan.update_flops(configuration.load("lmseg_semantic", overrides))
        found["text"] |= {"recipe_update": update, "recipe_share": found["text"]["ours"] / update}
    return found, bench_step.table(found)


def _matcher(options: argparse.Namespace, overrides: list[str]) -> tuple[dict, str]:
    if overrides:
        raise UserError(f"{overrides[0]}: no such flag; the matcher alone reads no config")
    slots = _slots(options)
    if slots > options.queries:
        raise UserError(f"--queries is {options.queries}; expected at least one a slot, {slots}")
    sizes = {name: getattr(options, name) for name in ("batch", "queries", "targets", "layers")}
    found = bench_matcher.measure(**sizes, slots=slots, runs=options.runs)
    return found, bench_matcher.table(found)


def _slots(options: argparse.Namespace) -> int:
    slots = options.slots or options.targets
    if slots < options.targets:
        raise UserError(f"--slots is {slots}; expected at least --targets, {options.targets}")
    return slots


def _inference(options: argparse.Namespace, overrides: list[str]) -> tuple[dict, str]:
    configs = bench_inference.paper_configs(tuple(overrides))
    found = bench_inference.measure(configs, size=options.size, runs=options.runs)
    return found, bench_inference.table(found)


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("bench")
