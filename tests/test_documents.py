"""Commands of README and docs: short ones are run where a reader would stand, others checked.

The end of pytest's output lists which.
"""

import re
import shlex
import shutil

import pytest

from lmseg_jax import cli, configuration
from tests import documents
from tests.documents import PAGES, ROOT
from tests.tiny_tree import write_tree

# Commands that take seconds and no data but what `reader` has -> a file that each leaves there.
RUN = {
    "lmseg data list": "",
    "lmseg data new --images mine/images --labels mine/labels": "mine.toml",
    "lmseg data check mine.toml --root .": "",
    "lmseg data show mine.toml --root . --augmented": "mine_train.png",
    "lmseg taxonomy ade20k_panoptic coco_panoptic cityscapes_panoptic --output out/panoptic": (
        "out/panoptic/report.md"
    ),
    "lmseg figure embeddings --checkpoint runs/demo --output embeddings.png": "embeddings.png",
    "lmseg predict --checkpoint runs/demo --input photos --output out"
    ' --classes "red disc; grass; ground, sand"': "out/overlays/0.png",
}
COMMANDS, PARTS = documents.shown(), documents.mentioned()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder: images with labels, photos, and "worlds" in place of the demo's run."""
    folder = tmp_path_factory.mktemp("reader")
    write_tree(folder / "tree")
    for path in (folder / "tree/train").iterdir():
        target = folder / "mine" / ("images" if path.suffix == ".jpg" else "labels") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.copytree(ROOT / "lmseg_jax/assets/worlds", folder / "runs/demo")
    (folder / "photos").mkdir()
    shutil.copy(folder / "mine/images/0.jpg", folder / "photos")
    return folder


def test_the_pages_show_commands():
    programs = {command.split()[0] for command, _ in COMMANDS}
    assert {"make", "lmseg", "python"} <= programs and len(COMMANDS) > 20 and len(PARTS) > 20
    assert RUN.keys() <= dict(COMMANDS).keys()


@pytest.mark.parametrize("command, file", RUN.items(), ids=RUN)
def test_a_command_does_what_its_page_says(command, file, reader, monkeypatch, record_property):
    monkeypatch.chdir(reader)
    assert cli.main(shlex.split(command)[1:]) == 0
    assert (reader / file).exists()
    record_property("documents", f"run: {command} ({dict(COMMANDS)[command]})")


def test_the_card_that_was_written_trains_as_the_readme_says(reader, monkeypatch):
    """After those above: of the same folder."""
    monkeypatch.chdir(reader)
    (command,) = (text for text, _ in COMMANDS if "own_data:mine.toml," in text)
    options = configuration.parse(shlex.split(command)[3:])
    configuration.check(options.config)
    assert options.config.data.train == ("mine.toml", "world_colors")


@pytest.mark.parametrize("command, page", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_of_the_documents_can_be_given(command, page, monkeypatch, record_property):
    assert documents.wrong_with(command, monkeypatch, whole=True) == ""
    if command not in RUN:
        record_property("documents", f"parsed: {command} ({page})")


@pytest.mark.parametrize("part, page", PARTS, ids=[part for part, _ in PARTS])
def test_a_command_in_a_sentence_can_be_given(part, page, monkeypatch, record_property):
    assert documents.wrong_with(part, monkeypatch, whole=False) == ""
    record_property("documents", f"parsed: {part} ({page})")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("make nothing", "no targets ['nothing']"),
        ("lmseg data list --nonsense", "unknown: ['--nonsense']"),
        ("python -m no_such_module", "no module no_such_module"),
        ("python bench/none.py", "no file bench/none.py"),
        ("launch/none.sh demo", f"{ROOT / 'launch/none.sh'} is no program"),
        ("conda install lmseg_jax", "no program conda"),
    ],
)
def test_a_command_that_cannot_be_given_is_found(command, expected, monkeypatch):
    assert documents.wrong_with(command, monkeypatch, whole=True) == expected


def test_the_readme_lists_every_config():
    listed = re.findall(r"^\| `configs/(\w+)\.py` \|", (ROOT / "README.md").read_text(), re.M)
    there = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "base"}
    assert sorted(listed) == sorted(there)


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
