"""Trees, lists and cards as disks and editors make them: read right, or refused in one line."""

import os

import pytest

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.errors import UserError
from lmseg_jax.tokenizer import vocabulary
from tests.roads import CARD, check_refused, edit, plant, source


@pytest.fixture
def tree(tmp_path):
    """A root with one image, one label and a card."""
    return plant(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('folder = "roads"', 'folder = "../roads"', ["files.folder", "below the root"]),
        ('folder = "roads"', 'folder = "C:/roads"', ["files.folder", "below the root"]),
        ('"{split}/{name}.png"', '"/etc/{split}/{name}"', ["files.images", "below the root"]),
        ('"{split}_labels', '"~/{split}_labels', ["files.labels", "below the root"]),
        ('folder = "roads"', 'list = "x/../../{split}"', ["files.list", "below the root"]),
        ("[splits]", '[files.split_names]\ntrain = ".."\n[splits]', ["files.split_names.train"]),
        ("train = 1", '"../train" = 1', ["splits.'../train' is no name of a split"]),
        ('folder = "roads"', 'folder = "a\\u0000b"', ["files.folder", "control codes"]),
    ],
)
def test_no_path_of_a_card_leaves_the_root(tree, old, new, words):
    edit(tree, old, new)
    check_refused(lambda: load_card(tree / "roads.toml"), f"{tree}/roads.toml: ", *words)


@pytest.mark.parametrize("line", ["../train/a", "/etc/passwd", "b", "a" * 10_000, "a\0"])
def test_a_list_names_nothing_but_images_of_the_dataset(tree, line):
    edit(tree, 'folder = "roads"', 'folder = "roads"\nlist = "{split}.txt"')
    (tree / "outside.png").write_bytes((tree / "roads/train/a.png").read_bytes())
    path = tree / "roads/train.txt"
    path.write_text(f"a\n{line}\n", encoding="utf-8")
    check_refused(lambda: source(tree), f"{path}: line 2: ", "is no image of roads")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names no image; write one name a line"),
        (b"\x89PNG\r\n\x1a\n", "text in UTF-8"),
        ("a\n".encode("utf-16"), "text in UTF-8"),
        (b"a\na\n", "line 2: 'a' is also in line 1"),
        (None, "Is a directory"),
    ],
)
def test_a_list_that_is_none_is_refused(tree, content, words):
    edit(tree, 'folder = "roads"', 'folder = "roads"\nlist = "{split}.txt"')
    path = tree / "roads/train.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    check_refused(lambda: source(tree), f"{path}: ", words)


def test_a_list_may_start_with_a_byte_order_mark_and_end_lines_like_windows(tree):
    edit(tree, 'folder = "roads"', 'folder = "roads"\nlist = "{split}.txt"')
    (tree / "roads/train.txt").write_bytes(b"\xef\xbb\xbfa\r\n")
    assert source(tree).files(0) == ("roads/train/a.png", "roads/train_labels/a.png")


def test_links_that_the_user_made_are_followed_but_not_in_circles(tree):
    for folder in ("train", "train_labels"):
        aside = tree / "elsewhere" / folder
        aside.mkdir(parents=True)
        (tree / "roads" / folder / "a.png").rename(aside / "b.png")
        (tree / "roads" / folder / "town").symlink_to(aside)
        (tree / "roads" / folder / "a.png").symlink_to(aside / "b.png")
        (aside / "up").symlink_to(aside)
        (tree / "roads" / folder / "all").symlink_to(tree / "roads" / folder)
        (tree / "roads" / folder / "self").symlink_to("self")
    found = source(tree)
    assert [found[i].name for i in range(len(found))] == ["a", "town/b"]


@pytest.mark.parametrize("folder", ["train", "train_labels"])
def test_a_link_to_itself_or_to_nothing_is_named(tree, folder):
    path = tree / "roads" / folder / "a.png"
    path.unlink()
    path.symlink_to("a.png")
    check_refused(lambda: source(tree)[0], f"{path}: cannot be read: Too many levels", "restore")
    path.unlink()
    path.symlink_to("nowhere.png")
    check_refused(lambda: source(tree)[0], f"{path}: no such file")


def test_a_root_that_is_a_circle_of_links_is_no_folder(tree):
    (tree / "loop").symlink_to("loop")
    card = load_card(tree / "roads.toml")
    check_refused(lambda: open_source(card, "train", root=tree / "loop"), "--root", "no folder")
    with pytest.raises(UserError, match="which is no folder"):
        open_source(card, "train", root="x" * 5000)  # longer than a path may be


def test_a_folder_named_like_an_image_is_no_image(tree):
    (tree / "roads/train/b.png").mkdir()
    assert len(source(tree)) == 1
    (tree / "roads/train_labels/a.png").unlink()
    (tree / "roads/train_labels/a.png").mkdir()
    check_refused(lambda: source(tree), "train/a.png has no label", "train_labels/a.png")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_named_like_an_image_is_not_opened(tree, make):
    path = tree / "roads/train/a.png"
    path.unlink()
    make(path)
    check_refused(lambda: source(tree)[0], f"{path}: a folder or device", "remove it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tree):
    path = tree / "roads/train/a.png"
    path.chmod(0)
    check_refused(lambda: source(tree)[0], f"{path}: cannot be read: Permission denied")
    path.parent.chmod(0)
    check_refused(
        lambda: source(tree), f"{path.parent}: cannot read this folder: Permission denied"
    )
    path.parent.chmod(0o700)


@pytest.mark.parametrize("name", [b"\xff.png", b"\x1b[2J.png", b"a\nb.png"])
def test_a_file_name_that_cannot_be_printed_is_refused(tree, name):
    path = os.path.join(os.fsencode(tree / "roads/train"), name)
    try:
        os.link(tree / "roads/train/a.png", path)
    except OSError:
        pytest.skip("this file system has no such names")
    check_refused(lambda: source(tree), f"{tree}/roads/train: the file name ", "rename it")


def test_every_other_letter_may_be_in_a_file_name(tree):
    name = "Straße 1 (ä) 道路 🚗 $(touch x); `id`"
    for folder in ("train", "train_labels"):
        (tree / f"roads/{folder}/a.png").rename(tree / f"roads/{folder}/{name}.png")
    assert source(tree)[0].name == name
    report = check(load_card(tree / "roads.toml"), "train", root=tree)
    assert report.ok


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["name is missing"]),
        (b"\x89PNG\r\n\x1a\n\0\0", ["not a TOML file", "UTF-8"]),
        (CARD.encode("utf-16"), ["not a TOML file", "UTF-8"]),
        (CARD.replace("road", "Straße").encode("latin-1"), ["not a TOML file", "UTF-8"]),
        (b'{"name": "roads"}', ["not a TOML file"]),
        (b"name: roads\n", ["not a TOML file"]),
        (b"a = " + b"[" * 100_000, ["not a TOML file"]),
        (b"a = " + b"9" * 10_000, ["not a TOML file"]),
        (b"a.b = 1\n" * 2, ["not a TOML file", "overwrite"]),
        (b"[" + b"a." * 5_000 + b"a]", ["name is missing"]),
        (b'name = "' + b"a" * 100_000 + b' "', ["task is missing"]),
        (b'name = "' + b"! " * 100_000 + b'"', ["name is '! ! ", "letters, digits"]),
    ],
)
def test_a_card_that_is_none_is_refused(tree, content, words):
    path = tree / "roads.toml"
    path.write_bytes(content)
    check_refused(lambda: load_card(path), f"{path}: ", *words)


def test_a_card_may_start_with_a_byte_order_mark(tree):
    path = tree / "roads.toml"
    path.write_bytes(b"\xef\xbb\xbf" + CARD.encode())
    assert load_card(path).name == "roads"


def test_a_folder_a_pipe_and_nothing_are_no_card(tree):
    (tree / "folder.toml").mkdir()
    os.mkfifo(tree / "pipe.toml")
    (tree / "loop.toml").symlink_to("loop.toml")
    for name in ("folder", "pipe"):
        check_refused(lambda name=name: load_card(tree / f"{name}.toml"), f"{name}.toml: no file")
    check_refused(
        lambda: load_card(tree / "loop.toml"), "loop.toml: cannot read", "Too many levels"
    )
    check_refused(lambda: load_card(tree / "none.toml"), "none.toml: cannot read", "No such file")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id = 3", "id = 7", ["classes[1].id is 7, as in classes[0]"]),
        ('"person"', '"ROAD"', ["classes[1].name is 'ROAD', as in classes[0]"]),
        ('"person"', '"  _road "', ["classes[1].name is '_road', as in classes[0]"]),
        ('"person"', '"\\u0000"', ["classes[1].name", "control codes"]),
        ('"person"', '"a\\nb"', ["classes[1].name is 'a\\nb'", "one line"]),
        ('"person"', '"\\u001b[2J"', ["classes[1].name", "control codes"]),
        ('"person"', f'"{"per" * 100_000}"', ["classes[1].name has 300000 letters", "200"]),
        ("void = [255]", f"void = {[7] * 50_000}", ["void has 7"]),
        ("thing = true", f'thing = "{"x" * 50_000}"', ["classes[1].thing is", "true or false"]),
    ],
)
def test_names_and_ids_of_classes_are_short_and_distinct(tree, old, new, words):
    edit(tree, old, new)
    check_refused(lambda: load_card(tree / "roads.toml"), f"{tree}/roads.toml: ", *words)


def test_names_that_differ_in_how_a_letter_is_composed_are_the_same(tree):
    edit(tree, '"road"', '"caf\u00e9"')
    edit(tree, '"person"', '"cafe\u0301"')
    check_refused(lambda: load_card(tree / "roads.toml"), "classes[1].name", "as in classes[0]")


def test_names_in_any_script_reach_the_text_encoder(tree):
    edit(tree, '"road"', '"道路 🚗 Straße дорога طريق"')
    names = load_card(tree / "roads.toml").taxonomy.names
    assert names[0] == "道路 🚗 Straße дорога طريق"
    words = vocabulary([names])
    assert (words.tokens[0] != words.tokens[1]).any()
