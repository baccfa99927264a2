from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmseg_jax import scoring, sharding, state
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.sample import PADDING, Sample
from tests.tiny import batch, tiny_config, vocabulary

CARD = load_card("world_patterns")  # striped, checkered, dotted, plain objects; ground
GROUND = 4


def halves(name, *, size=(96, 96), classes=(0, GROUND)):
    """Left half one segment, right half the other."""
    segments = np.zeros(size, np.int32)
    segments[:, size[1] // 2 :] = 1
    return Sample(
        image=np.full((*size, 3), 90, np.uint8),
        segments=segments,
        classes=np.array(classes, np.int32),
        area=np.bincount(segments.ravel()).astype(np.int32),
        crowd=np.zeros(2, bool),
        dataset=CARD.name,
        name=name,
    )


class FakeNetwork:
    """Says that the left half is class 0 and the right half ground, whatever the image."""

    def __init__(self, devices=2):
        self.local = SimpleNamespace(size=devices)
        self.calls = []

    def __call__(self, batch):
        self.calls.append(batch)
        b, h, w, _ = batch["image"].shape
        logits = np.full((b, 3, 6), -20.0, np.float32)
        logits[:, 0, 0] = logits[:, 1, GROUND] = logits[:, 2, 5] = 20
        masks = np.full((b, 3, h // 4, w // 4), -20.0, np.float32)
        masks[:, 0, :, : w // 8] = masks[:, 1, :, w // 8 :] = 20
        return {"logits": logits, "masks": masks}


def evaluate(samples, **options):
    data = scoring.EvaluationSet(samples, CARD, 3)
    network = FakeNetwork()
    scores, pictures = scoring.evaluate_set(network, data, batch=1, threads=2, **options)
    return scores, pictures, network.calls


def test_a_perfect_network_scores_a_hundred():
    scores, _, calls = evaluate([halves(str(i)) for i in range(5)])
    assert scores["miou"] == scores["pq"] == 100
    assert len(calls) == 3  # five images, two devices
    assert all((call["dataset"] == 3).all() and len(call["dataset"]) == 2 for call in calls)


def test_a_filled_up_batch_counts_no_image_twice():
    good, bad = halves("good"), halves("bad", classes=(1, GROUND))
    scores, _, _ = evaluate([good, good, bad])
    # the left half is right twice and wrong once; the right half is always right
    assert scores["iou"]["striped object"] == pytest.approx(100 * 2 / 3)
    assert scores["iou"]["ground"] == 100


def test_pictures_are_those_of_the_first_images():
    _, pictures, _ = evaluate([halves(str(i)) for i in range(3)], pictures=2)
    assert [picture.sample.name for picture in pictures] == ["0", "1"]
    assert set(np.unique(pictures[0].prediction)) == {0, GROUND}
    np.testing.assert_array_equal(pictures[0].truth, pictures[0].prediction)


def test_images_of_any_size_get_a_canvas_of_multiples_of_32():
    rule = replace(CARD.test, short_side=50, max_side=80)
    item = scoring.prepare(halves("x", size=(50, 70)), rule)
    assert item.network == (50, 70)
    assert item.image.shape == (64, 96, 3)
    padding = item.segments == PADDING
    assert not padding[:50, :70].any() and padding[50:].all() and padding[:, 70:].all()


def test_groups_hold_one_shape_and_lose_nothing():
    shapes = [(32, 32), (32, 64), (32, 32), (32, 32), (32, 64)]
    items = [
        SimpleNamespace(image=np.zeros((*shape, 3)), number=i) for i, shape in enumerate(shapes)
    ]
    groups = [[item.number for item in group] for group in scoring.batches(iter(items), 2)]
    assert groups == [[0, 2], [1, 4], [3]]


def test_a_network_forgets_the_shape_that_was_not_asked_for_longest(monkeypatch):
    monkeypatch.setattr(scoring, "SHAPES", 1)
    config, mesh = tiny_config(), sharding.make_mesh(1, 1, multiple=1)
    network = scoring.Network(state.graph(config.model), vocabulary(), mesh)
    weights = state.weights(config.model, 0)
    network.load(*jax.device_put(weights, sharding.replicated(mesh)))
    small, large = (batch(0, dataset=1, images=1, size=size) for size in ((64, 64), (64, 96)))
    first = network(small)
    assert network(large)["masks"].shape == (1, 6, 16, 24)
    assert [shape[1:3] for shape in network._programs] == [(64, 96)]
    np.testing.assert_array_equal(network(small)["logits"], first["logits"])
