"""Token ids of CLIP, and the joint vocabulary of several datasets."""

import numpy as np
import pytest

from lmseg_jax.errors import UserError
from lmseg_jax.tokenizer import tokenize, tokenize_full, vocabulary

END = 49407


def test_a_full_text_has_start_and_end():
    expected = [[49406, 320, 1125, 539, 320, 2368, 269, END, END, END]]
    np.testing.assert_array_equal(tokenize_full(["a photo of a cat."], length=10), expected)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("background", [5994]),
        ("X", [343]),
        (".", [269]),
        ("road, route", [1759, 267, 5261]),
        ("door-stuff", [2489, 268, 3487]),
        ("CCTV Camera", [23097, 3934]),
        ("Traffic Sign (Back)", [3399, 2292, 263, 893, 264]),
        ("Traffic_Sign  (back)", [3399, 2292, 263, 893, 264]),
    ],
)
def test_names_have_the_ids_of_the_original_tokenizer(name, ids):
    np.testing.assert_array_equal(tokenize([name]), [[*ids, END]])


def test_shorter_names_are_padded_with_the_end_token():
    np.testing.assert_array_equal(
        tokenize(["X", "road, route"]), [[343, END, END, END], [1759, 267, 5261, END]]
    )


def test_names_are_shared_and_every_dataset_ends_in_background():
    found = vocabulary([["car", "Traffic_Light"], ["traffic light"]])
    assert found.names == ("car", "traffic light", "background")
    np.testing.assert_array_equal(found.index, [[0, 1, 2], [1, 2, 0]])
    np.testing.assert_array_equal(found.valid, [[True, True, True], [True, True, False]])
    assert len(found.tokens) == 3


def test_a_name_too_long_for_the_prompt_is_an_error_that_counts_its_tokens():
    with pytest.raises(UserError, match="has 68 tokens; at most 67 fit"):
        tokenize(["dog " * 68])
    assert tokenize(["dog " * 67]).shape == (1, 68)
    with pytest.raises(UserError, match="at most 55 fit"):
        tokenize(["dog " * 56], prompt=20)


def test_a_template_stands_around_every_name_and_around_background():
    found = vocabulary([["cat"], ["road, route"]], template="a photo of {name}.")
    assert found.names == ("cat", "background", "road, route")
    photo_of = [320, 1125, 539]
    np.testing.assert_array_equal(
        found.tokens,
        [
            [*photo_of, 2368, 269, END, END, END],
            [*photo_of, 5994, 269, END, END, END],
            [*photo_of, 1759, 267, 5261, 269, END],
        ],
    )


def test_a_name_too_long_for_its_template_is_an_error_that_names_both():
    with pytest.raises(UserError, match="'dog dog .* in the template 'a photo of {name}' has 68 "):
        tokenize(["dog " * 65], template="a photo of {name}")
    assert tokenize(["dog " * 64], template="a photo of {name}").shape == (1, 68)
    with pytest.raises(UserError, match="class name ' _'"):
        tokenize([" _"], template="a photo of {name}")


def test_an_empty_name_is_an_error():
    with pytest.raises(UserError, match="class name ' _'"):
        tokenize(["car", " _"])


def test_a_text_that_does_not_fit_is_an_error():
    with pytest.raises(UserError, match="has 8 tokens; at most 7 fit"):
        tokenize_full(["a photo of a cat."], length=7)


def test_no_class_may_be_called_like_no_object():
    with pytest.raises(UserError, match="list its id in void"):
        vocabulary([["car", "back ground"], ["car", "Background"]])
