import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.check import check
from lmseg_jax.datasets.new_card import distinct_colors, new_card
from lmseg_jax.errors import UserError

LABEL = np.array([[0, 0, 3, 255], [0, 7, 7, 3]], np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dataset(here, *labels, mode=None, palette=None):
    """Images d/i/0.jpg, ... with these labels in d/l, all in one set."""
    for folder in ("i", "l"):
        (here / "d" / folder).mkdir(parents=True)
    for number, label in enumerate(labels):
        photo = np.random.default_rng(number).integers(0, 256, (*label.shape[:2], 3), np.uint8)
        Image.fromarray(photo).save(here / f"d/i/{number}.jpg")
        picture = Image.fromarray(label)
        if palette is not None:
            picture = picture.convert("P")
            picture.putdata(label.ravel().tolist())
            picture.putpalette(palette)
        picture.save(here / f"d/l/{number}.png")


def first(**options):
    card, layout = new_card(images="d/i", labels="d/l", **options)
    return card, layout


def test_a_first_card_passes_the_check_as_it_is(here):
    dataset(here, *[LABEL] * 10)
    seen = []
    card, layout = first(progress=lambda done, total: seen.append((done, total)))
    assert (card.name, card.path, card.task, card.format) == (
        "d",
        "d.toml",
        "semantic",
        "label_png",
    )
    assert card.taxonomy.ids.tolist() == [0, 3, 7]
    assert card.taxonomy.names == ("class 0", "class 3", "class 7")
    assert card.taxonomy.void == (255,)
    assert card.splits == {"train": 9, "val": 1}
    assert seen == [(done, 10) for done in range(1, 11)]
    for split in card.splits:
        report = check(card, split, root=layout.root)
        assert report.ok, report.problems


def test_every_guess_is_marked_and_classes_say_how_much_there_is(here):
    dataset(here, LABEL, LABEL * 0)
    first()
    lines = (here / "d.toml").read_text().splitlines()
    (line,) = (line for line in lines if "class 3" in line)
    assert line.endswith("# guess: the name; 12.50 % of the pixels, in 1 of 2 images")
    for key in ("name =", "format =", "about =", "void =", "labels ="):
        assert any(line.startswith(key) and "# guess" in line for line in lines), key
    for key in ("classes = [", "list =", "[augmentation]"):
        above = lines[max(0, lines.index(next(x for x in lines if x.startswith(key))) - 2) :][:2]
        assert any("guess" in line for line in above), key


def test_names_are_taken_and_those_that_mean_nothing_become_void(here):
    dataset(here, LABEL, LABEL)
    (here / "names.txt").write_text('0 unlabeled\n3 a "straße"\n7 car\n9 bus\n255 sky\n')
    card, _ = first(names="names.txt")
    assert card.taxonomy.names == ('a "straße"', "car", "bus", "sky")
    assert card.taxonomy.ids.tolist() == [3, 7, 9, 255]
    assert card.taxonomy.void == (0,)
    assert "guess: the name" not in (here / "d.toml").read_text()


def test_255_beside_one_other_id_is_a_class(here):
    dataset(here, *[np.array([[0, 255]], np.uint8)] * 2)
    card, _ = first()
    assert card.taxonomy.ids.tolist() == [0, 255]
    assert card.taxonomy.void == ()


def test_colours_are_classes_where_labels_are_rgb(here):
    label = np.array([[[128, 64, 128], [0, 0, 0]], [[0, 0, 142], [0, 0, 142]]], np.uint8)
    dataset(here, label, label)
    (here / "names.txt").write_text("0 0 142 car\n")
    card, layout = first(names="names.txt")
    assert card.format == "color_png"
    assert card.taxonomy.names == ("car", "class 1")
    assert card.taxonomy.colors.tolist() == [[0, 0, 142], [128, 64, 128]]
    assert (card.void_colors, card.taxonomy.void) == (((0, 0, 0),), (255,))
    assert check(card, "train", root=layout.root).ok


def test_grey_values_stored_as_rgb_keep_their_ids(here):
    dataset(here, *[LABEL[..., None].repeat(3, axis=-1)] * 2)
    (here / "names.txt").write_text("0 sky\n3 road\n7 car\n")
    card, _ = first(names="names.txt")
    assert card.format == "color_png"
    assert card.taxonomy.ids.tolist() == [0, 3, 7]
    assert card.taxonomy.names == ("sky", "road", "car")
    assert card.void_colors == ((255, 255, 255),)


def test_the_colours_of_a_palette_are_kept_where_they_tell_classes_apart(here):
    palette = [0, 0, 0] * 3 + [220, 20, 60] + [0, 0, 0] * 252  # id 3 has a colour of its own
    dataset(here, LABEL, LABEL, palette=palette)
    card, _ = first()
    colors = card.taxonomy.colors.tolist()
    assert colors[1] == [220, 20, 60]
    assert [0, 0, 0] not in colors


@pytest.mark.parametrize(
    ("size", "crop", "short"),
    [
        ((360, 480), (192, 256), 240),
        ((480, 360), (256, 192), 240),
        ((300, 2400), (192, 384), 240),
        ((20, 20), (32, 32), 20),
    ],
)
def test_the_recipe_fits_the_size_of_the_images(here, size, crop, short):
    dataset(here, *[np.tile(np.uint8([0, 1]), (size[0], size[1] // 2))] * 2)
    card, _ = first()
    assert card.train.crop == crop
    assert card.test.short_side == short
    assert min(card.train.short_sides) < short < max(card.train.short_sides)


def test_a_card_that_is_there_is_not_overwritten(here):
    dataset(here, LABEL, LABEL)
    (here / "d.toml").write_text("mine")
    with pytest.raises(UserError, match="d.toml is there already; name another --output"):
        first()
    assert (here / "d.toml").read_text() == "mine"
    assert not (here / "d/train.txt").exists()
    card, _ = first(output="other.toml", name="roads")
    assert (card.path, card.name) == ("other.toml", "roads")


def test_nothing_is_left_behind_by_a_card_that_cannot_be(here):
    dataset(here, LABEL, LABEL)
    with pytest.raises(UserError, match="use letters, digits"):
        first(name="my roads")
    assert not list(here.glob("*.toml")) and not list((here / "d").glob("*.txt"))


@pytest.mark.parametrize("kind", ["mixed", "broken", "many"])
def test_labels_that_hold_no_classes_are_an_error(here, kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    dataset(here, *([noise, noise] if kind == "many" else [LABEL, LABEL]))
    if kind == "mixed":
        Image.fromarray(noise[:2, :4]).save(here / "d/l/1.png")
    elif kind == "broken":
        (here / "d/l/1.png").write_bytes((here / "d/l/1.png").read_bytes()[:40])
    message = {
        "mixed": "labels of one kind",
        "broken": "1.png: cannot be decoded",
        "many": "more than 512",
    }
    with pytest.raises(UserError, match=message[kind]):
        first()


def test_colours_are_distinct_and_none_is_black_white_or_taken():
    colors = distinct_colors(200, taken=[(255, 0, 0)])
    assert len(set(colors)) == 200
    assert not {(0, 0, 0), (255, 255, 255), (255, 0, 0)} & set(colors)
    assert all(0 <= part <= 255 for color in colors for part in color)
