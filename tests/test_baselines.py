"""The trivial predictors are scored exactly and find what there is to find."""

import numpy as np
import pytest

from lmseg_jax import baselines
from lmseg_jax.baselines import trivial_baselines
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import from_names


class Toy:
    """Images whose class maps are given, painted by `paint(classes, rng)`; segments are classes."""

    def __init__(self, maps, paint, *, names):
        self.maps, self.paint, self.names = maps, paint, names

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        classes = np.arange(self.names, dtype=np.int32)
        image = self.paint(self.maps[index], np.random.default_rng(index))
        area = np.array([(self.maps[index] == k).sum() for k in classes], np.int32)
        crowd = np.zeros(self.names, bool)
        return Sample(image, self.maps[index], classes, area, crowd, "toy", str(index))


def by_color(classes, rng):
    """Class 0 is dark, class 1 is bright; void is red."""
    image = np.where(classes[..., None] == 1, 200, 50) + rng.integers(-20, 20, (*classes.shape, 3))
    image[classes < 0] = (255, 0, 0)
    return image.astype(np.uint8)


def by_texture(classes, rng):
    """Both classes have the same two tones: class 0 in rows, class 1 in columns."""
    y, x = np.indices(classes.shape)
    tone = np.where(classes == 1, x // 2 % 2, y // 2 % 2)
    return np.repeat(np.where(tone, 180, 80)[..., None], 3, axis=2).astype(np.uint8)


def halves(share, *, size=(24, 32)):
    """The left `share` of the columns is class 0, the rest class 1."""
    classes = np.zeros(size, np.int32)
    classes[:, round(size[1] * share) :] = 1
    return classes


def textured_scores():
    """As many pixels and classes as in `colored`, so that nothing is compiled again."""
    maps = [halves(share) for share in (0.5, 0.25, 0.5, 0.4)]
    maps[0][:4] = -1
    toy = Toy(maps, by_texture, names=2)
    return trivial_baselines(toy, toy, from_names(["rows", "columns", "absent"]), images=4)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A perceptron that is fitted for less long; the toys need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_STEPS", 100)
        patch.setattr(baselines, "_BATCH", 256)
        patch.setattr(baselines, "_CHUNK", 1024)
        yield


@pytest.fixture(scope="module")
def colored():
    maps = [halves(share) for share in (0.75, 0.7, 0.8, 0.75)]
    maps[0][:4] = -1
    toy = Toy(maps, by_color, names=2)
    test = Toy([halves(0.75), halves(0.5)], by_color, names=2)
    return trivial_baselines(toy, test, from_names(["dark", "bright", "absent"]), images=4)


@pytest.fixture(scope="module")
def textured():
    return textured_scores()


def test_majority_always_says_the_most_frequent_class(colored):
    # 24 x 32 pixels twice: class 0 has 3/4 and 1/2 of them, so 5/8 of all; class 1 is never said.
    assert colored["majority"]["iou"] == {"dark": 62.5, "bright": 0.0, "absent": None}
    assert colored["majority"]["miou"] == 31.25


@pytest.mark.parametrize("name", ["colour", "patches"])
def test_classes_of_different_colour_are_found(colored, name):
    assert colored[name]["miou"] == pytest.approx(100, abs=1)


def test_classes_of_equal_colours_fool_the_lookup_but_not_the_patches(textured):
    assert textured["colour"]["miou"] < 60
    assert textured["patches"]["miou"] > 90


def test_a_class_that_is_absent_from_the_truth_has_no_part_in_the_mean(colored):
    for score in colored.values():
        assert score["iou"]["absent"] is None
        assert score["miou"] == pytest.approx((score["iou"]["dark"] + score["iou"]["bright"]) / 2)


def test_large_images_and_images_of_different_size_are_accepted():
    toy = Toy([halves(0.75, size=(300, 640)), halves(0.75, size=(40, 30))], by_color, names=2)
    scores = trivial_baselines(toy, toy, from_names(["dark", "bright"]), images=2)
    assert scores["colour"]["miou"] > 95


def test_images_without_labels_are_an_error():
    toy = Toy([np.full((8, 8), -1, np.int32)], by_color, names=2)
    with pytest.raises(UserError, match="words: the training images have no labelled pixel"):
        trivial_baselines(toy, toy, from_names(["dark", "bright"]))


def test_the_same_seed_gives_the_same_scores(textured):
    assert textured_scores() == textured
