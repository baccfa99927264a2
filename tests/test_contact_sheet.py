import dataclasses

import numpy as np

from lmseg_jax.contact_sheet import contact_sheet
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.source import semantic_sample
from lmseg_jax.pipeline.augmentation import Crop


def test_a_contact_sheet_shows_images_tints_and_stripes_void():
    card = load_card("camvid")
    image = np.full((40, 60, 3), 200, np.uint8)
    classes = np.full((40, 60), 1, np.int32)  # building, [128, 0, 0]
    classes[:, 30:] = -1
    sheet = contact_sheet(card, [semantic_sample(image, classes, card=card, name="x")], title="t")
    found = {tuple(color) for color in sheet.reshape(-1, 3).tolist()}
    assert (200, 200, 200) in found  # the image itself, and the grey between stripes
    assert (146, 50, 50) in found  # 0.25 * 200 + 0.75 * [128, 0, 0]
    black = (sheet == 0).all(axis=-1).sum()  # 3/8 of half of 360x240, and the legend's swatch
    assert 16_000 < black < 18_000


def test_a_contact_sheet_of_a_long_taxonomy_lists_only_what_it_shows():
    card = load_card("ade20k")
    image, classes = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 4, np.int32)
    sample = semantic_sample(image, classes, card=card, name="x")
    all_of_it = dataclasses.replace(card, taxonomy=load_card("labelmefacade").taxonomy)
    short = contact_sheet(card, [sample], title="t").shape[0]
    assert short <= contact_sheet(all_of_it, [sample], title="t").shape[0]


def test_crops_stand_beside_their_image_with_striped_padding():
    card = load_card("camvid")
    image, classes = np.full((60, 60, 3), 200, np.uint8), np.ones((60, 60), np.int32)
    sample = semantic_sample(image, classes, card=card, name="x")
    segments = np.zeros((60, 60), np.int16)
    segments[30:] = -2
    padded = image.copy()
    padded[30:] = 128
    crop = Crop(padded, segments, np.array([1, -1], np.int32), 0)
    sheet = contact_sheet(card, [sample], title="t", crops=[[crop]])
    assert sheet.shape[1] == 2 * (2 * 300 + 4) + 10
    right = sheet[-300:, -300:]  # the tinted crop
    assert (right[:140] == (146, 50, 50)).all()  # 0.25 * 200 + 0.75 * [128, 0, 0]
    assert {tuple(color) for color in right[160:].reshape(-1, 3).tolist()} == {
        (128, 128, 128),
        (255, 255, 255),
    }
