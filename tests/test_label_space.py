"""Words, taxonomies, unions and subsets that can be asked for; nothing is computed."""

import numpy as np
import pytest

from lmseg_jax import label_space
from lmseg_jax.datasets.card import load_card
from lmseg_jax.errors import UserError


@pytest.fixture(scope="module")
def spaces():
    return {name: label_space.of_card(load_card(name)) for name in ("ade20k", "cityscapes")}


def test_a_union_has_every_name_once_and_ids_from_one(spaces):
    union, words = label_space.look_up(spaces, "ade20k+cityscapes", None, head="text")
    parts = [spaces[name].taxonomy.names for name in spaces]
    assert union.taxonomy.names == tuple(dict.fromkeys(parts[0] + parts[1]))
    assert len(union.taxonomy) < len(parts[0]) + len(parts[1])
    np.testing.assert_array_equal(union.taxonomy.ids, np.arange(1, len(union.taxonomy) + 1))
    assert words == tuple((name,) for name in union.taxonomy.names)
    assert union.test == spaces["ade20k"].test


def test_a_subset_of_a_union_keeps_its_ids_in_the_order_asked(spaces):
    asked = ["Traffic_Light", "sky"]
    found, words = label_space.look_up(spaces, "ade20k+cityscapes", asked, head="text")
    union, _ = label_space.look_up(spaces, "ade20k+cityscapes", None, head="text")
    ids = {category.name: category.id for category in union.taxonomy.categories}
    assert found.taxonomy.names == ("traffic light", "sky")
    assert [c.id for c in found.taxonomy.categories] == [ids["traffic light"], ids["sky"]]
    assert words == (("traffic light",), ("sky",))


def test_a_trained_taxonomy_alone_is_asked_in_the_words_of_training(spaces):
    assert label_space.look_up(spaces, "cityscapes", None, head="text") == (
        spaces["cityscapes"],
        (),
    )


def test_things_are_named_by_name(spaces):
    taxonomy = spaces["cityscapes"].taxonomy
    assert label_space.with_things(taxonomy, ["Road"]).things.sum() == 1
    assert not label_space.with_things(taxonomy, []).things.any()
    with pytest.raises(UserError, match="things: no 'zebra'; give a list of names of cityscapes"):
        label_space.with_things(taxonomy, ["zebra"])
