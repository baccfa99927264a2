"""Any image, any words: against evaluation's own path on a tiny model."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from lmseg_jax import assembly, postprocess, scoring, segmentation
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.sample import Sample
from lmseg_jax.errors import UserError
from lmseg_jax.label_space import of_card
from lmseg_jax.segmenter import Segmenter
from lmseg_jax.taxonomy import from_names
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def cards():
    config = tiny_config()
    config.data.train = ("world_patterns", "world_coarse")
    return assembly.load_cards(config)


@pytest.fixture(scope="module")
def model(cards):
    config = tiny_config()
    config.data.train = ("world_patterns", "world_coarse")
    words = assembly.vocabulary_of(config, cards)
    shapes = jax.eval_shape(lambda: assembly.state.weights(config.model, 0, vocabulary=words))
    rng = np.random.default_rng(0)
    params, frozen = jax.tree.map(
        lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes
    )
    spaces = {card.name: of_card(card) for card in cards}
    return Segmenter(config.model, params, frozen, spaces=spaces, vocabulary=words)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_labels_are_those_of_evaluation(model, cards, image):
    card = cards[0]
    none = np.zeros(0, np.int32)
    sample = Sample(image, np.full((50, 70), -1, np.int32), none, none, none > 0, "", "")
    item = scoring.prepare(sample, card.test)
    asked = model._asked(card.name, ())
    logits, masks = model._run(item.image, item.segments != -2, asked)
    expected = postprocess.semantic(
        logits,
        masks,
        padded=item.image.shape[:2],
        network=item.network,
        size=(50, 70),
        resize="masks",
    )
    found = model.segment(image, taxonomy=card.name, scores=True)
    np.testing.assert_array_equal(found.labels, expected)
    assert found.labels.dtype == np.int32 and found.scores.dtype == np.float32
    assert 0 <= found.scores.min() <= found.scores.max() <= 1
    assert found.names == card.taxonomy.names
    assert sum(segment["area"] for segment in found.segments_info) == 50 * 70


def test_the_order_of_words_permutes_the_answer_only(model, image):
    words = ["sky", "sofa, couch", "größe ☃"]
    first = model.segment(image, words)
    second = model.segment(image, words[::-1])
    np.testing.assert_array_equal(first.labels, 2 - second.labels)
    assert first.names == tuple(words)


def test_unions_subsets_and_cards_that_were_not_trained_on(model, image):
    union = model.segment(image, taxonomy="world_patterns+world_coarse")
    parts = [model.spaces[name].taxonomy.names for name in ("world_patterns", "world_coarse")]
    assert union.names == tuple(dict.fromkeys(parts[0] + parts[1]))
    names = parts[0][1::-1]
    subset = model.segment(image, names, taxonomy="world_patterns")
    assert subset.names == names
    ids = [c.id for c in model.spaces["world_patterns"].taxonomy.categories]
    assert [c.id for c in subset.taxonomy.categories] == ids[1::-1]
    assert len(model.segment(image, taxonomy="camvid").names) == 11


@pytest.fixture
def easy(model, monkeypatch):
    """The model, but every query's segment counts."""
    spaces = {k: replace(v, object_mask=0.0, overlap=0.0) for k, v in model.spaces.items()}
    monkeypatch.setattr(model, "spaces", spaces)
    return model


def test_the_order_of_words_permutes_segments_only(easy, image):
    words = ["sky", "sofa, couch", "zebra"]
    first = easy.segment(image, words, task="panoptic")
    second = easy.segment(image, words[::-1], task="panoptic")
    classes = [[row["category_id"] for row in found.segments_info] for found in (first, second)]
    assert len(classes[0]) > 1 and classes[0] == [2 - k for k in classes[1]]
    assert (first.segments == second.segments).mean() > 0.995  # rounding decides between equals


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_union_is_its_names_as_words(easy, image, task):
    union = easy.segment(image, taxonomy="world_patterns+world_coarse", task=task)
    things = [name for name, thing in zip(union.names, union.taxonomy.things, strict=True) if thing]
    more = {"things": things} if task == "panoptic" else {}
    words = easy.segment(image, union.names, task=task, **more)  # both at world_patterns' size
    np.testing.assert_array_equal(union.labels, words.labels)
    np.testing.assert_array_equal(union.segments, words.segments)
    assert union.segments_info == words.segments_info


def test_the_union_of_two_street_taxonomies_has_equal_names_once(model, image):
    union = model.segment(image, taxonomy="ade20k+cityscapes")
    ade20k, cityscapes = (load_card(name).taxonomy for name in ("ade20k", "cityscapes"))
    assert len(set(union.names)) == len(union.names)
    assert set(union.names) == {*ade20k.names, *cityscapes.names}
    assert union.names[:150] == ade20k.names and len(union.names) < 150 + 19
    assert [c.id for c in union.taxonomy.categories] == list(range(1, len(union.names) + 1))
    assert union.labels.shape == image.shape[:2] and union.labels.min() >= 0


def test_things_of_free_words_are_what_training_does_not_call_stuff(model, image):
    taxonomy = model.spaces["world_coarse"].taxonomy
    stuff = next(c.name for c in taxonomy.categories if not c.thing)
    found = model.segment(image, [stuff, "zebra"], task="panoptic")
    assert found.taxonomy.things.tolist() == [False, True]
    found = model.segment(image, [stuff, "zebra"], task="panoptic", things=[stuff])
    assert found.taxonomy.things.tolist() == [True, False]
    assert ((found.labels < 0) == (found.segments == 0)).all()


class Counting:
    """A jitted function that counts its compilations."""

    def __init__(self, jitted):
        self.jitted, self.compiled = jitted, 0

    def lower(self, *operands):
        self.compiled += 1
        return self.jitted.lower(*operands)


def test_threads_that_ask_at_once_compile_each_canvas_once(model, cards, image, monkeypatch):
    model._programs.clear()
    counting = Counting(model._predict)
    monkeypatch.setattr(model, "_predict", counting)
    words = [{"classes": ["sky", "dog"]}, {"classes": ["cat"]}, {"classes": ["zebra, cow", "sky"]}]
    asked = [(image[: 50 - i], question) for question in words for i in range(2)] * 2
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda x: model.segment(x[0], **x[1]).labels, asked))
    test = cards[0].test
    canvases = {
        scoring.prepare(Sample(x, x[..., 0], None, None, None, "", ""), test).image.shape
        for x, _ in asked
    }
    assert counting.compiled == len(canvases) == 1
    for (x, question), labels in zip(asked, found, strict=True):
        np.testing.assert_array_equal(labels, model.segment(x, **question).labels)
    assert counting.compiled == 1


def test_pictures_of_every_kind_become_rgb(tmp_path):
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    color = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.dstack([color, 0 * grey])
    turned = Image.fromarray(np.rot90(color).copy())
    turned.getexif()[274] = 6  # "rotate by 90 degrees clockwise to see it upright"
    exif = turned.getexif()
    turned.save(tmp_path / "a.png", exif=exif)
    kinds = [grey, color, alpha, Image.fromarray(alpha), Image.fromarray(grey), turned]
    for kind in [*kinds, tmp_path / "a.png", str(tmp_path / "a.png")]:
        np.testing.assert_array_equal(segmentation.pixels(kind), color)
    arrays = (color / 255, np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8))
    for wrong in (*arrays, Image.fromarray(grey).convert("F"), Image.new("I", (3, 2), 70_000)):
        with pytest.raises(UserError, match="image (is|has)"):
            segmentation.pixels(wrong)


def test_segments_follow_coco_and_supervision():
    segments = np.array([[0, 2, 2, 0], [1, 2, 0, 0]], np.int32)
    info = [
        {"id": 1, "category": 1, "thing": True, "score": 0.5},
        {"id": 2, "category": 0, "thing": False, "score": 0.25},
    ]
    found = segmentation.described(segments, info)
    assert found[1] == {
        "id": 2,
        "category_id": 0,
        "isthing": False,
        "area": 3,
        "bbox": [1, 0, 2, 2],
        "score": 0.25,
    }
    whole = segmentation.Segmentation(segments, segments, found, from_names(["a", "b"]))
    out = whole.to_supervision()
    np.testing.assert_array_equal(out["xyxy"], [[0, 1, 1, 2], [1, 0, 3, 2]])
    np.testing.assert_array_equal(out["mask"], [segments == 1, segments == 2])
    assert out["data"]["class_name"].tolist() == ["b", "a"] and out["class_id"].tolist() == [1, 0]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (37, 41)])
def test_an_image_of_any_size_is_answered_at_its_own_size(model, size):
    grey = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    found = model.segment(grey, ["sky", "dog"], scores=True)
    assert found.labels.shape == found.segments.shape == found.scores.shape == size
    color = Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).convert("RGBA")
    np.testing.assert_array_equal(model.segment(color, ["sky", "dog"]).labels, found.labels)
