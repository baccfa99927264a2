"""The renderer is exact and repeatable, and every taxonomy tells the same truth about a scene."""

import dataclasses
import hashlib

import numpy as np
import pytest

from lmseg_jax.datasets.captions import caption_crop
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.sample import VOID, semantic_map
from lmseg_jax.datasets.world import STYLES, Scene, SceneObject, WorldSource, annotate, render
from lmseg_jax.datasets.world_scene import COLORS, SHAPES, STUFF, TEXTURES
from lmseg_jax.errors import UserError

# Whoever changes the renderer re-opens every number that was measured on the worlds.
GOLDEN = "40d311e3314278c8853ebfbf49a3935b1a2f298f51a55c1d1d850e5f7046217b"

WORLDS = ("world_patterns", "world_colors", "world_coarse", "world_shapes")
WORDS = ("world_words", "world_words_unseen")


@pytest.fixture(scope="module")
def cards():
    return {name: load_card(name) for name in WORLDS + WORDS}


@pytest.fixture(scope="module")
def crops():
    return [caption_crop(index) for index in range(150)]


def changed(card, **options):
    return dataclasses.replace(card, options=card.options | options)


def tiny_scene():
    """Two striped discs, a plain star and a hidden square on grass and water, 16 x 16 pixels."""
    stuff = np.zeros((16, 16), np.int32)
    stuff[8:] = STUFF.index("water")
    ids = np.full((16, 16), -1, np.int32)
    ids[0:5, 0:5] = 0  # 25 pixels
    ids[0:5, 6:11] = 1  # 25 pixels
    ids[10:16, 0:4] = 2  # 24 pixels, just enough
    ids[15, 5:16] = 3  # 11 pixels, too few
    objects = (
        SceneObject("disc", "red", "striped", id=0, area=25, painted=25),
        SceneObject("disc", "green", "striped", id=1, area=25, painted=25),
        SceneObject("star", "red", "plain", id=2, area=24, painted=24),
        SceneObject("square", "blue", "plain", id=3, area=11, painted=200),
    )
    return Scene(np.zeros((16, 16, 3), np.uint8), stuff, objects, ids)


def name_map(sample, card):
    """Class names as an array of words, "" where void."""
    names = np.array([*card.taxonomy.names, ""])
    return names[semantic_map(sample)]


def test_eight_scenes_are_what_they_were():
    digest = hashlib.sha256()
    for style in STYLES:
        for index in (0, 1_000_000):
            scene = render(style, index)
            for array in (scene.image, scene.ids, scene.stuff):
                digest.update(array.tobytes())
    assert digest.hexdigest() == GOLDEN


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_has_the_size_of_its_style_and_the_documented_types(style):
    scene = render(style, 3)
    assert scene.image.shape == (*STYLES[style].size, 3)
    assert scene.ids.shape == scene.stuff.shape == STYLES[style].size
    assert (scene.image.dtype, scene.ids.dtype, scene.stuff.dtype) == (np.uint8, np.int32, np.int32)


def test_the_same_index_gives_the_same_scene_and_another_index_another():
    first, again, other = render("colors", 7), render("colors", 7), render("colors", 8)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert (first.image != other.image).mean() > 0.5


def test_scenes_hold_one_to_three_stuff_areas_and_three_to_eight_objects():
    scenes = [render("shapes", index) for index in range(60)]
    assert {len(scene.objects) for scene in scenes} == set(range(3, 9))
    assert {len(np.unique(scene.stuff)) for scene in scenes} == {1, 2, 3}


def test_visible_area_counts_the_pixels_of_the_id_map():
    scene = render("coarse", 5)
    for item in scene.objects:
        assert item.area == (scene.ids == item.id).sum() <= item.painted


def test_every_word_of_the_renderer_occurs():
    objects = [item for index in range(40) for item in render("patterns", index).objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.color for item in objects} == set(COLORS)
    assert {item.texture for item in objects} == set(TEXTURES)


def test_an_unknown_style_is_an_error():
    with pytest.raises(ValueError, match="unknown world style 'plaid'"):
        render("plaid", 0)


def test_patterns_give_one_segment_for_each_object_and_one_for_all_stuff(cards):
    card = cards["world_patterns"]
    sample = annotate(tiny_scene(), card, name="tiny")
    names = [card.taxonomy.names[k] for k in sample.classes]
    assert sorted(names) == ["ground", "plain object", "striped object", "striped object"]
    assert sorted(sample.area) == [24, 25, 25, 256 - 25 - 25 - 24 - 11]
    assert not sample.crowd.any()
    assert sample.segments[0, 0] != sample.segments[0, 6]


def test_objects_of_less_than_24_pixels_are_void(cards):
    for card in cards.values():
        sample = annotate(tiny_scene(), card, name="tiny")
        assert (sample.segments[15, 5:] == VOID).all()


def test_coarse_has_no_word_for_stars_and_keeps_water_apart(cards):
    card = cards["world_coarse"]
    words = name_map(annotate(tiny_scene(), card, name="tiny"), card)
    assert set(words[10:16, 0:4].ravel()) == {""}
    assert words[0, 0] == "round thing"
    assert words[5, 0] == "ground"
    assert words[9, 9] == "water"


def test_colors_name_every_kind_of_stuff(cards):
    card = cards["world_colors"]
    words = name_map(annotate(tiny_scene(), card, name="tiny"), card)
    assert (words[0, 0], words[0, 6], words[12, 2]) == ("red object", "green object", "red object")
    assert (words[5, 0], words[9, 9]) == ("grass", "water")


def test_words_name_objects_by_two_attributes_and_leave_some_pairs_out(cards):
    seen, whole = (
        name_map(annotate(tiny_scene(), cards[name], name="tiny"), cards[name]) for name in WORDS
    )
    assert (seen[0, 0], seen[0, 6], seen[12, 2]) == ("", "green disc", "red star")
    assert (whole[0, 0], whole[0, 6], whole[12, 2]) == ("red disc", "green disc", "red star")
    assert (seen[5, 0], seen[9, 9]) == (whole[5, 0], whole[9, 9]) == ("grass", "water")


def test_a_semantic_card_merges_the_objects_of_a_class(cards):
    card = dataclasses.replace(cards["world_patterns"], task="semantic")
    sample = annotate(tiny_scene(), card, name="tiny")
    assert len(set(sample.classes)) == len(sample.classes) == 3
    assert sample.segments[0, 0] == sample.segments[0, 6]


@pytest.mark.parametrize("world", WORLDS)
def test_labels_annotate_the_same_scene_in_another_taxonomy(cards, world):
    own = WorldSource(cards[world], "val")[2]
    for name, card in cards.items():
        sample = WorldSource(cards[world], "val", labels=card)[2]
        np.testing.assert_array_equal(sample.image, own.image)
        assert sample.dataset == name
        assert sample.name == f"{world}/val/000002"
        assert sample.area.sum() == (sample.segments != VOID).sum()


def test_taxonomies_agree_about_a_scene(cards):
    truth = {}
    for name, card in cards.items():
        sample = WorldSource(cards["world_colors"], "val", labels=card)[4]
        truth[name] = name_map(sample, card)
    ground = truth["world_patterns"] == "ground"
    np.testing.assert_array_equal(ground, truth["world_shapes"] == "ground")
    np.testing.assert_array_equal(ground, np.isin(truth["world_colors"], STUFF))
    np.testing.assert_array_equal(ground, np.isin(truth["world_coarse"], ("ground", "water")))
    water = truth["world_colors"] == "water"
    np.testing.assert_array_equal(water, truth["world_coarse"] == "water")
    round_ones = np.isin(truth["world_shapes"], ("disc", "ring"))
    np.testing.assert_array_equal(round_ones, truth["world_coarse"] == "round thing")


@pytest.mark.parametrize("world", WORLDS)
def test_every_class_of_a_card_occurs(cards, world):
    source = WorldSource(cards[world], "train")
    found = {k for index in range(40) for k in source[index].classes}
    assert found == set(range(len(cards[world].taxonomy)))


def test_splits_have_the_promised_length_and_share_no_scene(cards):
    card = cards["world_patterns"]
    train, val = WorldSource(card, "train"), WorldSource(card, "val")
    assert (len(train), len(val)) == (20_000, 200)
    assert (train[0].image != val[0].image).any()
    assert val.files(12) == ("world_patterns/val/000012",)
    with pytest.raises(IndexError):
        val[200]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "plaid"}, "options.style is 'plaid'"),
        ({"by": "size"}, "options.by is 'size'"),
        ({"by": "color size"}, "options.by is 'color size'; use one of shape, color, texture, or"),
        ({"by": "color color"}, "options.by is 'color color'"),
        ({"by": ""}, "options.by is ''"),
        (
            {"by": "color shape", "objects": {"disc red": "ground"}},
            "options.objects has 'disc red'",
        ),
        ({"by": None}, "options.by is None; a world card needs a word"),
        ({"objects": {"oval": "ground"}}, "options.objects has 'oval'"),
        ({"stuff": {"grass": "lawn"}}, "options.stuff.grass is 'lawn'"),
        ({"stuff": "ground"}, "a world card needs a table"),
        ({"first": {"train": 0}}, "options.first.val is None"),
        ({"first": {"train": 0, "val": 19_999}}, "start at 20000 or later"),
    ],
)
def test_a_wrong_option_is_named(cards, options, message):
    with pytest.raises(UserError, match=message) as error:
        WorldSource(changed(cards["world_patterns"], **options), "train")
    assert "world_patterns.toml" in str(error.value)


def test_an_unknown_split_is_named(cards):
    with pytest.raises(UserError, match="no split 'test'; use one of train, val"):
        WorldSource(cards["world_colors"], "test")


def test_a_crop_is_repeatable_and_has_the_size_asked_for():
    first, again = caption_crop(11), caption_crop(11)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.caption == again.caption
    assert caption_crop(11, size=48).image.shape == (48, 48, 3)
    assert first.image.shape == (64, 64, 3)
    assert first.image.dtype == np.uint8


def test_captions_say_only_what_is_true(crops):
    families = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES}
    for crop in crops:
        words = crop.caption.split()
        for attribute, family in families.items():
            assert {word for word in words if word in family} <= {getattr(crop, attribute)}
        assert {word for word in words if word in STUFF} <= {crop.stuff}
        if "round" in words:
            assert crop.shape in ("disc", "ring")
        if "angular" in words:
            assert crop.shape in ("square", "triangle")
        if "object" in words or "thing" in words:
            assert crop.shape is not None


def test_some_crops_show_no_object(crops):
    empty = [crop for crop in crops if crop.shape is None]
    assert 0.05 < len(empty) / len(crops) < 0.3
    assert all(crop.stuff in STUFF for crop in empty)


def test_every_class_name_of_every_world_is_said(cards, crops):
    said = " | ".join(crop.caption for crop in crops + [caption_crop(i) for i in range(150, 300)])
    for world in WORLDS:
        for name in cards[world].taxonomy.names:
            assert name in said


def test_captions_say_a_colour_before_its_shape_as_the_names_of_pairs_do(cards, crops):
    said = " | ".join(crop.caption for crop in crops)
    pairs = [name for name in cards["world_words_unseen"].taxonomy.names if " " in name]
    assert sum(pair in said for pair in pairs) > 10  # each one is said once in about 150 crops
    assert not any(f"{shape} {color}" in said for color, shape in map(str.split, pairs))
