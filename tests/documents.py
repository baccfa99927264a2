"""The commands that README and docs show, and what is checked of one that is not run."""

import argparse
import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest

from lmseg_jax import cli, configuration

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*.md")]
    + [*ROOT.glob("launch/*.md")]
)
# What stands for a name of the reader's, and the config that a page tells the reader to write.
PLACES = {"CONFIG": "demo", "try.py:roads.toml,world_colors": "demo"}
PLACES |= {"finetune:weights/maskformer,mine.toml": "finetune:worlds,mine.toml"}
STARTS = ("python ", "lmseg ", "make ", "launch/", "sbatch ", "git ", "cd ", "pip ")


def code(page):
    """Lines of a page's indented and fenced code, continuations joined; and all its other text."""
    lines, text, fenced = [], [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
        else:
            text.append(line)
    return "\n".join(lines).replace("\\\n", " ").splitlines(), "\n".join(text)


def shown():
    """(command, page) of every command in a block of code."""
    found = {}
    for page in PAGES:
        for line in code(page)[0]:
            line = re.sub(r"\s+# .*", "", re.sub(r"^\$ ", "", line)).strip()
            bare = re.sub(r"^([A-Z_]+=\S+ )+| \[--.*\]$| &$", "", line)
            if bare.startswith(STARTS):
                found.setdefault(" ".join(bare.split()), str(page.relative_to(ROOT)))
    return sorted(found.items())


def mentioned():
    """(part of a command, page) for every one in a sentence or table."""
    found = {}
    for page in PAGES:
        for part in re.findall(r"`([^`]+)`", code(page)[1]):
            part = " ".join(part.replace("...", "").split())
            if part.startswith((*STARTS, "--config ")):
                found.setdefault(part, str(page.relative_to(ROOT)))
    return sorted(found.items())


def wrong_with(command, monkeypatch, *, whole):
    """Why a command could not be given: a program, flag, file or target that is not there, or "".

    Args:
      command: as a page shows it.
      whole: False for a part of a command, which may leave out what is required.

    Raises:
      UserError: a config is not there, or its values do not fit.
    """
    program, *argv = shlex.split(command)
    argv = [PLACES.get(argument, argument) for argument in argv]
    if program == "--config":
        configuration.check(configuration.load(argv[0]))
    elif program == "lmseg":
        rest = flags_left(argv, monkeypatch, whole=whole)
        unknown = [flag for flag in rest if not flag.startswith("--config.")]
        if unknown:
            return f"unknown: {unknown}"
        for name in (argv[i + 1] for i, flag in enumerate(argv) if flag == "--config"):
            configuration.check(configuration.load(name, rest))
    elif program == "python" and argv[:2] == ["-m", "lmseg_jax.main"]:
        options = configuration.parse(argv[2:])
        # the form of a card that the reader is to write is checked where it is there
        if not any(part.endswith(".toml") for part in re.split("[:,]", ",".join(argv))):
            configuration.check(options.config)
    elif program == "python" and argv[0] == "-c":
        compile(argv[1], command, "exec")
    elif program == "python" and argv[0] == "-m":
        return "" if importlib.util.find_spec(argv[1]) else f"no module {argv[1]}"
    elif program == "python":
        return "" if (ROOT / argv[0]).is_file() else f"no file {argv[0]}"
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [target for target in argv if target not in targets]
        return f"no targets {missing}" if missing else ""
    elif program.startswith("launch/") or program == "sbatch":
        path = ROOT / next(part for part in (program, *argv) if part.startswith("launch/"))
        return "" if path.is_file() and os.access(path, os.X_OK) else f"{path} is no program"
    elif program not in ("git", "cd", "pip"):
        return f"no program {program}"
    return ""


class Parsed(Exception):
    """Ends a command right after its flags were read."""


def flags_left(argv, monkeypatch, *, whole):
    """What its own parser does not know of a `lmseg` command line; the command goes no further."""
    read = argparse.ArgumentParser.parse_known_args

    def parse(self, *args, **kwargs):
        if not whole:
            for part in (*self._actions, *self._mutually_exclusive_groups):
                part.required = False
        found = read(self, *args, **kwargs)
        if self.prog.startswith("lmseg") and self.prog.count(" ") == 1:
            raise Parsed(found[1])
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(Parsed) as ended:
        cli.run(argv)
    return ended.value.args[0]
