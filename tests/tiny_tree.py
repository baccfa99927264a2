"""A small dataset in files: lying and upright JPEGs, label PNGs, and a card with DETR's crop."""

import numpy as np
from PIL import Image

CARD = """
name = "tiny"
task = "semantic"
format = "label_png"
about = { source = "here", license = "free" }
void = [255]
classes = [
  { id = 0, name = "ground", thing = false, color = [1, 2, 3] },
  { id = 1, name = "box", thing = true, color = [4, 5, 6] },
]

[files]
images = "{split}/{name}.jpg"
labels = "{split}/{name}.png"

[splits]
train = 8

[augmentation]
short_sides = [48, 64]
max_side = 120
crop = [64, 128]
color = false
flip = "horizontal"
order = ["flip", "detr_crop", "resize"]
detr_crop = { short_sides = [40, 56], sides = [32, 48] }

[test]
short_side = 64
max_side = 128
"""
SIZES = ((60, 80), (80, 60), (60, 90), (60, 80))


def write_tree(root, card=CARD, sizes=SIZES * 2):
    """Writes images and labels below a folder; returns the path of the card."""
    folder = root / "train"
    folder.mkdir(parents=True)
    for index, (height, width) in enumerate(sizes):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([rows * 2, columns * 2, rows + columns + index], axis=-1) % 256
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index}.jpg")
        labels = np.zeros((height, width), np.uint8)
        labels[height // 4 : height // 2, width // 4 :] = 1
        labels[:3] = 255
        Image.fromarray(labels).save(folder / f"{index}.png")
    path = root / "tiny.toml"
    path.write_text(card, encoding="utf-8")
    return str(path)
