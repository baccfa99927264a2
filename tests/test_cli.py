import errno
import os
import runpy
import subprocess
import sys
import types

import pytest

import lmseg_jax
from lmseg_jax import cli
from lmseg_jax.errors import UserError


def fail(argv):
    raise UserError("card.toml:\n is wrong")


@pytest.fixture
def command(monkeypatch):
    """A stand-in for `lmseg data` that returns 3, or fails when told to."""

    def main(argv):
        if argv == ["interrupt"]:
            raise KeyboardInterrupt
        if argv == ["fail"]:
            fail(argv)
        if argv == ["fill"]:
            raise OSError(errno.ENOSPC, "No space left on device", "out/metrics.jsonl")
        module.called = argv
        return 3

    module = types.ModuleType("lmseg_jax.data_command")
    module.main = main
    monkeypatch.setitem(sys.modules, "lmseg_jax.data_command", module)
    return module


def test_a_subcommand_gets_the_other_arguments_and_gives_its_status(command):
    assert cli.main(["data", "check", "camvid", "--debug"]) == 3
    assert command.called == ["check", "camvid"]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_subcommand(capsys, argv):
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name}" in printed


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == lmseg_jax.__version__


def test_an_unknown_subcommand_is_one_line_and_status_2(capsys):
    assert cli.main(["daat"]) == 2
    known = ", ".join(cli.COMMANDS)
    assert capsys.readouterr().err == f"error: lmseg daat: no such command; there are: {known}\n"


def test_an_error_of_the_user_is_one_line_and_status_2(command, capsys):
    assert cli.main(["data", "fail"]) == 2
    assert capsys.readouterr().err == "error: card.toml: is wrong\n"


def test_a_full_disk_is_one_line_and_status_2(command, capsys):
    assert cli.main(["data", "fill"]) == 2
    message = "[Errno 28] No space left on device: 'out/metrics.jsonl'; make room, then the same"
    assert capsys.readouterr().err == f"error: {message} command goes on\n"


def test_debug_raises_the_error(command):
    with pytest.raises(UserError):
        cli.main(["data", "fail", "--debug"])


def test_ctrl_c_is_one_line_and_status_130(command, capsys):
    assert cli.main(["data", "interrupt"]) == 130
    assert capsys.readouterr().err.startswith("stopped")


def test_a_closed_pipe_ends_a_command_without_a_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lmseg_jax.cli", "--help"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_module_of_a_command_is_a_program(name, monkeypatch, capsys):
    """As `python -m` runs it, but in this process, which has imported JAX."""
    module = cli.COMMANDS[name][0]

    def status(*argv):
        monkeypatch.setattr(sys, "argv", [module, *argv])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return ended.value.code

    assert status("--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: lmseg {name}")
    monkeypatch.setattr(sys.modules[module], "main", fail)
    assert status("anything") == 2
    assert capsys.readouterr().err == "error: card.toml: is wrong\n"
