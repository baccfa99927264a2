import pytest

from lmseg_jax.datasets.card import load_card, shipped_cards
from lmseg_jax.datasets.recipe import DetrCrop, Recipe
from lmseg_jax.datasets.recipe import TestRule as SizeRule  # pytest collects what starts with Test
from lmseg_jax.errors import UserError

CARD = """
name = "tiny"
task = "semantic"
format = "label_png"
about = { source = "here", license = "free" }
classes = [{ id = 0, name = "road", thing = false, color = [1, 2, 3] }]

[splits]
train = 1

[augmentation]
short_sides = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
max_side = 1333
crop = [800, 1344]
color = false
flip = "horizontal"
order = ["flip", "detr_crop", "resize"]
detr_crop = { short_sides = [400, 500, 600], sides = [384, 600] }

[test]
short_side = 800
max_side = 1333
"""
SCALES_512 = (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)
SCALES_640 = (320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960)
SCALES_1024 = (
    *(512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433),
    *(1536, 1638, 1740, 1843, 1945, 2048),
)
SCALES_2048 = (
    *(1024, 1228, 1433, 1638, 1843, 2048, 2252, 2457, 2662, 2867),
    *(3072, 3276, 3481, 3686, 3891, 4096),
)
COCO = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
ORDER = ("resize", "crop", "color", "flip")


def cut(short_sides, max_side, crop):
    """A recipe of MaskFormer's semantic mapper, with colour and horizontal flip."""
    return Recipe(short_sides, max_side, crop, True, "horizontal", ORDER)


# MaskFormer's configs, Cityscapes panoptic from Mask2Former's: what the paper builds on (Sec. 4.1).
PAPER = {
    "ade20k": (cut(SCALES_512, 2048, (512, 512)), SizeRule(512, 2048)),
    "coco_stuff": (cut(SCALES_640, 2560, (640, 640)), SizeRule(640, 2560)),
    "cityscapes": (cut(SCALES_1024, 4096, (512, 1024)), SizeRule(1024, 2048)),
    "mapillary": (cut(SCALES_2048, 8192, (1280, 1280)), SizeRule(2048, 2048)),
    "coco_panoptic": (
        Recipe(
            *(COCO, 1333, (800, 1344), False, "horizontal", ("flip", "detr_crop", "resize")),
            DetrCrop((400, 500, 600), (384, 600)),
        ),
        SizeRule(800, 1333),
    ),
    "ade20k_panoptic": (
        cut((*SCALES_640, 1024, 1088, 1152, 1216, 1280), 2560, (640, 640)),
        SizeRule(640, 2560),
    ),
    "cityscapes_panoptic": (cut(SCALES_1024, 4096, (512, 1024)), SizeRule(1024, 2048)),
}
OURS = {  # datasets that the paper does not have
    "camvid": (cut((180, 216, 252, 288, 324, 360), 640, (192, 256)), SizeRule(240, 320)),
    "labelmefacade": (
        cut((192, 224, 256, 288, 320, 352), 640, (192, 256)),
        SizeRule(240, 384),
    ),
    "world_patterns": (
        Recipe((96, 112, 128), 128, (96, 96), False, "both", ORDER),
        SizeRule(128, 128),
    ),
    "world_colors": (
        Recipe((96, 108), 144, (96, 128), False, "both", ORDER),
        SizeRule(128, 171),
    ),
    "world_coarse": (
        Recipe((96, 112), 150, (128, 96), True, "both", ORDER),
        SizeRule(128, 171),
    ),
    "world_shapes": (
        Recipe((96, 112, 128), 128, (96, 96), False, "both", ORDER),
        SizeRule(128, 128),
    ),
}
OURS |= dict.fromkeys(("world_words", "world_words_unseen"), OURS["world_shapes"])


def load(tmp_path, old="", new=""):
    assert old in CARD
    path = tmp_path / "tiny.toml"
    path.write_text(CARD.replace(old, new, 1), encoding="utf-8")
    return load_card(path)


@pytest.mark.parametrize("name", shipped_cards())
def test_a_shipped_card_has_its_recipe(name):
    card = load_card(name)
    assert (card.train, card.test) == (PAPER | OURS)[name]


def test_the_crop_of_detr_is_read(tmp_path):
    assert load(tmp_path).train == PAPER["coco_panoptic"][0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("detr_crop = {", "# {", ["augmentation.order", "resize, crop, flip"]),
        ('"detr_crop", ', '"crop", ', ["augmentation.order", "detr_crop, resize, flip once"]),
        ('"detr_crop", ', '"detr_crop", "crop", ', ["augmentation.order", "detr_crop, resize"]),
        ('"detr_crop", "resize"', '"resize", "detr_crop"', ["order", "detr_crop before resize"]),
        ("[400, 500, 600]", "[]", ["augmentation.detr_crop.short_sides is []"]),
        ("[400, 500, 600]", "[0]", ["augmentation.detr_crop.short_sides[0] is 0"]),
        ("[384, 600]", "[600, 384]", ["augmentation.detr_crop.sides", "[shortest, longest]"]),
        ("[384, 600]", "[384]", ["augmentation.detr_crop.sides is [384]"]),
        (", sides =", ", side =", ["augmentation.detr_crop.sides is missing"]),
        ("600] }", "600], max = 3 }", ["augmentation.detr_crop.max is not a key"]),
        (
            "detr_crop = { short_sides = [400, 500, 600], sides = [384, 600] }",
            "detr_crop = true",
            ["augmentation.detr_crop is True", "a table"],
        ),
        ("crop = [800, 1344]", "crop = [1344, 800]", ["augmentation.crop", "at least [800, 1333]"]),
        ("crop = [800, 1344]", "crop = [800, 1312]", ["augmentation.crop", "at least [800, 1333]"]),
        ("crop = [800, 1344]", "crop = [768, 1344]", ["augmentation.crop", "at least [800, 1333]"]),
    ],
)
def test_a_mistake_in_the_crop_of_detr_names_key_and_what_is_expected(tmp_path, old, new, words):
    with pytest.raises(UserError) as caught:
        load(tmp_path, old, new)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_canvas_turns_with_the_image():
    detr = PAPER["coco_panoptic"][0]
    assert detr.oriented(480, 640).crop == detr.oriented(500, 500).crop == (800, 1344)
    assert detr.oriented(640, 480).crop == (1344, 800)
    fixed = PAPER["cityscapes"][0]
    assert fixed.oriented(640, 480) is fixed
