import numpy as np
import pytest

from lmseg_jax import comparison
from lmseg_jax.comparison import Link
from lmseg_jax.taxonomy import Category, Taxonomy


def taxonomy_of(name, *classes):
    """Classes are names, or names with their synonyms."""
    rows = [(entry,) if isinstance(entry, str) else entry for entry in classes]
    categories = [
        Category(i, row[0], False, (i, 0, 0), tuple(row[1:])) for i, row in enumerate(rows)
    ]
    return Taxonomy(name, tuple(categories))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("traffic light", "Traffic Lights", 1.0),
        ("traffic light", "Traffic Sign (Front)", 1 / 4),
        ("wall-brick", "brick wall", 1.0),
        ("tree-merged", "tree", 1.0),
        ("sky-other-merged", "sky", 1 / 2),
        ("bus", "glass", 0.0),
        ("benches", "bench", 1.0),
        ("stuff", "merged", 0.0),  # a name of marks only keeps them
    ],
)
def test_shared_words_forget_signs_plurals_and_marks(one, other, expected):
    assert comparison.shared_words(one, other) == pytest.approx(expected)


def test_classes_meet_by_name_by_words_or_by_a_synonym():
    a = taxonomy_of("a", "Road", "door-stuff", ("sofa", "couch"), "cat")
    b = taxonomy_of("b", "doors", "couch", "road", "dog")
    found = comparison.same_names([a, b])
    assert found == [
        Link((0, 0), (1, 2), "equal name", "Road"),
        Link((0, 1), (1, 0), "same words", "door"),
        Link((0, 2), (1, 1), "synonym", "couch"),
    ]


def test_a_synonym_never_makes_one_class_of_two_of_a_card():
    a = taxonomy_of("a", ("rug", "carpet"), "mat")
    b = taxonomy_of("b", "carpet", "rug")
    groups, refused = comparison.group([a, b], comparison.same_names([a, b]))
    assert groups == [{0: 0, 1: 1}, {0: 1}, {1: 0}]
    assert [(link.one, link.other) for link in refused] == [((0, 0), (1, 0))]


def test_three_cards_meet_through_the_one_in_the_middle():
    middle = taxonomy_of("b", ("couch", "sofa"))
    cards = [taxonomy_of("a", "sofa"), middle, taxonomy_of("c", "couch")]
    groups, refused = comparison.group(cards, comparison.same_names(cards))
    assert groups == [{0: 0, 1: 0, 2: 0}]
    assert not refused


def test_near_names_are_pairs_of_different_cards_with_known_cosines():
    groups = [{0: 0}, {0: 1}, {1: 0}]  # the first two are of one card only
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    found = comparison.near_names(
        ["red car", "tree", "car"], groups, embeddings=vectors, known=np.array([False, True, True])
    )
    assert [(pair.one, pair.other) for pair in found] == [(0, 2), (1, 2)]
    assert [pair.words for pair in found] == [0.5, 0.0]
    assert found[0].cosine is None
    assert found[1].cosine == pytest.approx(0.8)


def test_pixels_are_counted_by_both_classes_and_void_by_none():
    one = np.array([[0, 0, 1], [1, -1, 1]])
    other = np.array([[2, 2, 0], [0, 0, -1]])
    expected = [[0, 0, 2], [2, 0, 0]]
    np.testing.assert_array_equal(comparison.count_together(one, other, (2, 3)), expected)


# ground is grass and sand and nothing else; a striped thing is red or blue, as others are
TABLE = np.array([[60, 40, 0, 0], [0, 0, 30, 10], [0, 0, 40, 20]])


def test_a_split_is_nested_where_its_parts_lie_inside():
    ground, plain, striped = comparison.splits(TABLE, share=0.2)
    assert [(part.index, part.share, part.inside) for part in ground.parts] == [
        (0, 0.6, 1.0),
        (1, 0.4, 1.0),
    ]
    assert ground.nested
    assert (ground.pixels, plain.index, striped.index) == (100, 2, 1)
    assert [part.share for part in striped.parts] == [0.75, 0.25]
    assert striped.parts[0].inside == pytest.approx(30 / 70)
    assert not striped.nested


def test_a_class_that_covers_one_other_is_no_split():
    assert comparison.splits(TABLE, share=0.5) == []
    assert [split.index for split in comparison.splits(TABLE, share=0.35)] == [0]


def test_rare_classes_are_not_judged():
    table = np.array([[100_000, 0], [0, 0], [50, 50]])
    assert comparison.splits(table, share=0.1) == []
    rows, columns = comparison.seen(table)
    assert rows.tolist() == [True, False, False]
    assert columns.tolist() == [True, False]


def test_equal_label_maps_link_classes_of_other_names():
    table = np.array([[90, 10], [0, 100]])
    np.testing.assert_allclose(comparison.overlap(table), [[0.9, 10 / 200], [0, 100 / 110]])
    found = comparison.same_pixels(table, (1, 4), iou=0.905)
    assert found == [Link((1, 1), (4, 1), "same pixels", "IoU 91")]
