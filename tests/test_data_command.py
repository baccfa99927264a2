import json

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.data_command import main
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """A root with one CamVid-like frame in train and in val, and a card that expects just these."""
    for split in ("train", "val"):
        for folder, array in (
            (split, np.full((6, 8, 3), 120, np.uint8)),
            (f"{split}annot", np.full((6, 8), 3, np.uint8)),
        ):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / "camvid" / folder / "one.png")
    with open(load_card("camvid").path, encoding="utf-8") as file:
        text = file.read()
    text = text.replace("train = 367", "train = 1").replace("val = 101", "val = 1")
    (tmp_path / "card.toml").write_text(text, encoding="utf-8")
    return tmp_path


def test_check_prints_a_verdict_for_each_split_and_returns_0(tree, capsys):
    assert main(["check", str(tree / "card.toml"), "--root", str(tree)]) == 0
    printed = capsys.readouterr().out
    assert "camvid/train: OK, 1 images (card: 1)" in printed
    assert "camvid/val: OK, 1 images (card: 1)" in printed
    assert "problem" not in printed


def test_check_returns_2_and_says_what_is_wrong(tree, capsys):
    Image.fromarray(np.full((6, 8), 99, np.uint8)).save(tree / "camvid/valannot/one.png")
    assert main(["check", str(tree / "card.toml"), "--root", str(tree)]) == 2
    printed = capsys.readouterr().out
    assert "camvid/train: OK" in printed
    assert "camvid/val: NOT USABLE" in printed
    assert "problem: unmapped label 99" in printed


def test_check_as_json_is_one_list_of_reports(tree, capsys):
    argv = ["check", str(tree / "card.toml"), "--root", str(tree), "--split", "val", "--json"]
    assert main(argv) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert (report["dataset"], report["split"], report["found"]) == ("camvid", "val", 1)
    assert report["classes"]["road"] == {"images": 1, "segments": 1, "share": 100.0}


def test_show_writes_a_picture_and_prints_its_path(tree, capsys):
    path = tree / "sheet.png"
    argv = ["show", str(tree / "card.toml"), "--root", str(tree), "--output", str(path)]
    assert main(argv) == 0
    assert capsys.readouterr().out.strip() == str(path)
    with Image.open(path) as image:
        assert image.mode == "RGB"


def test_a_world_is_shown_without_a_root(tmp_path, capsys):
    path = tmp_path / "world.png"
    argv = ["show", "world_coarse", "--split", "val", "--count", "2", "--output", str(path)]
    assert main(argv) == 0
    assert path.is_file()
    assert len(open_source(load_card("world_coarse"), "val", root="")) == 200


def test_show_refuses_what_it_cannot_do(tree):
    card = ["show", str(tree / "card.toml"), "--root", str(tree)]
    with pytest.raises(UserError, match="--count is 0"):
        main([*card, "--count", "0"])
    with pytest.raises(UserError, match=r"--output .*nowhere.*cannot write"):
        main([*card, "--output", str(tree / "nowhere/sheet.png")])


def test_augmented_crops_are_drawn_beside_the_images_by_the_seed(tree, capsys):
    sheets = []
    for number, extra in enumerate(([], ["--seed", "0"], ["--seed", "1"])):
        path = tree / f"{number}.png"
        argv = ["show", str(tree / "card.toml"), "--root", str(tree), "--output", str(path)]
        assert main([*argv, "--augmented", *extra]) == 0
        with Image.open(path) as image:
            sheets.append(np.asarray(image))
    assert sheets[0].shape[1] == 3 * (2 * 300 + 4) + 2 * 10  # the image and two crops
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_new_writes_a_card_and_says_how_to_go_on(tree, capsys, monkeypatch):
    monkeypatch.chdir(tree)
    argv = ["new", "--images", "camvid/{split}", "--labels", "camvid/{split}annot"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "camvid.toml: 1 classes, images: train 1, val 1" in printed
    assert main(["check", "camvid.toml", "--root", "."]) == 0
    for command in ("data check camvid.toml --root .", "own_data:camvid.toml"):
        assert command in printed


def test_list_names_every_shipped_card(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:3] == ["ade20k", "ade20k_panoptic", "camvid"]
    assert "11 classes  train 367, val 101" in lines[2]
    assert not any("no reader" in line for line in lines)
