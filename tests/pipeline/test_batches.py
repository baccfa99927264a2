import dataclasses

import numpy as np
import pytest

from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan

SHAPES = {"a": (8, 8), "b": (6, 10), "c": (8, 8)}


class Tiny:
    """Sixty images with 1 + index in every pixel and four segments each; `bad` raises."""

    def __init__(self, bad=None):
        self.bad = bad

    def __len__(self):
        return 60  # Grain shuffles very short lists slowly

    def __getitem__(self, index):
        if index == self.bad:
            raise UserError(f"tiny/{index}.png: no image; restore the file")
        return Sample(
            image=np.full((10, 12, 3), 1 + index, np.uint8),
            segments=np.arange(120, dtype=np.int32).reshape(10, 12) // 30,
            classes=np.array([3, 2, 1, 0], np.int32),
            area=np.full(4, 30, np.int32),
            crowd=np.zeros(4, bool),
            dataset="tiny",
            name=str(index),
        )


def feeds(bad=None, color=True):
    order = ("crop", "color", "flip")
    return [
        Feed(name, Tiny(bad), Recipe((), 0, crop, color, "both", order), index)
        for index, (name, crop) in enumerate(SHAPES.items())
    ]


def make(bad=None, batch=6, multiple=2, weights=(), color=True, **settings):
    plan = Plan(list(SHAPES.values()), weights, batch=batch, multiple=multiple)
    settings = {"seed": 5, "max_targets": 3} | settings
    return Loader(feeds(bad, color), plan, **settings)


def batches(loader, start, stop):
    return [bucket for update in loader.iterate(start, stop) for bucket in update.buckets]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_a_bucket_holds_the_crops_of_one_feed():
    update = next(make().iterate(4, 5))
    assert update.step == 4
    for index, (bucket, shape) in enumerate(zip(update.buckets, SHAPES.values(), strict=True)):
        found = {key: (value.dtype.name, value.shape) for key, value in bucket.items()}
        assert found == {
            "image": ("uint8", (2, *shape, 3)),
            "segments": ("int16", (2, *shape)),
            "classes": ("int32", (2, 3)),
            "dataset": ("int32", (2,)),
        }
        np.testing.assert_array_equal(bucket["dataset"], [index, index])


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    updates = make(color=False, batch=60).iterate(0, 9)
    images = np.concatenate([update.buckets[0]["image"][:, 0, 0, 0] for update in updates])
    first, second, third = images.reshape(3, 60)
    for epoch in (first, second, third):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1, 61))
    assert (first != second).any() and (second != third).any() and (first != third).any()


def test_the_images_of_an_update_have_names_wherever_they_are_read():
    update = next(make(batch=12, color=False).iterate(7, 8))
    shown = [bucket["image"][:, 0, 0, 0] - 1 for bucket in update.buckets]
    expected = {feed: list(map(str, images)) for feed, images in zip(SHAPES, shown, strict=True)}
    for process in (0, 1):
        loader = make(batch=12, process_index=process, process_count=2)
        assert loader.names(7) == expected


def test_starting_late_gives_the_same_updates():
    settings = {"batch": 4, "weights": (0.5, 0.3, 0.2)}
    everything = [update.buckets for update in make(**settings).iterate(0, 9)]
    for start in (1, 6):
        late = batches(make(**settings), start, 9)
        assert_same(late, [bucket for update in everything[start:] for bucket in update])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(threads):
    assert_same(batches(make(threads=threads), 0, 5), batches(make(threads=0), 0, 5))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_worker_processes_change_nothing(workers):
    assert_same(batches(make(workers=workers), 2, 6), batches(make(threads=0), 2, 6))


def test_another_seed_gives_other_crops():
    first, second = batches(make(), 0, 2), batches(make(seed=6), 0, 2)
    assert not all(
        np.array_equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True)
    )


def test_datasets_do_not_share_their_draws():
    update = next(make(batch=48).iterate(0, 1))  # feeds a and c differ in nothing but their name
    assert not np.array_equal(update.buckets[0]["image"], update.buckets[2]["image"])
    assert not np.array_equal(update.buckets[0]["segments"], update.buckets[2]["segments"])


def test_examples_do_not_depend_on_the_size_of_the_batch():
    small = batches(make(batch=6), 0, 2)
    large = batches(make(batch=12), 0, 1)
    joined = [
        {key: np.concatenate([small[feed][key], small[feed + 3][key]]) for key in small[feed]}
        for feed in range(3)
    ]
    assert_same(joined, large)


@pytest.mark.parametrize("micro", [0, 4])
def test_the_shares_of_two_hosts_make_the_batch_of_one(micro):
    settings = {"batch": 36, "multiple": 4, "micro": micro, "weights": (6, 2, 1)}
    whole = batches(make(**settings), 0, 3)
    shares = [
        batches(make(**settings, process_index=index, process_count=2), 0, 3) for index in (0, 1)
    ]
    joined = [
        {key: np.concatenate([first[key], second[key]]) for key in first}
        for first, second in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_micro_cuts_buckets_without_changing_them():
    whole = batches(make(batch=30), 1, 2)
    pieces = batches(make(batch=30, micro=4), 1, 2)
    assert [len(piece["image"]) for piece in pieces] == [4, 4, 2] * 3
    joined = [
        {key: np.concatenate([piece[key] for piece in pieces[3 * i : 3 * i + 3]]) for key in bucket}
        for i, bucket in enumerate(whole)
    ]
    assert_same(joined, whole)


def test_dropped_segments_are_counted_by_feed():
    loader = make(max_targets=1)
    for update in loader.iterate(0, 3):
        for name, bucket in zip(SHAPES, update.buckets, strict=True):
            rows = SHAPES[name][0]  # each band of 30 pixels touches at least one row in three
            assert 2 * (rows // 3 - 1) <= update.dropped[name] <= 2 * 3
            assert (bucket["classes"] >= 0).all()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_file_is_reported_as_it_was_raised(threads):
    with pytest.raises(UserError) as caught:
        batches(make(bad=3, threads=threads), 0, 30)
    assert str(caught.value) == "tiny/3.png: no image; restore the file"


@pytest.mark.slow
def test_a_bad_file_in_a_worker_process_is_reported_as_it_was_raised():
    with pytest.raises(UserError) as caught:
        batches(make(bad=3, workers=1), 0, 30)
    assert str(caught.value) == "tiny/3.png: no image; restore the file"


def test_reading_may_stop_at_any_update():
    updates = make().iterate(0, 10**9)
    assert next(updates).step == 0
    updates.close()
    with pytest.raises(StopIteration):
        next(updates)
    assert list(make().iterate(3, 3)) == []


def test_feeds_that_cannot_be_told_apart_are_refused():
    plan = Plan([(8, 8)] * 2, (), batch=2, multiple=1)
    twice = [dataclasses.replace(feed, name="a") for feed in feeds()[:2]]
    with pytest.raises(UserError, match="data.train names a twice"):
        Loader(twice, plan, seed=0, max_targets=3)


def test_an_empty_split_is_refused():
    plan = Plan([(8, 8)], (), batch=2, multiple=1)
    empty = dataclasses.replace(feeds()[0], source=[])
    with pytest.raises(UserError, match="a: the training split has no images"):
        Loader([empty], plan, seed=0, max_targets=3)


def test_hosts_that_do_not_divide_multiple_are_refused():
    with pytest.raises(UserError, match="batching.multiple = 2 cannot be shared by 3 processes"):
        make(process_count=3)
