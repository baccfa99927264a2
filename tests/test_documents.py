"""Every command that README and docs show exists, takes its flags, and names a config that builds.

`pytest -s tests/test_documents.py` prints what was run and what was parsed only.
"""

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
# They take seconds and no data. Others are parsed; what they do has tests of its own.
RUN = ("lmseg data list",)
# What stands for a name of the reader's, and the config that a page tells the reader to write.
PLACES = {"CONFIG": "demo", "try.py:roads.toml,world_colors": "demo"}
PLACES |= {"finetune:weights/maskformer,mine.toml": "finetune:worlds,mine.toml"}
STARTS = ("python ", "lmseg ", "make ", "launch/", "sbatch ", "git ", "cd ", "pip ")


def code(page):
    """Lines of a page's indented and fenced code, continuations joined, comments cut."""
    lines, fenced = [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands():
    found = {}
    for page in PAGES:
        for line in code(page):
            line = re.sub(r"\s+# .*", "", re.sub(r"^\$ ", "", line)).strip()
            bare = re.sub(r"^([A-Z_]+=\S+ )+| \[--.*\]$| &$", "", line)
            if bare.startswith(STARTS):
                found.setdefault(" ".join(bare.split()), page.relative_to(ROOT))
    return sorted(found.items())


COMMANDS = commands()


class Parsed(Exception):
    """Ends a command right after its flags were read."""


def check_flags(argv, monkeypatch):
    """Hands a `lmseg` command line to its own parser and goes no further."""
    whole = argparse.ArgumentParser.parse_known_args

    def parse(self, *args, **kwargs):
        found = whole(self, *args, **kwargs)
        if self.prog.startswith("lmseg") and self.prog.count(" ") == 1:
            raise Parsed
        return found

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(Parsed):
        cli.run(argv)


def check_config(argv):
    """Builds the config of a `lmseg_jax.main` command line and checks every value of it."""
    options = configuration.parse([PLACES.get(argument, argument) for argument in argv])
    if not any("mine" in argument for argument in argv):  # a card that the reader is to write
        configuration.check(options.config)


def check_file(path):
    assert path.is_file() and os.access(path, os.X_OK), f"{path} is no program"


def test_the_pages_show_commands():
    shown = {command.split()[0] for command, _ in COMMANDS}
    assert {"make", "lmseg", "python"} <= shown and len(COMMANDS) > 20


@pytest.mark.parametrize("command, page", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_of_the_documents_can_be_given(command, page, monkeypatch, capsys):
    program, *argv = shlex.split(command)
    if command in RUN:
        assert cli.main(argv) == 0
        capsys.readouterr()
        print(f"run: {command} ({page})")
        return
    if program == "lmseg":
        check_flags(argv, monkeypatch)
        configs = [argv[i + 1] for i, flag in enumerate(argv) if flag == "--config"]
        for name in configs:
            configuration.check(configuration.load(name))
    elif program == "python" and argv[:2] == ["-m", "lmseg_jax.main"]:
        check_config(argv[2:])
    elif program == "python" and argv[0] == "-c":
        compile(argv[1], command, "exec")
    elif program == "python" and argv[0] == "-m":
        assert importlib.util.find_spec(argv[1]), f"no module {argv[1]}"
    elif program == "python":
        assert (ROOT / argv[0]).is_file(), f"no file {argv[0]}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in argv:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
    elif program.startswith("launch/"):
        check_file(ROOT / program)
    elif program == "sbatch":
        check_file(ROOT / next(part for part in argv if part.startswith("launch/")))
    else:
        assert program in ("git", "cd", "pip"), program
    print(f"parsed: {command} ({page})")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_a_help_text(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert said.startswith(f"usage: lmseg {name}") and len(said.splitlines()) > 4


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, broken
