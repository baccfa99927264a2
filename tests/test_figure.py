"""`lmseg figure`, with a model of fixed answers."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from lmseg_jax import charts, cli, figure, label_space
from lmseg_jax.datasets.card import load_card
from lmseg_jax.segmentation import Segmentation

WORLDS = ("world_patterns", "world_colors", "world_coarse")


class Model:
    """Answers its taxonomy's last class everywhere."""

    model = types.SimpleNamespace(head="text")

    def __init__(self):
        self.spaces = {name: label_space.of_card(load_card(name)) for name in WORLDS}

    def embeddings(self, *, classes):
        """Equal ones of equal names, background last."""
        names = [*classes, "background"]
        return np.stack([np.random.default_rng(list(n.encode())).normal(size=8) for n in names])

    def segment(self, image, *, taxonomy, task):
        known = load_card(taxonomy).taxonomy
        labels = np.full(image.shape[:2], len(known) - 1, np.int32)
        return Segmentation(labels, labels + 1, [], known)


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "load", lambda path: Model())

    def command(*argv):
        return cli.main(["figure", *map(str, argv), "--output", str(tmp_path / "out.png")])

    return command


@pytest.fixture
def tables(tmp_path):
    def write(**changes):
        row = {
            "name": "lmseg",
            "label": "LMSeg",
            "cost": {"updates": 10, "images": 40, "gflop": 5.0, "seconds": [1.0]},
            "runs": [{"seed": 0, "miou": 50.0, "pq": 40.0}, {"seed": 1, "miou": 54.0, "pq": 41.0}],
        }
        rows = [row | changes, row | {"runs": []}, row | {"of": "lmseg"}]
        path = tmp_path / "tables.json"
        path.write_text(json.dumps({"suite": "worlds", "rows": rows}))
        return path

    return write


def holds(path, color):
    picture = np.asarray(Image.open(path).convert("RGB"))
    return bool(np.all(picture == np.array(color), axis=-1).any())


def test_embeddings_of_all_trained_taxonomies_are_drawn(command, tmp_path, monkeypatch):
    draw, given = charts.names_chart, []

    def names_chart(names, places, **options):
        given.append((names, len(places), options["members"], options["taxonomies"]))
        return draw(names, places, **options)

    monkeypatch.setattr(charts, "names_chart", names_chart)
    assert command("embeddings", "--checkpoint", "x") == 0
    assert Image.open(tmp_path / "out.png").format == "PNG"
    ((names, places, members, taxonomies),) = given
    assert tuple(taxonomies) == WORLDS
    expected = {}
    for number, world in enumerate(WORLDS):
        for name in load_card(world).taxonomy.names:
            expected[name] = (*expected.get(name, ()), number)
    assert places == len(names) == len(expected)
    assert dict(zip(names, members, strict=True)) == expected


def test_one_image_in_several_taxonomies(command, tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "in.png")
    asked = ("--checkpoint", "x", "--input", tmp_path / "in.png")
    assert command("taxonomies", *asked, "--taxonomies", *WORLDS, "world_shapes") == 0
    for name in (*WORLDS, "world_shapes"):
        assert holds(tmp_path / "out.png", load_card(name).taxonomy.colors[-1])
    assert command("taxonomies", *asked, "--taxonomies", "nothing") == 2


@pytest.mark.parametrize("cost", ["gflop", "images", "updates"])
def test_methods_without_a_run_or_a_training_of_their_own_are_left_out_of_costs(tables, cost):
    (row,) = figure.read_tables(tables(), cost=cost)
    assert row == {
        "label": "LMSeg",
        "cost": {"gflop": 5.0, "images": 40.0, "updates": 10.0}[cost],
        "runs": [{"miou": 50.0, "pq": 40.0}, {"miou": 54.0, "pq": 41.0}],
    }


def test_costs_are_drawn(command, tables, tmp_path):
    assert command("cost", "--tables", tables()) == 0
    both = Image.open(tmp_path / "out.png").size[0]
    assert command("cost", "--tables", tables(runs=[{"seed": 0, "miou": 50.0, "pq": None}])) == 0
    assert Image.open(tmp_path / "out.png").size[0] < both  # no chart of PQ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost": {"images": 4}}, "with costs in 'gflop' (KeyError: 'gflop')"),
        ({"runs": [{"seed": 0}]}, "has no run with a score"),
        ({"runs": 3}, "no tables.json of lmseg experiments"),
    ],
)
def test_wrong_tables_are_one_line(command, tables, capsys, changes, message):
    assert command("cost", "--tables", tables(**changes)) == 2
    assert message in capsys.readouterr().err


def test_tables_that_are_not_there_are_named(command, tmp_path, capsys):
    assert command("cost", "--tables", tmp_path / "none.json") == 2
    assert "none.json: cannot read" in capsys.readouterr().err
