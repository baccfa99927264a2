"""Captioned crops: rendered alike everywhere, and what is true of them."""

import dataclasses

import numpy as np
import pytest

from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.crops import (
    OPENINGS,
    Crops,
    facts,
    load_or_render,
    phrases,
    render_crops,
    statements,
    truths,
    without_names,
    zero_shot,
)


def test_what_captions_say_and_what_is_true():
    captions = np.array(["a photo of a striped red round thing on ground", "water", "cross"])
    crops = Crops(
        images=np.zeros((3, 1, 1, 3), np.uint8),
        captions=captions,
        shapes=np.array(["ring", "", "cross"]),
        colors=np.array(["red", "", "green"]),
        textures=np.array(["striped", "", "dotted"]),
        stuff=np.array(["sand", "water", ""]),
    )
    # shape, color, texture, coarse, stuff, object, dry ground
    stated = [[-1, 0, 0, 0, -1, 1, 1], [-1, -1, -1, -1, 1, 0, -1], [5, -1, -1, -1, -1, 1, -1]]
    true = [[1, 0, 0, 0, 2, 1, 1], [-2, -2, -2, -2, 1, 0, 0], [5, 1, 2, -2, -2, 1, 1]]
    np.testing.assert_array_equal(statements(captions), stated)
    np.testing.assert_array_equal(facts(crops), true)


def test_rendering_does_not_depend_on_where_a_range_begins(tmp_path):
    many, one = render_crops(3, 3, size=32), render_crops(4, 1, size=32)
    np.testing.assert_array_equal(many.images[1], one.images[0])
    kept = load_or_render(tmp_path, 3, 3, size=32), load_or_render(tmp_path, 3, 3, size=32)
    np.testing.assert_array_equal(kept[0].images, kept[1].images)
    assert kept[1].captions.tolist() == many.captions.tolist()


def two_objects_and_rock():
    return Crops(
        images=np.zeros((3, 1, 1, 3), np.uint8),
        captions=np.array(["", "", ""]),
        shapes=np.array(["disc", "ring", ""]),
        colors=np.array(["red", "red", ""]),
        textures=np.array(["plain", "plain", ""]),
        stuff=np.array(["grass", "", "rock"]),
    )


def test_words_are_asked_only_where_they_apply():
    # shape, color, texture, coarse, stuff
    expected = [[0, 0, 3, 0, -1], [1, 0, 3, 0, -1], [-1, -1, -1, -1, 3]]
    np.testing.assert_array_equal(truths(two_objects_and_rock()), expected)


def test_phrases_take_their_article():
    plain, article, photo = (phrases(opening) for opening in OPENINGS)
    assert (plain[0], article[0], photo[0]) == ("disc", "a disc", "a photo of a disc")
    assert (article[16], photo[16]) == ("an angular thing", "a photo of an angular thing")
    assert (article[17], photo[17]) == ("grass", "a photo of grass")


def test_zero_shot_counts_only_crops_that_have_the_attribute():
    texts = np.eye(21, dtype=np.float32)  # shapes 0-5, colours 6-10, textures, coarse, stuff
    images = texts[[0, 0, 20]]  # like "a disc", like "a disc", like "rock"
    accuracy = zero_shot(images, texts, two_objects_and_rock())
    assert accuracy["shape"] == 50.0 and accuracy["stuff"] == 100.0
    assert accuracy["coarse"] == 100.0  # no text is closer: the first one, round, is right


def test_a_pair_that_must_not_be_named_loses_its_colour_in_captions():
    captions = ["a dotted red disc on rock", "red object", "a red ring"]
    crops = dataclasses.replace(two_objects_and_rock(), captions=np.array(captions))
    kept = without_names(crops, ("red disc", "red cross"))
    assert kept.captions.tolist() == ["a dotted disc on rock", "red object", "a red ring"]
    np.testing.assert_array_equal(kept.shapes, crops.shapes)


@pytest.mark.parametrize("name", ["disc red", "red", "red thing"])
def test_a_name_that_is_no_colour_and_shape_is_an_error(name):
    with pytest.raises(UserError, match=f"unnamed: '{name}' is not a colour and a shape"):
        without_names(two_objects_and_rock(), (name,))
