"""`lmseg taxonomy`, with worlds-clip's text tower and a model of fixed answers."""

import numpy as np
import pytest
from PIL import Image

from lmseg_jax import cli, taxonomy_command
from lmseg_jax.datasets.card import load_card
from lmseg_jax.pretrained import text
from lmseg_jax.segmentation import Segmentation

CARDS = ("world_patterns", "world_coarse")


class Answers:
    """Two taxonomies: patterns answers ground and striped objects, coarse ground and round ones.

    The top half is ground in both, and of the bottom half coarse calls a half water.
    """

    def __init__(self):
        self.taxonomies = {"world_patterns": load_card("world_patterns").taxonomy}

    def segment(self, image, *, taxonomy):
        known = load_card(taxonomy).taxonomy
        labels = np.full(image.shape[:2], known.names.index("ground"), np.int32)
        quarter = labels.shape[0] // 4
        if taxonomy == "world_patterns":
            labels[2 * quarter : 3 * quarter] = known.names.index("striped object")
        else:
            assert taxonomy.endswith("world_coarse.toml")  # not of training: by its path
            labels[2 * quarter : 3 * quarter] = known.names.index("round thing")
            labels[3 * quarter :] = known.names.index("water")
        return Segmentation(labels, labels + 1, [], known)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(taxonomy_command, "load", lambda path: Answers())
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images/0.png")

    def command(*more, cards=CARDS):
        return cli.main(["taxonomy", *cards, "--output", str(tmp_path / "out"), *more])

    return command


@pytest.fixture
def vectors(monkeypatch):
    """Embeddings without the tower."""
    known = {name: i for i, name in enumerate(("ground", "water"))}

    def embed(source, names, *, template):
        rows = [known.get(name, 2 + i) for i, name in enumerate(names)]
        return np.eye(99, dtype=np.float32)[rows]

    monkeypatch.setattr(text, "embed", embed)


def test_two_worlds_are_compared_and_joined(command, tmp_path, capsys):
    assert command("--cosine", "-1", "--rows", "3", "--name", "both") == 0
    assert "9 classes, 8 of them different" in capsys.readouterr().out
    report = (tmp_path / "out/report.md").read_text()
    assert "| world_patterns, world_coarse | 1 | ground |" in report
    assert "`worlds-clip`" in report
    assert "means nothing" not in report  # every word is known
    assert "pairs, the first 3:" in report
    card = load_card(tmp_path / "out/union.toml")
    assert card.name == "both"
    assert len(card.taxonomy) == 8
    assert Image.open(tmp_path / "out/embeddings.png").size[0] > 300


def test_words_that_the_tower_never_met_are_said_and_have_no_cosine(command, vectors, tmp_path):
    cards = ("cityscapes", "mapillary")
    assert command("--no-plot", "--cosine", "-1", cards=cards) == 0
    report = (tmp_path / "out/report.md").read_text()
    assert "only 0 of these" not in report  # "water" is known
    assert "What it says of the others means nothing" in report.replace("\n", " ")
    assert "| traffic sign | cityscapes | Traffic Sign Frame | mapillary | 0.67 | - |" in report
    assert "By cosine, -1.0 and more: 0 pairs." in report
    assert not (tmp_path / "out/embeddings.png").exists()


def test_a_model_shows_splits_contradictions_and_equal_pixels(command, vectors, tmp_path):
    images = str(tmp_path / "images")
    assert command("--no-plot", "--checkpoint", "x", "--images", images, "--iou", "0.7") == 0
    report = (tmp_path / "out/report.md").read_text()
    # patterns' ground: 75 % of the pixels, of which coarse calls 67 % ground and 33 % water
    assert "| ground | 75.0 | split | ground 67 % (100), water 33 % (100) |" in report
    assert "below 70 % of their union for 1 of 1 that occur" in report
    assert "| ground (world_patterns) | ground (world_coarse) | 67 | 75.0 | 50.0 |" in report
    assert "| striped object (world_patterns) | round thing (world_coarse) | IoU 100 |" in report
    names = load_card(tmp_path / "out/union.toml").taxonomy
    assert names.whole_names[0] == "striped object, round thing"
    assert len(names) == 7


@pytest.mark.parametrize(
    ("more", "cards", "message"),
    [
        ((), ("world_coarse",), "world_coarse is one card; name two or more"),
        ((), ("world_coarse", "world_coarse"), "each must have a name of its own"),
        (("--images", "."), CARDS, "--checkpoint and --images belong together"),
        (("--template", "a photo"), CARDS, "has no {name}"),
        (("--iou", "1.5"), CARDS, "--iou 1.5: expected a number from 0 to 1"),
        (("--rows", "-1"), CARDS, "--rows -1: expected 0 or more"),
        (("--name", "a b"), CARDS, "--name 'a b': use letters, digits, _ and - only"),
    ],
)
def test_wrong_flags_are_one_line(command, capsys, more, cards, message):
    assert command(*more, cards=cards) == 2
    assert message in capsys.readouterr().err


def test_another_card_of_a_trained_name_is_refused(command, vectors, tmp_path, capsys):
    other = load_card("world_patterns").path
    path = tmp_path / "mine.toml"
    path.write_text(open(other).read().replace("striped object", "lined object"))
    images = ("--checkpoint", "x", "--images", str(tmp_path / "images"))
    assert command("--no-plot", *images, cards=(str(path), "world_coarse")) == 2
    assert "trained on another card called 'world_patterns'" in capsys.readouterr().err
