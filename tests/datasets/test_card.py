import numpy as np
import pytest

from lmseg_jax.datasets.card import load_card, shipped_cards
from lmseg_jax.errors import UserError

CARD = """
name = "roads"
task = "semantic"
format = "label_png"
about = { source = "here", license = "free" }
void = [255]
classes = [
  { id = 7, name = " road ", thing = false, color = [128, 64, 128] },
  { id = 3, name = "person", thing = true, color = [220, 20, 60], synonyms = ["walker"] },
]

[files]
folder = "roads"
images = "{split}/{name}.png"
labels = "{split}_labels/{name}.png"

[splits]
train = 3
val = 2

[augmentation]
short_sides = [64, 96]
max_side = 256
crop = [64, 96]
color = true
flip = "horizontal"
order = ["resize", "crop", "color", "flip"]

[test]
short_side = 64
max_side = 128
"""


def load(tmp_path, text=CARD):
    path = tmp_path / "roads.toml"
    path.write_text(text, encoding="utf-8")
    return load_card(path)


def test_a_card_says_everything_about_a_dataset(tmp_path):
    card = load(tmp_path)
    assert (card.name, card.task, card.format) == ("roads", "semantic", "label_png")
    assert card.taxonomy.names == ("road", "person")
    assert card.taxonomy.ids.tolist() == [7, 3]
    assert card.taxonomy.things.tolist() == [False, True]
    assert card.taxonomy.colors.tolist() == [[128, 64, 128], [220, 20, 60]]
    assert card.taxonomy.categories[1].synonyms == ("walker",)
    assert card.taxonomy.void == (255,)
    assert card.splits == {"train": 3, "val": 2}
    assert card.files.images == ("{split}/{name}.png",)
    assert card.train.crop == (64, 96)
    assert (card.test.short_side, card.test.max_side) == (64, 128)
    assert (card.object_mask, card.overlap) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "roads"', "", ["name is missing"]),
        ('name = "roads"', 'name = "my roads"', ["name is 'my roads'"]),
        ('"semantic"', '"boxes"', ["task", "'boxes'", "semantic, panoptic"]),
        ("void = [255]", "void = [7]", ["void has 7", "'road'"]),
        ("void = [255]", "void = [true]", ["void[0] is True"]),
        ("void = [255]", "void_colors = [[128, 64, 128]]", ["void_colors", "'road'"]),
        ("void = [255]", "nothing = [255]", ["nothing is not a key", "void"]),
        ("id = 3", "id = 7", ["classes[1].id is 7", "classes[0]"]),
        ("id = 3", "id = -1", ["classes[1].id is -1", "from 0 to 65535"]),
        ("id = 3", 'id = "3"', ["classes[1].id is '3'", "a whole number"]),
        ('"person"', '"Road"', ["classes[1].name is 'Road'", "classes[0]"]),
        ('"person"', '" "', ["classes[1].name is empty"]),
        ("[220, 20, 60]", "[220, 20, 256]", ["classes[1].color[2] is 256"]),
        ("[220, 20, 60]", "[220, 20]", ["classes[1].color is [220, 20]"]),
        ("[220, 20, 60]", "[128, 64, 128]", ["classes[1].color", "classes[0]"]),
        ("thing = true", "things = true", ["classes[1].thing is missing"]),
        ('["walker"]', '"walker"', ["classes[1].synonyms", "a list"]),
        ('folder = "roads"', 'folder = "/roads"', ["files.folder is '/roads'", "below the root"]),
        ('folder = "roads"', 'folder = "a/../.."', ["files.folder", "without .."]),
        ('"{split}/{name}.png"', '"{split}/{stem}.png"', ["files.images", "'{stem}'"]),
        ("[files]", '[files]\nsegments = "{name}.json"', ["files.segments", "'{name}'"]),
        ("[files]", '[files]\nsegments = "../val.json"', ["files.segments", "without .."]),
        ("[files]", '[files]\ninstances = "all.png"', ["files.instances", "one {name}"]),
        ('"{split}/{name}.png"', '"{split}/all.png"', ["files.images", "one {name}"]),
        ('"{split}/{name}.png"', '"all/{name}.png"', ["files", "'train' and 'val'", "{split}"]),
        ("val = 2", "val = 0", ["splits.val is 0"]),
        ("[splits]\ntrain = 3\nval = 2", "", ["splits is missing"]),
        ("[test]\nshort_side = 64\nmax_side = 128", "", ["test is missing"]),
        ("[64, 96]\nmax_side", "[64, 512]\nmax_side", ["augmentation.short_sides", "256"]),
        ("[64, 96]\nmax_side", "[]\nmax_side", ["augmentation.short_sides is []"]),
        ("crop = [64, 96]", "crop = [64, 100]", ["augmentation.crop", "multiples of 32"]),
        ("crop = [64, 96]", "crop = [64, 288]", ["augmentation.crop", "max_side = 256"]),
        ("color = true\n", "color = 1\n", ["augmentation.color is 1", "true or false"]),
        ('"horizontal"', '"vertical"', ["augmentation.flip", "none, horizontal, both"]),
        ('"color", "flip"', '"color"', ["augmentation.order", "flip"]),
        ('"color", "flip"', '"color", "flip", "blur"', ["augmentation.order", "'blur'"]),
        ("short_side = 64", "short_side = 256", ["test.short_side is 256", "max_side = 128"]),
        ("classes = [", "classes = ", ["not a TOML file"]),
    ],
)
def test_a_mistake_names_file_key_and_what_is_expected(tmp_path, old, new, words):
    assert old in CARD
    with pytest.raises(UserError) as caught:
        load(tmp_path, CARD.replace(old, new, 1))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "roads.toml"))
    assert all(word in message for word in words), message


def test_thresholds_are_numbers_from_0_to_1(tmp_path):
    section = "[panoptic]\nobject_mask = 1\noverlap = {}\n"
    assert load(tmp_path, CARD + section.format("0.5")).object_mask == 1.0
    with pytest.raises(UserError, match=r"panoptic\.overlap is 1\.5"):
        load(tmp_path, CARD + section.format("1.5"))


def test_classes_below_a_section_are_found_missing_with_a_hint(tmp_path):
    start, end = CARD.index("classes"), CARD.index("[files]")
    moved = CARD[:start] + CARD[end:] + "[options]\n" + CARD[start:end]
    with pytest.raises(UserError, match=r"classes is missing.*before any \[section\]"):
        load(tmp_path, moved)


def test_an_unknown_name_lists_the_shipped_cards():
    with pytest.raises(UserError, match="'camvit'.*camvid.*labelmefacade"):
        load_card("camvit")


def test_a_missing_card_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.toml"):
        load_card(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", shipped_cards())
def test_a_shipped_card_is_found_by_its_own_name(name):
    assert load_card(name).name == name


@pytest.mark.parametrize(
    ("name", "classes", "things", "images", "crop", "short_sides", "test"),
    [
        ("ade20k_panoptic", 150, 100, (20210, 2000), (640, 640), (320, 1280, 16), (640, 2560)),
        ("cityscapes_panoptic", 19, 8, (2975, 500), (512, 1024), (512, 2048, 16), (1024, 2048)),
        ("coco_panoptic", 133, 80, (118287, 5000), (800, 1344), (480, 800, 11), (800, 1333)),
        ("ade20k", 150, 100, (20210, 2000), (512, 512), (256, 1024, 16), (512, 2048)),
        ("coco_stuff", 171, 80, (9000, 1000), (640, 640), (320, 960, 11), (640, 2560)),
        ("cityscapes", 19, 8, (2975, 500), (512, 1024), (512, 2048, 16), (1024, 2048)),
        ("mapillary", 65, 37, (18000, 2000), (1280, 1280), (1024, 4096, 16), (2048, 2048)),
        ("camvid", 11, 3, (367, 101), (192, 256), (180, 360, 6), (240, 320)),
        ("labelmefacade", 8, 1, (350, 80), (192, 256), (192, 352, 6), (240, 384)),
    ],
)
def test_shipped_recipes(name, classes, things, images, crop, short_sides, test):
    card = load_card(name)
    sides = card.train.short_sides
    assert len(card.taxonomy) == classes
    assert card.taxonomy.things.sum() == things
    assert tuple(card.splits.values()) == images
    assert card.train.crop == crop
    assert (sides[0], sides[-1], len(sides)) == short_sides
    assert (card.test.short_side, card.test.max_side) == test
    assert card.about["source"] and card.about["license"]


@pytest.mark.parametrize(
    ("name", "object_mask"),
    [("ade20k_panoptic", 0.7), ("cityscapes_panoptic", 0.8), ("coco_panoptic", 0.8)],
)
def test_panoptic_cards_have_the_thresholds_of_their_benchmarks(name, object_mask):
    card = load_card(name)
    assert (card.task, card.object_mask, card.overlap) == ("panoptic", object_mask, 0.8)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_both_tasks_of_a_dataset_have_the_same_classes(name):
    semantic, panoptic = load_card(name), load_card(f"{name}_panoptic")
    assert semantic.taxonomy.categories == panoptic.taxonomy.categories
    assert semantic.taxonomy.void == panoptic.taxonomy.void
    assert semantic.splits == panoptic.splits
    assert (semantic.task, panoptic.task) == ("semantic", "panoptic")


def test_the_things_of_ade20k_are_those_that_its_instance_files_count():
    text = """
        7 8 10 12 14 15 18 19 20 22 23 24 27 30 31 32 33 35 36 37 38 39 41 42 43 44 45 47 49 50 53
        55 56 57 58 62 64 65 66 67 69 70 71 72 73 74 75 76 78 80 81 82 83 85 86 87 88 89 90 92 93 95
        97 98 102 103 104 107 108 110 111 112 115 116 118 119 120 121 123 124 125 126 127 129 130
        132 133 134 135 136 137 138 139 142 143 144 146 147 148 149
    """
    things = np.flatnonzero(load_card("ade20k_panoptic").taxonomy.things)
    assert things.tolist() == [int(word) for word in text.split()]


def test_coco_and_coco_stuff_agree_on_things_and_on_shared_stuff():
    coco, stuff = load_card("coco_panoptic").taxonomy, load_card("coco_stuff").taxonomy
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert coco.ids[:80].tolist() == [i for i in range(1, 91) if i not in gaps]
    assert coco.things.tolist() == [True] * 80 + [False] * 53
    for mine, other in zip(coco.categories[:80], stuff.categories[:80], strict=True):
        assert (mine.name, mine.color, mine.thing) == (other.name, other.color, other.thing)
    # Stuff that COCO took over as it was keeps its id of COCO-Stuff v1.1: index + 12 there.
    for category in coco.categories[80:]:
        if not category.name.endswith("-merged"):
            assert stuff.names[category.id - 12] == category.name
    assert coco.ids[-17:].tolist() == list(range(184, 201))
    assert all(name.endswith("-merged") for name in coco.names[-17:])


def test_cityscapes_ids_are_those_of_its_label_files():
    taxonomy = load_card("cityscapes").taxonomy
    assert dict(zip(taxonomy.names, taxonomy.ids.tolist(), strict=True))["person"] == 24
    assert sorted([*taxonomy.void, *taxonomy.ids.tolist()]) == [-1, *range(34), 255]


def test_every_label_value_of_the_other_paper_datasets_is_a_class_or_void():
    for name, values in (("ade20k", 151), ("coco_stuff", 173), ("mapillary", 66)):
        taxonomy = load_card(name).taxonomy
        assert sorted([*taxonomy.void, *taxonomy.ids.tolist()]) == list(range(values))
