import json

import pytest

from lmseg_jax import report

CROSS = {
    "a": {"a": {"miou": 80.0}, "b": {"miou": 30.0}},
    "b": {"a": {"miou": 50.0}, "b": {"miou": 40.0}},
}


def test_the_share_off_the_diagonal():
    assert report.diagonal_share(CROSS, "miou") == pytest.approx(100 * 40 / 60)


def test_the_cross_table_has_scenes_in_rows():
    lines = report.format_cross(CROSS, "miou").splitlines()
    assert lines[1].split() == ["a", "80.0", "30.0"]
    assert lines[2].split() == ["b", "50.0", "40.0"]
    assert "67 %" in lines[3]


def test_one_taxonomy_asked_of_all_scenes_is_a_table_of_one_column():
    column = {scenes: {"b": CROSS[scenes]["b"]} for scenes in CROSS}
    lines = report.format_cross(column, "miou").splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["b", "30.0", "40.0"]
    assert report.diagonal_share(column, "miou") == pytest.approx(75)


def test_the_score_table_ends_with_means_and_shows_baselines():
    scores = {"a": {"miou": 60.0, "pq": 50.0}, "b": {"miou": 40.0, "pq": None}}
    baselines = {"a": {"majority": {"miou": 10.0}}, "b": {"majority": {"miou": 20.0}}}
    lines = report.format_scores(scores, baselines).splitlines()
    assert lines[1].split() == ["a", "60.0", "50.0", "10.0"]
    assert lines[2].split() == ["b", "40.0", "-", "20.0"]
    assert lines[3].split() == ["mean", "50.0", "50.0", "15.0"]


def test_flat_scores_are_numbers_only():
    assert report.flat({"a": {"miou": 1.5, "pq": None, "iou": {"x": 2.0}}}) == {"score/a/miou": 1.5}


def test_the_mean_of_the_last_evaluations():
    rows = [{"step": i, "score/a/miou": float(i)} for i in (10, 20, 30, 40)]
    scores = {"a": {"miou": 40.0}}
    report.add_means(scores, [*rows, {"step": 40, "loss": 1.0}], count=3)
    assert scores["a"]["mean_of_last"] == {"evaluations": 3, "miou": 30.0}
    line = "mean of the last evaluations: a (last 3) mIoU 30.0"
    assert report.format_means(scores) == line
    assert report.format_means({"a": {"miou": 1.0}}) == ""


def test_json_is_written_whole(tmp_path):
    report.write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
