from collections import Counter

import numpy as np
import pytest

from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.buckets import Plan

SQUARE = (96, 96)

CASES = [  # weights, batch, multiple
    ((1, 1, 1), 12, 1),
    ((1, 1, 1, 1), 16, 8),
    ((1, 1, 1, 1), 8, 8),
    ((0.25, 0.25, 0.5), 4, 1),
    ((3, 1, 1), 8, 2),
    ((0.5, 0.3, 0.2), 16, 8),
    ((1 / 3, 2 / 3), 4, 4),
    ((1, 100), 1, 1),
    ((1, 2, 4, 4), 24, 4),
    ((1,) * 16, 8, 1),  # too many choices to list: systematic
]


@pytest.mark.parametrize(("weights", "batch", "multiple"), CASES)
def test_every_update_is_full_and_every_count_a_multiple(weights, batch, multiple):
    plan = Plan([SQUARE] * len(weights), weights, batch=batch, multiple=multiple)
    for update in range(plan.cycle):
        counts = plan.counts(update)
        assert counts.sum() == batch
        assert (counts >= 0).all() and (counts % multiple == 0).all()


@pytest.mark.parametrize(("weights", "batch", "multiple"), CASES)
def test_weights_are_met_exactly_over_a_cycle(weights, batch, multiple):
    plan = Plan([SQUARE] * len(weights), weights, batch=batch, multiple=multiple)
    given = sum(plan.counts(update) for update in range(plan.cycle))
    np.testing.assert_allclose(
        given, batch * plan.cycle * np.array(weights) / sum(weights), rtol=1e-12
    )


@pytest.mark.parametrize(("weights", "batch", "multiple"), CASES)
def test_offsets_are_the_counts_so_far(weights, batch, multiple):
    plan = Plan([SQUARE] * len(weights), weights, batch=batch, multiple=multiple)
    before = np.zeros(len(weights), np.int64)
    for update in range(2 * plan.cycle + 3):
        np.testing.assert_array_equal(plan.offsets(update), before)
        before += plan.counts(update)


@pytest.mark.parametrize(("weights", "batch", "multiple"), CASES)
def test_no_dataset_waits_much_longer_than_its_share(weights, batch, multiple):
    plan = Plan([SQUARE] * len(weights), weights, batch=batch, multiple=multiple)
    share = np.array(weights) / sum(weights) * batch / multiple  # units an update
    for update in range(plan.cycle):
        ahead = plan.offsets(update) / multiple - share * update
        assert np.abs(ahead).max() < 3


def test_a_batch_that_divides_is_the_same_every_update():
    plan = Plan([SQUARE] * 3, (), batch=12, multiple=1)
    assert plan.cycle == 1
    np.testing.assert_array_equal(plan.counts(7), [4, 4, 4])


def test_two_of_four_datasets_meet_in_all_six_pairs():
    plan = Plan([SQUARE] * 4, (), batch=16, multiple=8)
    pairs = [tuple(np.flatnonzero(plan.counts(update))) for update in range(12)]
    assert plan.cycle == 6
    assert set(Counter(pairs).values()) == {2} and len(set(pairs)) == 6
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert set(first) | set(second) == {0, 1, 2, 3}  # nobody waits longer than needed


def test_a_dataset_with_half_the_weight_comes_every_second_update():
    plan = Plan([SQUARE] * 3, (0.5, 0.25, 0.25), batch=16, multiple=8)
    counts = np.array([plan.counts(update) for update in range(plan.cycle)])
    np.testing.assert_array_equal(counts[:, 0], [8] * plan.cycle)
    assert Counter(map(tuple, counts)) == {(8, 8, 0): 1, (8, 0, 8): 1}


def test_pieces_follow_each_other_and_cover_the_bucket():
    plan = Plan([SQUARE, (64, 128)], (3, 1), batch=16, multiple=2)
    found = [(*piece.rows[0], len(piece)) for piece in plan.pieces(1, micro=8)]
    assert found == [(0, 12, 8), (0, 20, 4), (1, 4, 4)]
    assert [len(piece) for piece in plan.pieces(1)] == [12, 4]
    rows = [row for piece in plan.pieces(1, micro=8) for row in piece.rows]
    assert rows == [(0, i) for i in range(12, 24)] + [(1, i) for i in range(4, 8)]


def test_shares_are_the_weights_and_a_plan_says_what_it_does():
    plan = Plan([SQUARE] * 3, (0.5, 0.25, 0.25), batch=16, multiple=8)
    np.testing.assert_allclose(plan.shares, [0.5, 0.25, 0.25])
    assert plan.describe() == "16 images an update, shares repeat every 2 updates"


def test_programs_are_the_distinct_shapes_of_pieces():
    plan = Plan([SQUARE, SQUARE, (64, 128)], (2, 2, 1), batch=20, multiple=4)
    assert plan.programs() == [(4, 64, 128), (8, 96, 96)]
    assert plan.programs(micro=4) == [(4, 64, 128), (4, 96, 96)]


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        ((), {"batch": 12, "multiple": 8}, "batching.batch = 12 .* batching.multiple = 8"),
        ((), {"batch": 0, "multiple": 1}, "batching.batch = 0"),
        ((1, 2), {"batch": 8, "multiple": 8}, "batching.weights has 2 numbers for 3"),
        ((1, 2, 0), {"batch": 8, "multiple": 8}, "batching.weights.*positive"),
        ((1, 2, float("nan")), {"batch": 8, "multiple": 8}, "batching.weights.*positive"),
        ((1e-5, 1, 1), {"batch": 8, "multiple": 8}, "batching.weights.*below"),
        ((20_210, 9_000, 2_973), {"batch": 8, "multiple": 8}, "batching.weights.*rounder"),
    ],
)
def test_impossible_plans_name_the_key(weights, arguments, message):
    with pytest.raises(UserError, match=message):
        Plan([SQUARE] * 3, weights, **arguments)


def test_micro_must_be_a_multiple_of_multiple():
    plan = Plan([SQUARE], (), batch=8, multiple=4)
    with pytest.raises(UserError, match="batching.micro = 6"):
        plan.pieces(0, micro=6)
