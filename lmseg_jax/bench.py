"""`lmseg bench loader`: how fast training data is read and augmented."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmseg_jax import bench_loader, configuration, report
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
    loader.add_argument("--json", default="", metavar="FILE", help="write the numbers here, too")
    options, rest = parser.parse_known_args(argv)
    stray = [argument for argument in rest if not argument.startswith("--config.")]
    if stray:
        raise UserError(f"{stray[0]}: no such flag; keys are set by --config.key=value")
    for flag in ("images", "runs"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag} is {getattr(options, flag)}; expected at least 1")
    config = configuration.load(options.config, rest)
    configuration.check(config)
    if not config.data.train:
        raise UserError(f"{options.config}: data.train names no dataset; there is nothing to load")
    found = bench_loader.measure(config, images=options.images, runs=options.runs)
    print(bench_loader.table(found))
    if options.json:
        try:
            report.write_json(Path(options.json), found)
        except OSError as error:
            problem = f"cannot write: {error.strerror or error}"
            raise UserError(f"--json {options.json}: {problem}") from error
    return 0
