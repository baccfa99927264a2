"""Pictures of an evaluation, by dataset."""

import numpy as np

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.evaluate import example_panels
from lmseg_jax.scoring import EvaluationSet, Picture


def test_each_dataset_has_a_picture_of_its_own_images_truth_and_prediction():
    sets, pictures = [], {}
    for number, name in enumerate(("world_patterns", "world_coarse")):
        card = load_card(name)
        source = open_source(card, "val", root="", limit=2)
        sets.append(EvaluationSet(source, card, number))
        nothing = np.full(source[0].image.shape[:2], -1, np.int32)
        pictures[name] = [Picture(source[i], nothing, nothing) for i in range(2)]
    found = example_panels(sets, pictures)
    assert list(found) == ["examples/world_patterns", "examples/world_coarse"]
    for data in sets:
        picture = found[f"examples/{data.card.name}"]
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
        sample = data.source[0]
        for k in set(sample.classes.tolist()):
            assert tuple(data.card.taxonomy.colors[k].tolist()) in colors  # in the legend
