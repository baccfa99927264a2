"""The crops that measured numbers came from: whoever changes them re-opens every number."""

import hashlib

import pytest

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.pipeline.augmentation import choose_recipe
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan

WORLDS = ("world_patterns", "world_colors", "world_coarse", "world_shapes")
GOLDEN = {
    ("own", 7): "cae604f11fa19259e3880181981391ffc516dc6d090e8b9c779eb2b3a11aaaae",
    ("fixed", 6): "5f8bfb9c3ce0a7c1fee4d1345b1bba1cb45f8cfd05430a4bc38023878e784f9a",
}


@pytest.mark.parametrize(("augmentation", "stop"), GOLDEN)
def test_batches_of_worlds_are_what_they_were(augmentation, stop):
    cards = [load_card(name) for name in WORLDS]
    feeds = [
        Feed(card.name, open_source(card, "train", root=""), choose_recipe(card, augmentation), i)
        for i, card in enumerate(cards)
    ]
    plan = Plan([feed.recipe.crop for feed in feeds], (), batch=8, multiple=2)
    digest = hashlib.sha256()
    for update in Loader(feeds, plan, seed=3, max_targets=20, threads=0).iterate(5, stop):
        for bucket in update.buckets:
            for key in ("image", "segments", "classes", "dataset"):
                digest.update(bucket[key].tobytes())
    assert digest.hexdigest() == GOLDEN[augmentation, stop]
