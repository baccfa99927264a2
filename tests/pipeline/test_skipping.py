import numpy as np
import pytest

from lmseg_jax.datasets.recipe import Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.batches import Feed, Loader, feed_seed
from lmseg_jax.pipeline.buckets import Plan
from lmseg_jax.pipeline.skipping import describe

LENGTH = 60


class Numbered:
    """Images that hold 1 + their index; those in `bad` cannot be read."""

    def __init__(self, bad=(), error=UserError):
        self.bad, self.error = bad, error

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error(f"images/{index}.png: is empty; restore it")
        return Sample(
            image=np.full((10, 12, 3), 1 + index, np.uint8),
            segments=np.arange(120, dtype=np.int32).reshape(10, 12) // 30,
            classes=np.array([3, 2, 1, 0], np.int32),
            area=np.full(4, 30, np.int32),
            crowd=np.zeros(4, bool),
            dataset="numbers",
            name=str(index),
        )


def make(source, **settings):
    """Loads updates of four crops of "numbers" and two of a feed without bad files."""
    recipe = Recipe((), 0, (6, 6), False, "both", ("crop", "flip"))
    feeds = [Feed("numbers", source, recipe, 0), Feed("good", Numbered(), recipe, 1)]
    plan = Plan([(6, 6), (6, 6)], (2, 1), batch=6, multiple=2)
    settings = {"seed": 5, "max_targets": 4, "on_error": "skip"} | settings
    return Loader(feeds, plan, **settings)


def updates(source, start=0, stop=30, **settings):
    return list(make(source, **settings).iterate(start, stop))


def shown(found):
    """Number of the image behind each crop of "numbers"."""
    return np.concatenate([update.buckets[0]["image"][:, 0, 0, 0] for update in found]) - 1


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.skipped == b.skipped
        for one, other in zip(a.buckets, b.buckets, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


BAD = (3, 17, 41)


def test_an_update_names_the_images_that_came_in_the_place_of_bad_ones():
    loader = make(Numbered(BAD))
    named = [loader.names(update)["numbers"] for update in range(30)]
    assert np.concatenate(named).tolist() == shown(updates(Numbered(BAD))).astype(str).tolist()


def test_without_bad_files_skipping_changes_no_bit():
    assert_same(updates(Numbered()), updates(Numbered(), on_error="stop"))


def test_only_the_bad_examples_change_and_each_replacement_follows_its_draws():
    before, after = updates(Numbered()), updates(Numbered(BAD))
    expected = shown(before).astype(int)
    for example in np.flatnonzero(np.isin(expected, BAD)):
        retry = 0
        while expected[example] in BAD:
            retry += 1
            rng = np.random.default_rng((feed_seed(5, "numbers"), int(example), retry))
            expected[example] = rng.integers(LENGTH)
    np.testing.assert_array_equal(shown(after), expected)
    assert (shown(before) != expected).sum() == 6  # three files, two epochs of 60
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.buckets[1]["image"], other.buckets[1]["image"])


def test_what_was_skipped_is_told_by_dataset():
    found = updates(Numbered(BAD), stop=15)  # one epoch
    problems = [problem for update in found for problem in update.skipped["numbers"]]
    assert set(problems) == {f"images/{i}.png: is empty; restore it" for i in BAD}
    assert len(problems) >= 3
    assert all(update.skipped["good"] == () for update in found)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": 3}])
def test_threads_do_not_change_what_is_skipped(settings):
    assert_same(updates(Numbered(BAD), stop=20, **settings), updates(Numbered(BAD), stop=20))


@pytest.mark.slow
def test_workers_do_not_change_what_is_skipped():
    expected = updates(Numbered(BAD), stop=16)
    assert sum(len(update.skipped["numbers"]) for update in expected) >= 3
    assert_same(updates(Numbered(BAD), stop=16, workers=2), expected)


def test_a_late_start_does_not_change_what_is_skipped():
    assert_same(updates(Numbered(BAD), start=7, stop=20), updates(Numbered(BAD), stop=20)[7:])


def test_the_shares_of_two_hosts_make_the_whole():
    whole = shown(updates(Numbered(BAD), stop=20)).reshape(-1, 2, 2)
    shares = [
        updates(Numbered(BAD), stop=20, process_index=host, process_count=2) for host in (0, 1)
    ]
    np.testing.assert_array_equal(shown(shares[0]).reshape(-1, 2), whole[:, 0])
    np.testing.assert_array_equal(shown(shares[1]).reshape(-1, 2), whole[:, 1])


def test_ten_more_bad_images_in_a_row_are_an_error():
    with pytest.raises(UserError, match=r"numbers: .* 10 others .*data check.*images/\d+\.png"):
        updates(Numbered(range(LENGTH)), stop=1)


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, OSError])
def test_errors_of_the_program_are_never_skipped(error):
    with pytest.raises(error):
        updates(Numbered(BAD, error), stop=30)


def test_each_bad_file_is_named_once():
    told = set()
    first = describe({"a": ("x: bad", "y: bad", "x: bad", "z: bad"), "b": ()}, told)
    assert first == ["a: skipped 3 bad files: x: bad; y: bad; and 1 more"]
    assert describe({"a": ("x: bad",), "b": ("x: bad", "v: bad")}, told) == [
        "b: skipped 1 bad files: v: bad"
    ]
