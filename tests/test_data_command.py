import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.data_command import contact_sheet, main
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source, semantic_sample
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


def test_a_contact_sheet_shows_images_tints_and_stripes_void():
    card = load_card("camvid")
    image = np.full((40, 60, 3), 200, np.uint8)
    classes = np.full((40, 60), 1, np.int32)  # building, [128, 0, 0]
    classes[:, 30:] = -1
    sheet = contact_sheet(card, [semantic_sample(image, classes, card=card, name="x")], title="t")
    found = {tuple(color) for color in sheet.reshape(-1, 3).tolist()}
    assert (200, 200, 200) in found  # the image itself, and the grey between stripes
    assert (157, 80, 80) in found  # 0.4 * 200 + 0.6 * [128, 0, 0]
    black = (sheet == 0).all(axis=-1).sum()  # 3/8 of half of 360x240, and the legend's swatch
    assert 16_000 < black < 18_000


def test_a_contact_sheet_of_a_long_taxonomy_lists_only_what_it_shows():
    card = load_card("ade20k")
    image, classes = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 4, np.int32)
    sample = semantic_sample(image, classes, card=card, name="x")
    all_of_it = dataclasses.replace(card, taxonomy=load_card("labelmefacade").taxonomy)
    short = contact_sheet(card, [sample], title="t").shape[0]
    assert short <= contact_sheet(all_of_it, [sample], title="t").shape[0]


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


def test_list_names_every_shipped_card(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:3] == ["ade20k", "ade20k_panoptic", "camvid"]
    assert "11 classes  train 367, val 101" in lines[2]
    assert not any("no reader" in line for line in lines)
