"""The union card is a card: it loads, and what it has no images for says so."""

import pytest

from lmseg_jax import cli
from lmseg_jax.datasets.card import load_card, parse_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.names_card import union_card
from lmseg_jax.errors import UserError
from lmseg_jax.label_space import look_up
from lmseg_jax.pipeline.augmentation import choose_recipe

BARE = """
name = "bare"
task = "semantic"
format = "none"
about = { source = "s", license = "l" }
classes = [
  { id = 1, name = "sofa", thing = true, color = [1, 2, 3], synonyms = ["couch"] },
  { id = 2, name = "road", thing = false, color = [4, 5, 6] },
]

[test]
short_side = 64
max_side = 80
"""


def card_of(name, classes, *, task="semantic"):
    lines = "\n".join(f"  {line}," for line in classes)
    text = BARE.replace('"bare"', f'"{name}"').replace('"semantic"', f'"{task}"')
    start, end = text.index("classes = ["), text.index("]\n\n[test]")
    return parse_card(f"{text[:start]}classes = [\n{lines}\n{text[end:]}", path=name)


@pytest.fixture(scope="module")
def cards():
    a = card_of(
        "a",
        [
            '{ id = 0, name = "sofa", thing = false, color = [9, 9, 9], synonyms = ["seat"] }',
            '{ id = 1, name = "bench", thing = true, color = [8, 8, 8], synonyms = ["seat"] }',
        ],
    )
    b = card_of(
        "b",
        [
            '{ id = 0, name = "couch", thing = true, color = [9, 9, 9], synonyms = ["bench"] }',
            '{ id = 1, name = "a \\"b\\"", thing = false, color = [9, 9, 8] }',
            '{ id = 2, name = "c", thing = false, color = [8, 8, 8] }',
        ],
        task="panoptic",
    )
    return a, b


def test_the_union_of_cards_is_a_card(cards):
    text = union_card(cards, [{0: 0, 1: 0}, {0: 1}, {1: 1}, {1: 2}], name="both")
    card = parse_card(text, path="both.toml")
    assert card.name == "both"
    assert card.task == "panoptic"
    assert card.taxonomy.names == ("sofa", "bench", 'a "b"', "c")
    assert card.taxonomy.ids.tolist() == [1, 2, 3, 4]
    assert card.taxonomy.things.tolist() == [True, True, False, False]
    assert (card.test.short_side, card.test.max_side) == (64, 80)


def test_a_word_of_two_classes_is_nobodys_synonym(cards):
    text = union_card(cards, [{0: 0, 1: 0}, {0: 1}, {1: 1}, {1: 2}], name="both")
    card = parse_card(text, path="both.toml")
    # "seat" is said of sofa and bench; "bench" is a class
    assert card.taxonomy.categories[0].synonyms == ("couch",)
    assert card.taxonomy.categories[1].synonyms == ()


def test_a_card_of_names_is_asked_for_by_its_synonyms_too(tmp_path):
    path = tmp_path / "a+b.toml"
    path.write_text(BARE)
    space, words = look_up({}, str(path), None, head="text")
    assert words == (("sofa", "couch"), ("road",))
    assert space.taxonomy.name == "bare"
    _, words = look_up({}, str(path), ["road"], head="text")
    assert words == (("road",),)
    path.with_name("c.toml").write_text(BARE)
    _, words = look_up({}, f"{path.with_name('c.toml')}+world_coarse", None, head="text")
    assert words[:3] == (("sofa",), ("road",), ("round thing",))


def test_a_word_that_stands_for_two_classes_of_a_card_of_names_is_an_error(tmp_path):
    path = tmp_path / "twice.toml"
    path.write_text(BARE.replace('"couch"', '"Road"'))
    with pytest.raises(UserError, match="'road' stands there twice"):
        look_up({}, str(path), None, head="text")


def test_a_card_of_names_cannot_be_trained_scored_or_shown(tmp_path, capsys):
    path = tmp_path / "bare.toml"
    path.write_text(BARE)
    card = load_card(path)
    with pytest.raises(UserError, match="names and no images"):
        open_source(card, "train", root="")
    with pytest.raises(UserError, match="cannot be trained"):
        choose_recipe(card, "own")
    for command in ("check", "show"):
        assert cli.main(["data", command, str(path), "--root", str(tmp_path)]) == 2
        assert "names and no images" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("more", "key"), [("[splits]\ntrain = 3\n", "splits"), ('[files]\nfolder = "x"\n', "files")]
)
def test_a_card_of_names_has_no_images(more, key):
    with pytest.raises(UserError, match=f"{key} has entries, but format 'none' has no images"):
        parse_card(BARE + more, path="bare.toml")
