"""The assignment is measured on tiny costs; nothing is said about how long it takes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lmseg_jax import bench_matcher, cli, matcher
from lmseg_jax.errors import UserError

FLAGS = ["bench", "matcher", "--batch", "2", "--queries", "7", "--targets", "4", "--slots", "5"]
FLAGS += ["--layers", "2", "--runs", "3"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    output = tmp_path_factory.mktemp("matcher") / "bench.json"
    assert cli.main([*FLAGS, "--json", str(output)]) == 0
    return json.loads(output.read_text())


def test_both_sides_are_timed_in_turns(found):
    assert {side: len(times) for side, times in found["times_s"].items()} == {
        "host": 3,
        "device": 3,
    }
    for side, times in found["times_s"].items():
        assert found[f"{side}_s"] == sorted(times)[1]
    pairs = zip(found["times_s"]["host"], found["times_s"]["device"], strict=True)
    assert found["ratios"] == pytest.approx([host / device for host, device in pairs])
    assert found["ratio"] == sorted(found["ratios"])[1]


def test_the_sizes_are_written_and_printed(found):
    sizes = {"batch": 2, "queries": 7, "targets": 4, "slots": 5, "layers": 2, "runs": 3}
    assert {name: found[name] for name in sizes} == sizes
    text = bench_matcher.table(found)
    said = "2 layers x 2 images, 4 targets in 5 slots, 7 queries"
    for words in (said, "SciPy", "optax", "median of the runs' ratios"):
        assert words in text


def test_targets_of_hard_costs_want_the_same_queries():
    cost = bench_matcher.hard_costs((2, 3, 100, 24))
    first = np.argmin(cost, axis=2).reshape(6, 24)
    most = max(len(set(row)) for row in first.tolist())
    # of independent costs 24 draws of 100 would be 21 different ones in the mean
    assert most <= 12


def test_the_total_cost_is_that_of_the_real_targets():
    cost = np.arange(12, dtype=np.float32).reshape(1, 1, 4, 3)
    query = np.array([[[2, 0, 0]]])
    np.testing.assert_array_equal(bench_matcher.total_cost(cost, query, 2), [[6 + 1]])
    with pytest.raises(UserError, match="two targets share a query"):
        bench_matcher.total_cost(cost, query, 3)


def test_assignments_that_cost_more_are_no_measure(monkeypatch):
    def in_order(cost, count):
        return jnp.broadcast_to(jnp.arange(cost.shape[3]), (*cost.shape[:2], cost.shape[3]))

    monkeypatch.setattr(matcher, "solve_on_device", in_order)
    with pytest.raises(UserError, match="total costs differ"):
        cli.run(FLAGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "3"], "--queries is 3; expected at least one a slot, 5"),
        (["--slots", "3"], "--slots is 3; expected at least --targets, 4"),
        (["--layers", "0"], "--layers is 0; expected at least 1"),
        (["--config.matcher.where=host"], "--config.matcher.where=host: no such flag"),
        (["--size", "32"], "--size: no such flag"),
    ],
)
def test_a_wrong_flag_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        cli.run([*FLAGS, *arguments])
