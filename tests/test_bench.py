import json

import pytest

from lmseg_jax import bench_loader, cli
from lmseg_jax.errors import UserError
from tests.tiny_tree import CARD, write_tree

FLAGS = ["bench", "loader", "--config", "demo", "--images", "4", "--runs", "2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is measured on files with DETR's crop, mixed with a world; and what is printed."""
    root = tmp_path_factory.mktemp("data")
    card = write_tree(root)
    output = root / "bench.json"
    config = [f"--config.data.train={card},world_coarse", f"--config.data.root={root}"]
    assert cli.main([*FLAGS, *config, "--json", str(output)]) == 0
    return json.loads(output.read_text())


def test_both_sides_are_timed_by_stage(found):
    assert list(found["feeds"]) == ["tiny/landscape", "tiny/portrait", "world_coarse"]
    for row in found["feeds"].values():
        for side in ("here", "pillow"):
            assert set(row[side]) == {*bench_loader.STAGES, "total"}
            assert row[side]["decode"] > 0 and row[side]["geometry"] > 0
        assert len(row["ratios"]) == 2
    assert found["feeds"]["world_coarse"]["here"]["colour"] > 0
    assert found["feeds"]["world_coarse"]["here"]["read"] < 0.5  # nothing to read


def test_both_sides_make_the_same_crops_within_rounding(found):
    for name, row in found["feeds"].items():
        assert row["equal_segments"] > 0.99, name
        assert row["grey_levels"] < 8, name


def test_the_mix_weighs_datasets_as_the_plan_does(found):
    totals = [row["here"]["total"] for row in found["feeds"].values()]
    mixed = sum(share * total for share, total in zip((3 / 8, 1 / 8, 1 / 2), totals, strict=True))
    assert found["mix"]["here"]["total"] == pytest.approx(mixed, rel=0.01)


def test_the_loader_is_timed_by_threads(found):
    assert list(found["loader"]) == ["1", "2"]
    assert all(speed > 0 for speed in found["loader"].values())


def test_the_table_shows_every_number(found):
    text = bench_loader.table(found)
    for word in (*bench_loader.STAGES, "tiny/portrait", "mix", "ratio", "images/s", "2 threads"):
        assert word in text


def test_crops_that_differ_are_no_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_loader, "FARTHEST", 0.0)
    card = write_tree(tmp_path, card=CARD.replace('"flip", ', "").replace('"horizontal"', '"none"'))
    config = [f"--config.data.train={card}", f"--config.data.root={tmp_path}"]
    with pytest.raises(UserError, match="tiny/landscape: the crops differ"):
        cli.run([*FLAGS, *config])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=3"], "--steps=3: no such flag"),
        (["--images", "0"], "--images is 0; expected at least 1"),
        (["--runs", "-1"], "--runs is -1; expected at least 1"),
        (["--config.data.trian=x"], "data.trian"),
        (
            ["--config.mode=evaluate", "--config.data.train=()", "--config.data.evaluate=camvid"],
            "demo: data.train names no dataset",
        ),
    ],
)
def test_a_wrong_flag_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        cli.run([*FLAGS, *arguments])
