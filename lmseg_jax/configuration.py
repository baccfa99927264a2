"""What a run is asked to do: flags and config files read, checked, and compared with a workdir."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from lmseg_jax.configuration_rules import check_values
from lmseg_jax.datasets.card import DatasetCard
from lmseg_jax.errors import UserError

# Keys that say where and how fast, but not what is learned.
NOT_LEARNED = ("mesh.", "log.", "evaluation.", "checkpoint.", "data.evaluate")
NOT_LEARNED += ("data.root", "data.workers", "data.threads")
NOT_LEARNED += ("data.on_error",)  # a run that stopped at a bad file may go on past it
NOT_LEARNED += ("model.remat",)  # the same numbers, up to rounding, for less memory
NOT_LEARNED += ("model.manual.restrict",)  # decides how images are segmented, after training

# Keys that the first workdirs did not have, with the values that stand for what was done then.
BEFORE = {
    "data.names": "first",
    "batching.policy": "stratified",
    "model.dtype": "float32",
    "model.pixels": "clip",
    "model.similarity": "cosine",
    "model.temperature_learned": False,
    "model.query_mlp": False,
    "model.adapter_norm": False,
    "model.resnet.affine": False,
    "model.pixel_decoder.mask_width": 0,
    "model.decoder.queries": "zeros",
    "model.decoder.project": True,
    "model.decoder.norm_between": False,
    "model.text.template": "{name}",
    "pretrained.model": "",
}


@dataclass(frozen=True)
class Options:
    """One command line.

    Attributes:
      config: locked; not checked yet.
      workdir: folder of everything the run writes.
      debug: True shows the traceback of a user's error.
      distributed: True joins the other processes of a cluster before anything else.
      coordinator: "host:port" of process 0, "" = found from the cluster's environment.
      processes: how many there are, None = found likewise.
      process: number of this one, None = found likewise.
      heartbeat: seconds without a sign of life after which a process counts as dead, and all end.
    """

    config: ConfigDict
    workdir: Path
    debug: bool = False
    distributed: bool = False
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    heartbeat: int = 100


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; --help lists the flags")


def parse(argv: Sequence[str]) -> Options:
    """Reads a command line: `--config FILE --workdir DIR [--config.key=value ...] [--debug]`.

    A cluster's `--coordinator`, `--processes` and `--process` default to the environment's
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UserError: a flag is missing or unknown, or the config cannot be loaded.
    """
    parser = _Parser(
        prog="python -m lmseg_jax.main",
        description="Trains, evaluates and checkpoints; the same command resumes.",
        epilog="--config.KEY=VALUE overrides a key of the config.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a .py file, or the name of a shipped one")
    parser.add_argument("--workdir", required=True, help="where everything is written")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "--distributed", action="store_true", help="join a cluster found from its environment"
    )
    environment = os.environ.get
    parser.add_argument("--coordinator", default=environment("JAX_COORDINATOR_ADDRESS", ""))
    parser.add_argument("--processes", type=int, default=environment("JAX_NUM_PROCESSES"))
    parser.add_argument("--process", type=int, default=environment("JAX_PROCESS_ID"))
    parser.add_argument(
        "--heartbeat", type=int, default=100, help="seconds after which a silent process is dead"
    )
    known, rest = parser.parse_known_args(argv)
    if "://" in known.workdir:
        raise UserError(f"--workdir {known.workdir}: no address; mount it and name the folder")
    check_flags(rest)
    if known.heartbeat < 1:
        raise UserError(f"--heartbeat {known.heartbeat}: is below 1 second")
    if known.coordinator and (known.processes is None or known.process is None):
        raise UserError("--coordinator needs --processes and --process; add both")
    return Options(
        config=load(known.config, rest),
        workdir=Path(known.workdir),
        debug=known.debug,
        distributed=known.distributed or bool(known.coordinator),
        coordinator=known.coordinator,
        processes=known.processes,
        process=known.process,
        heartbeat=known.heartbeat,
    )


def check_flags(rest: Sequence[str]) -> None:
    """Raises UserError at the first argument that no parser knew and that sets no config key."""
    stray = [argument for argument in rest if not argument.startswith("--config.")]
    if stray:
        raise UserError(f"{stray[0]}: no such flag; keys are set by --config.key=value")


def shipped_folder() -> Path:
    """configs/ inside the installed package, or at the top of the repository."""
    here = Path(__file__).resolve().parent
    inside = here / "configs"
    return inside if inside.is_dir() else here.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the configs that come with the project, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.py") if path.stem != "__init__")


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a config file and applies overrides; the result is locked, not yet checked.

    Args:
      path_or_name: a .py file, or the name of a shipped config such as "demo"; text after a colon
        is handed to its `get_config`.
      overrides: "--config.optimizer.steps=10" and the like. Tuples are written "('a', 'b')" or a,b.

    Raises:
      UserError: there is no such file, it fails, or an override names no key or has the wrong type.
    """
    name, _, argument = str(path_or_name).partition(":")
    path = _find(name)
    with _configs_importable(path.parent):
        config = _run(path, argument)
    config.lock()
    for override in overrides:
        _override(config, override)
    return config


def check(config: ConfigDict) -> None:
    """Compares every key and value with what a run can do.

    Raises:
      UserError: a key is unknown or missing, or a value impossible; names the key.
    """
    check_values(flat(config), flat(load("base")))


def restored(values: Mapping[str, object], *, where: str) -> ConfigDict:
    """The config that a run or a conversion wrote down as JSON; keys it lacks have their defaults.

    Args:
      values: nested; all of a config, or some of its sections.
      where: file that they come from, for messages.

    Raises:
      UserError: there is no such key here, or its value is of another type.
    """
    config = load("base")
    known = flat(config)
    for key, value in flat(ConfigDict(dict(values))).items():
        if key not in known:
            raise UserError(
                f"{where}: has the key {key}, which this version does not know; use the version of"
                " lmseg_jax that wrote it"
            )
        try:
            _set(config, key, tuple(value) if isinstance(known[key], tuple) else value)
        except TypeError as error:
            raise UserError(
                f"{where}: {key} is {value!r} ({error}); write the file again"
            ) from error
    return config


def flat(config: ConfigDict) -> dict[str, object]:
    """Values by dotted key, sorted."""
    values = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            values[key] = value
    return values


def fingerprint(
    config: ConfigDict, cards: Sequence[DatasetCard], files: Mapping[str, Sequence]
) -> dict[str, object]:
    """What decides the weights of a run, as JSON: keys, contents of cards, lists of files.

    Roots, mesh, workers and the keys of evaluation, checkpoints and logs are left out, so these may
    change between two starts of one run.

    Args:
      config: of the run.
      cards: of the training sets, in order.
      files: JSON-able list of files of each set: relative names and sizes.
    """
    found = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flat(config).items()
        if not key.startswith(NOT_LEARNED)
    }
    found["mode"] = "pretrain" if config.mode == "pretrain" else "train"
    found["data.train"] = [card.name for card in cards]
    for card in cards:
        contents = dataclasses.asdict(dataclasses.replace(card, path=""))
        found[f"card {card.name}"] = _digest(contents)
    for name, listed in files.items():
        found[f"files of {name}"] = f"{len(listed)} files, {_digest(list(listed))}"
    return found


def differences(workdir: Mapping[str, object], asked: Mapping[str, object]) -> list[str]:
    """One line for each entry in which two fingerprints differ, by name."""
    lines = []
    for key in [*workdir, *(key for key in asked if key not in workdir)]:
        there = workdir.get(key, BEFORE.get(key, "nothing"))
        here = asked.get(key, "nothing")
        if there != here:
            lines.append(f"{key}: {there} in the workdir, {here} asked for")
    return lines


def _digest(contents: object) -> str:
    text = json.dumps(contents, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find(name: str) -> Path:
    """The file meant by a path or a shipped name."""
    is_path = name.endswith(".py") or "/" in name or os.sep in name
    path = Path(name) if is_path else shipped_folder() / f"{name}.py"
    if not path.is_file():
        names = ", ".join(shipped_configs())
        raise UserError(f"--config {name}: no such file; give a .py file, or one of: {names}")
    return path.resolve()


@contextlib.contextmanager
def _configs_importable(folder: Path) -> Iterator[None]:
    """Within it, `from configs import base` finds the folder's own modules, then the shipped ones.

    A package of its own rather than an entry of sys.path: two projects' `configs` never mix, and
    nothing stays behind.
    """

    def loaded() -> dict[str, types.ModuleType]:
        return {
            name: module
            for name, module in sys.modules.items()
            if name == "configs" or name.startswith("configs.")
        }

    hidden = loaded()
    for name in hidden:
        del sys.modules[name]
    package = types.ModuleType("configs")
    package.__path__ = [str(folder)] * (folder.name == "configs") + [str(shipped_folder())]
    sys.modules["configs"] = package
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(hidden)


def _run(path: Path, argument: str) -> ConfigDict:
    """Calls get_config of a file."""
    spec = importlib.util.spec_from_file_location("lmseg_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:  # a config is a program: whatever stops it is the user's to mend
        raise UserError(f"{path}: {type(error).__name__}: {error}; mend this config") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config


def _override(config: ConfigDict, text: str) -> None:
    """Applies "--config.key=value"."""
    flag, equals, value = text.partition("=")
    key = flag.removeprefix("--config.")
    if not equals:
        raise UserError(f"{flag}: no value; write {flag}=VALUE")
    values = flat(config)
    if key not in values:
        inner = [known for known in values if known.startswith(f"{key}.")]
        if inner:
            raise UserError(f"{flag}: is a section; set its keys, such as --config.{inner[0]}")
        nearest = difflib.get_close_matches(key, values, n=1, cutoff=0)[0]
        raise UserError(f"{flag}: no such key; the nearest is --config.{nearest}")
    _set(config, key, _value(flag, value, type(values[key])))


def _set(config: ConfigDict, key: str, value: object) -> None:
    """Sets a dotted key."""
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value


def _value(flag: str, text: str, kind: type) -> object:
    """The value that a text stands for where a key holds a `kind`."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            return _tuple(text)
        return kind(text)
    except (KeyError, ValueError, SyntaxError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        words |= {tuple: "a list such as a,b or \"('a', 'b')\""}
        raise UserError(f"{flag}={text}: expects {words.get(kind, kind.__name__)}") from None


def _tuple(text: str) -> tuple:
    """A tuple from "('a', 1)", "[1, 2]", "a,b", "a" or nothing."""
    if text.strip()[:1] in ("(", "["):
        return tuple(ast.literal_eval(text.strip()))
    items = [item.strip() for item in text.split(",") if item.strip()]
    return tuple(_literal(item) for item in items)


def _literal(text: str) -> object:
    """A number where the text is one, else the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
