"""A dataset of one image, to be spoiled by a test."""

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.errors import UserError

CARD = """
name = "roads"
task = "semantic"
format = "label_png"
about = { source = "drawn by a test", license = "Apache-2.0" }
void = [255]
classes = [
  { id = 7, name = "road", thing = false, color = [128, 64, 128] },
  { id = 3, name = "person", thing = true, color = [220, 20, 60] },
]

[files]
folder = "roads"
images = "{split}/{name}.png"
labels = "{split}_labels/{name}.png"

[splits]
train = 1
val = 1

[augmentation]
short_sides = [64]
max_side = 128
crop = [64, 64]
color = true
flip = "both"
order = ["resize", "crop", "color", "flip"]

[test]
short_side = 64
max_side = 128
"""
IDS = np.array([[7, 3, 255], [7, 7, 3]], np.uint8)
CLASSES = [[0, 1, -1], [0, 0, 1]]
PICTURE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10


def plant(root):
    """Makes a tree of one image, one label and their card; returns the root."""
    for folder, array in (("train", PICTURE), ("train_labels", IDS)):
        (root / "roads" / folder).mkdir(parents=True)
        Image.fromarray(array).save(root / "roads" / folder / "a.png")
    (root / "roads.toml").write_text(CARD, encoding="utf-8")
    return root


def edit(tree, old, new):
    path = tree / "roads.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def source(tree):
    return open_source(load_card(tree / "roads.toml"), "train", root=tree)


def check_refused(action, *words):
    """Asserts that an action is refused in one line that has these words."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert all(str(word) in message for word in words), message
