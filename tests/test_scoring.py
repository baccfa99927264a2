from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from lmseg_jax import scoring, sharding, state
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.sample import PADDING, Sample
from tests.test_postprocess import slow_scores
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


class Pixelwise:
    """A network that mirrors with its image: masks are the mean red of 4x4 pixels, from -4 to 4."""

    def __init__(self, devices=1):
        self.local = SimpleNamespace(size=devices)
        self.shapes = []

    def __call__(self, batch):
        b, h, w, _ = batch["image"].shape
        self.shapes.append((h, w))
        red = batch["image"][..., 0].reshape(b, h // 4, 4, w // 4, 4).mean(axis=(2, 4))
        mask = (red / 255 * 8 - 4).astype(np.float32)
        logits = np.tile(np.array([4, 1, 0, 0, 3.5, 0], np.float32), (b, 2, 1))
        logits[:, 1] = [0, 3, 0, 0, 4, 0]
        return {"logits": logits, "masks": np.stack([mask, -mask], axis=1)}


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


def noisy(name, *, size=(64, 96), seed=0):
    """An image of smooth red noise, half striped object and half ground."""
    sample = halves(name, size=size)
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8), np.uint8)
    image = np.repeat(np.repeat(noise, 8, 0), 8, 1)[..., None].repeat(3, -1)
    return replace(sample, image=image)


def labels_of(samples, card=CARD, **options):
    """Label maps of the pixelwise network, and the canvases that it saw."""
    network, data = Pixelwise(), scoring.EvaluationSet(samples, card, 3)
    _, pictures = scoring.evaluate_set(
        network, data, batch=2, threads=2, pictures=len(samples), **options
    )
    return [picture.prediction for picture in pictures], network.shapes


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_averaging_with_the_mirrored_image_changes_nothing_for_a_symmetric_network(task):
    card = replace(CARD, task=task, test=replace(CARD.test, short_side=64, max_side=96))
    samples = [noisy(str(i), seed=i) for i in range(3)]
    plain, _ = labels_of(samples, card)
    averaged, _ = labels_of(samples, card, flip=True)
    assert {0, GROUND} <= set(np.unique(plain))
    np.testing.assert_array_equal(averaged, plain)


def test_scales_and_mirrored_images_are_averaged():
    """Against scores made here, image by image, with Pillow and a plain bilinear resize."""
    card = replace(CARD, task="semantic", test=replace(CARD.test, short_side=32, max_side=48))
    sample = noisy("x", size=(48, 72), seed=4)
    (labels,), shapes = labels_of([sample], card, flip=True, scales=(0.5, 1, 1.5))
    assert shapes == [(32, 32), (32, 64), (64, 96)]  # both directions in one batch
    scores = 0
    image = Image.fromarray(sample.image).resize((48, 32), Image.Resampling.BILINEAR)
    for size in ((16, 24), (32, 48), (48, 72)):
        resized = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
        for step in (1, -1):
            canvas = np.full((*(-(-side // 32) * 32 for side in size), 3), 128, np.uint8)
            canvas[: size[0], : size[1]] = resized[:, ::step]
            found = Pixelwise()({"image": canvas[None]})
            where = {"padded": canvas.shape[:2], "network": size, "size": (48, 72)}
            scores = (
                scores + slow_scores(found["logits"][0], found["masks"][0], **where)[..., ::step]
            )
    assert np.mean(labels == scores.argmax(axis=0)) > 0.995
    assert 0.2 < np.mean(labels == 0) < 0.8
    (plain,), _ = labels_of([sample], card)
    assert np.mean(labels != plain) > 0.005


def test_segments_are_those_of_the_plain_image():
    samples = [noisy(str(i), seed=i) for i in range(2)]
    data = scoring.EvaluationSet(samples, CARD, 3)
    results = [
        scoring.evaluate_set(Pixelwise(), data, batch=1, threads=1, pictures=2, **options)
        for options in ({}, {"flip": True, "scales": (0.5, 2)})
    ]
    for (_, plain), (_, averaged) in [results]:
        for one, other in zip(plain, averaged, strict=True):
            np.testing.assert_array_equal(one.segments, other.segments)
    assert results[0][0]["pq"] == results[1][0]["pq"]


def test_what_is_averaged_comes_from_the_config():
    config = tiny_config()
    config.evaluation.flip, config.evaluation.scales, config.evaluation.pictures = True, (1, 2), 0
    network = Pixelwise()
    scoring.evaluate_all(network, [scoring.EvaluationSet([noisy("x")], CARD, 0)], config)
    assert len(network.shapes) == 4


def test_no_more_than_64_images_wait_for_others_of_their_size():
    items = (SimpleNamespace(image=np.zeros((32, 32 * i, 3)), number=i) for i in range(1, 200))
    groups = scoring.batches(items, 2)
    assert next(groups)[0].number == 1
    assert next(items).number == 66
    assert sum(map(len, groups)) == 199 - 2


@pytest.fixture(scope="module")
def network():
    """The tiny model with random weights."""
    config, mesh = tiny_config(), sharding.make_mesh(1, 1, multiple=1)
    network = scoring.Network(state.graph(config.model), vocabulary(), mesh)
    weights = jax.jit(lambda: state.weights(config.model, 0))()
    network.load(*jax.device_put(weights, sharding.replicated(mesh)))
    return network


def test_an_image_in_a_batch_is_segmented_as_alone(network):
    """Up to rounding: no layer mixes images. Others stand before and after it."""
    images = batch(0, dataset=1, images=4)
    together = network(images)
    for place in (0, 3):
        alone = network({key: value[place : place + 1] for key, value in images.items()})
        for key in ("logits", "masks"):
            scale = np.abs(alone[key]).max()
            np.testing.assert_allclose(together[key][place], alone[key][0], atol=1e-5 * scale)


def test_a_network_forgets_the_shape_that_was_not_asked_for_longest(network, monkeypatch):
    monkeypatch.setattr(scoring, "SHAPES", 1)
    network._programs.clear()
    small, large = (batch(0, dataset=1, images=1, size=size) for size in ((64, 64), (64, 96)))
    first = network(small)
    assert network(large)["masks"].shape == (1, 6, 16, 24)
    assert [shape[1:3] for shape in network._programs] == [(64, 96)]
    np.testing.assert_array_equal(network(small)["logits"], first["logits"])
