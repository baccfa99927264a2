import numpy as np
import pytest

from lmseg_jax.datasets.recipe import DetrCrop, Recipe
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.augmentation import FIXED_RECIPE
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan, split_shares, split_weights
from lmseg_jax.pipeline.orientation import by_orientation, image_sizes, padding

SIZES = [(30, 40), (40, 30), (20, 50), (35, 35), (50, 20), (24, 36), (36, 27), (30, 40)] * 8
RECIPE = Recipe(
    short_sides=(24, 32),
    max_side=60,
    crop=(32, 64),
    color=False,
    flip="horizontal",
    order=("flip", "detr_crop", "resize"),
    detr_crop=DetrCrop((20, 28), (16, 24)),
)


class Tiny:
    """Images of two segments, the left and the right half; every pixel is 1 + the index."""

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        segments = np.zeros((height, width), np.int32)
        segments[:, width // 2 :] = 1
        return Sample(
            image=np.full((height, width, 3), 1 + index, np.uint8),
            segments=segments,
            classes=np.array([0, 1], np.int32),
            area=np.array([1, 1], np.int32),
            crowd=np.zeros(2, bool),
            dataset="tiny",
            name=str(index),
        )

    def files(self, index):
        return (f"{index}.jpg",)


class Sized(Tiny):
    """The same with sizes that cost nothing; images must not be read for them."""

    def size(self, index):
        return SIZES[index]

    def __getitem__(self, index):
        raise AssertionError("read")


def feed(source=None, recipe=RECIPE):
    return Feed("tiny", source or Tiny(), recipe, 3)


def test_lying_and_upright_images_are_two_feeds_with_their_own_canvas():
    lying, upright = by_orientation(feed())
    assert (lying.name, upright.name) == ("tiny/landscape", "tiny/portrait")
    assert (lying.recipe.crop, upright.recipe.crop) == ((32, 64), (64, 32))
    assert lying.dataset == upright.dataset == 3
    for part, expected in ((lying, (0, 2, 3, 5, 7)), (upright, (1, 4, 6))):
        shown = [int(part.source[i].name) for i in range(len(part.source))]
        assert shown == [i for i in range(len(SIZES)) if i % 8 in expected]
        assert [part.source.files(i) for i in range(2)] == [(f"{i}.jpg",) for i in shown[:2]]


def test_sizes_come_from_the_source_where_it_knows_them():
    np.testing.assert_array_equal(image_sizes(Sized()), SIZES)
    np.testing.assert_array_equal(image_sizes(Tiny()), SIZES)
    lying, _ = by_orientation(feed(Sized()))
    np.testing.assert_array_equal(lying.source.sizes[:3], [(30, 40), (20, 50), (35, 35)])


def test_an_image_without_size_stops_or_counts_as_lying():
    class Broken(Sized):
        def size(self, index):
            if index == 4:
                raise UserError("4.jpg: broken")
            return SIZES[index]

    with pytest.raises(UserError, match="4.jpg: broken"):
        by_orientation(feed(Broken()))
    lying, upright = by_orientation(feed(Broken()), on_error="skip")
    assert 4 in lying.source.indices and 4 not in upright.source.indices


def test_other_recipes_stay_one_feed_and_read_no_sizes():
    one = feed(Sized(), FIXED_RECIPE)
    assert by_orientation(one) == [one]


def test_a_dataset_without_upright_images_is_one_feed(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SIZES", [(30, 40), (20, 50)])
    (lying,) = by_orientation(feed())
    assert lying.name == "tiny/landscape" and len(lying.source) == 2


def test_a_square_canvas_holds_both():
    square = Recipe(
        *((24, 32), 60, (64, 64), False, "none", ("detr_crop", "resize")), RECIPE.detr_crop
    )
    (both,) = by_orientation(feed(recipe=square))
    assert (both.name, len(both.source), both.recipe.crop) == ("tiny", len(SIZES), (64, 64))


def test_both_feeds_fill_batches_of_their_shape():
    feeds = by_orientation(feed())
    plan = Plan([part.recipe.crop for part in feeds], (5, 3), batch=8, multiple=1)
    loader = Loader(feeds, plan, seed=1, max_targets=2)
    for update in loader.iterate(0, 3):
        shapes = [bucket["image"].shape for bucket in update.buckets]
        assert shapes == [(5, 32, 64, 3), (3, 64, 32, 3)]
        for bucket, wanted in zip(update.buckets, ((0, 2, 3, 5, 7), (1, 4, 6)), strict=True):
            assert {(int(i) - 1) % 8 for i in bucket["image"][:, 0, 0, 0]} <= set(wanted)


def test_padding_is_what_the_crops_of_an_epoch_show():
    for part in by_orientation(feed()):
        plan = Plan([part.recipe.crop], (), batch=len(part.source), multiple=1)
        loader = Loader([part], plan, seed=1, max_targets=2, threads=0)
        segments = [update.buckets[0]["segments"] for update in loader.iterate(0, 6)]
        shown = 100 * np.mean(np.concatenate(segments) == -2)
        assert abs(padding(part) - shown) < 5


def test_a_window_that_stands_in_a_lying_image_is_made_smaller_to_fit():
    rule = DetrCrop((40,), (20, 40))
    recipe = Recipe((32,), 60, (32, 64), False, "none", ("detr_crop", "resize"), rule)
    lying = by_orientation(feed(recipe=recipe))[0]
    plan = Plan([(32, 64)], (), batch=40, multiple=1)
    update = next(Loader([lying], plan, seed=0, max_targets=2, threads=0).iterate(0, 1))
    inside = update.buckets[0]["segments"] > -2
    heights, widths = inside.any(axis=2).sum(axis=1), inside.any(axis=1).sum(axis=1)
    assert ((heights == 32) | (widths == 60)).all()  # the drawn short side, or max_side
    assert widths.min() < 32  # standing windows, which would be higher than the canvas


def test_every_image_of_a_dataset_is_equally_likely():
    parts = [[100], [871, 352], [40]]
    weights = split_weights((2, 3, 1), parts)
    plan = Plan([(32, 32)] * 4, weights, batch=16, multiple=8)
    assert plan.cycle <= 10_000
    given = plan.offsets(plan.cycle) / (16 * plan.cycle)
    np.testing.assert_allclose(given[[0, 3]], [2 / 6, 1 / 6], rtol=1e-12)
    np.testing.assert_allclose(given[1] + given[2], 3 / 6, rtol=1e-12)
    np.testing.assert_allclose(given[1] / given[2], 871 / 352, rtol=2e-3)


@pytest.mark.parametrize(
    ("weights", "parts", "expected"),
    [
        ((), [[5], [7]], []),
        ((0.5, 2), [[5], [7]], [0.5, 2]),
        ((), [[3, 1]], [7500, 2500]),
        ((), [[5], [3, 1]], [5000, 3750, 1250]),
        ((1, 2), [[1, 1], [1, 2]], [1666, 1666, 2222, 4444]),
        ((), [[5], [100_000, 1]], [5000, 4999, 1]),  # rare, not never
    ],
)
def test_two_parts_share_the_weight_by_their_images(weights, parts, expected):
    found = split_weights(weights, parts)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1)
    if expected and max(expected) > 2:
        assert all(isinstance(value, int) for value in found) and sum(found) <= 10_000


def test_where_datasets_are_drawn_two_parts_have_exactly_their_shares():
    found = split_shares((2, 3, 1), [[100], [871, 352], [40]])
    expected = [2 / 6, 3 / 6 * 871 / 1223, 3 / 6 * 352 / 1223, 1 / 6]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(split_shares((), [[5], [100_000, 1]])[2], 0.5 / 100_001, rtol=1e-12)
    with pytest.raises(UserError, match="batching.weights has 2 numbers for 3 datasets"):
        split_shares((1, 2), [[5], [7], [9]])
