"""Datasets that are drawn: one for a whole update, or one for each image on a common canvas."""

import numpy as np
import pytest

from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan
from lmseg_jax.pipeline.policies import BLOCK, DRAWN, Draws, OneDataset, Padded

SHAPES = [(8, 6), (4, 10), (8, 8)]
SHARES = [0.5, 0.3, 0.2]
PAPER = [(512, 512), (640, 640), (512, 1024), (1280, 1280)]


class Tiny:
    """Images whose pixels are their own numbers, with four segments each."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return Sample(
            image=np.random.default_rng(index).integers(0, 128, (10, 12, 3), dtype=np.uint8),
            segments=np.arange(120, dtype=np.int32).reshape(10, 12) // 30,
            classes=np.array([3, 2, 1, 0], np.int32),
            area=np.full(4, 30, np.int32),
            crowd=np.zeros(4, bool),
            dataset="tiny",
            name=str(index),
        )


def feeds():
    order = ("crop", "flip")
    return [
        Feed(name, Tiny(), Recipe((), 0, crop, False, "both", order), number)
        for number, (name, crop) in enumerate(zip("abc", SHAPES, strict=True))
    ]


def plan(policy, shares=SHARES, *, batch=6, multiple=2, seed=5):
    return DRAWN[policy](SHAPES, shares, batch=batch, multiple=multiple, seed=seed)


def loader(policy, *, batch=6, multiple=2, **settings):
    settings = {"seed": 5, "max_targets": 4, "threads": 0} | settings
    return Loader(feeds(), plan(policy, batch=batch, multiple=multiple), **settings)


def buckets(policy, start, stop, **settings):
    found = loader(policy, **settings).iterate(start, stop)
    return [bucket for update in found for bucket in update.buckets]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_draws_have_their_shares():
    drawn = 40_000
    counts = np.bincount(Draws(SHARES, seed=1).chosen(0, drawn), minlength=3)
    deviation = np.sqrt(drawn * np.array(SHARES) * (1 - np.array(SHARES)))
    assert (np.abs(counts - drawn * np.array(SHARES)) < 4 * deviation).all()


def test_draws_are_independent_of_the_one_before():
    drawn = np.array(Draws(SHARES, seed=2).chosen(0, 40_001))
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (drawn[:-1], drawn[1:]), 1 / 40_000)
    np.testing.assert_allclose(pairs, np.outer(SHARES, SHARES), atol=0.01)


def test_a_draw_is_the_same_wherever_one_starts():
    whole = Draws(SHARES, seed=3).chosen(0, 4 * BLOCK)
    late = Draws(SHARES, seed=3)
    for first in (3 * BLOCK - 7, 5, 2 * BLOCK):
        assert late.chosen(first, 20) == whole[first : first + 20]
        expected = np.bincount(whole[:first], minlength=3).tolist()
        assert late.before(first) == Draws(SHARES, seed=3).before(first) == expected
    assert Draws(SHARES, seed=4).chosen(0, 40) != whole[:40]


@pytest.mark.parametrize("policy", DRAWN)
def test_every_source_gives_its_examples_in_order_and_none_twice(policy):
    plans = plan(policy, batch=4)
    rows = [row for update in range(900) for piece in plans.pieces(update) for row in piece.rows]
    for source in range(3):
        examples = [example for chosen, example in rows if chosen == source]
        assert examples == list(range(len(examples))) and len(examples) > 500
    given = np.bincount([source for source, _ in rows]) / len(rows)
    np.testing.assert_allclose(given, SHARES, atol=0.05)


def test_an_update_of_one_dataset_takes_all_of_its_images_from_it():
    found = buckets("one_dataset", 0, 40)
    chosen = [set(bucket["dataset"].tolist()) for bucket in found]
    assert all(len(datasets) == 1 for datasets in chosen)
    assert {next(iter(datasets)) for datasets in chosen} == {0, 1, 2}
    for bucket, datasets in zip(found, chosen, strict=True):
        assert bucket["image"].shape == (6, *SHAPES[datasets.pop()], 3)
    assert plan("one_dataset").programs() == sorted((6, *shape) for shape in SHAPES)
    assert plan("one_dataset").programs(micro=4) == sorted(
        (size, *shape) for size in (2, 4) for shape in SHAPES
    )


def test_a_padded_batch_is_the_crops_themselves_and_padding():
    alone = [Plan([shape], (), batch=60, multiple=1) for shape in SHAPES]
    crops = [
        next(Loader([feed], one, seed=5, max_targets=4, threads=0).iterate(0, 1)).buckets[0]
        for feed, one in zip(feeds(), alone, strict=True)
    ]
    mixed, given = 0, [0, 0, 0]
    for bucket in buckets("padded", 0, 12):
        mixed += len(set(bucket["dataset"].tolist())) > 1
        for row, source in enumerate(bucket["dataset"].tolist()):
            height, width = SHAPES[source]
            example, given[source] = given[source], given[source] + 1
            for key in ("image", "segments"):
                inside = bucket[key][row, :height, :width]
                np.testing.assert_array_equal(inside, crops[source][key][example])
            np.testing.assert_array_equal(bucket["classes"][row], crops[source]["classes"][example])
            outside = np.ones((8, 10), bool)
            outside[:height, :width] = False
            assert (bucket["segments"][row][outside] == -2).all()
            assert (bucket["image"][row][outside] == 128).all()
    assert mixed > 8 and min(given) > 5


def test_padded_batches_have_one_shape_and_one_program():
    shapes = {bucket["image"].shape for bucket in buckets("padded", 0, 20)}
    assert shapes == {(6, 8, 10, 3)}
    assert plan("padded").programs() == [(6, 8, 10)]
    assert plan("padded").programs(micro=2) == [(2, 8, 10)]


def test_the_canvas_of_the_papers_crops_is_more_than_half_empty():
    padded = Padded(PAPER, [0.25] * 4, batch=16, multiple=8, seed=0)
    areas = [512 * 512, 640 * 640, 512 * 1024, 1280 * 1280]
    assert padded.waste == pytest.approx(100 * (1 - np.mean(areas) / 1280**2))
    assert padded.describe() == (
        "16 images an update, each drawn from all datasets by weight, on a canvas of 1280x1280 "
        "that crops leave 57 % empty"
    )
    assert "all of one dataset" in OneDataset(PAPER, [1], batch=8, multiple=8, seed=0).describe()


@pytest.mark.parametrize("policy", DRAWN)
def test_starting_late_and_other_threads_give_the_same_updates(policy):
    everything = buckets(policy, 0, 9)
    assert_same(buckets(policy, 4, 9), everything[4:])
    assert_same(buckets(policy, 0, 9, threads=3), everything)


@pytest.mark.slow
def test_worker_processes_change_nothing():
    assert_same(buckets("padded", 2, 6, workers=2, threads=2), buckets("padded", 2, 6))


@pytest.mark.parametrize("policy", DRAWN)
def test_hosts_and_pieces_share_one_batch(policy):
    sizes = {"batch": 12, "multiple": 4}
    whole = buckets(policy, 0, 3, **sizes)
    shares = [buckets(policy, 0, 3, **sizes, process_index=i, process_count=2) for i in (0, 1)]
    pieces = buckets(policy, 0, 3, **sizes, micro=4)

    def join(parts):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    assert_same([join(pair) for pair in zip(*shares, strict=True)], whole)
    assert_same([join(pieces[3 * i : 3 * i + 3]) for i in range(3)], whole)


@pytest.mark.parametrize("policy", DRAWN)
def test_impossible_sizes_name_the_key(policy):
    with pytest.raises(UserError, match="batching.batch = 6 .* batching.multiple = 4"):
        plan(policy, multiple=4)
    with pytest.raises(UserError, match="batching.micro = 3"):
        plan(policy).pieces(0, micro=3)
