import tracemalloc

import numpy as np
import pytest

from lmseg_jax import postprocess
from lmseg_jax.postprocess import View, instances_to_semantic, panoptic, semantic, semantic_mean

SURE = 12.0  # a logit whose softmax is 1 and whose sigmoid is 1, nearly
SIZES = {"padded": (3, 4), "network": (3, 4), "size": (3, 4)}


def bilinear(image, size):
    """Half-pixel centres, clamped at the border, no antialias: value by value."""
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * image.shape[0] / size[0] - 0.5, 0), image.shape[0] - 1)
            u = min(max((x + 0.5) * image.shape[1] / size[1] - 0.5, 0), image.shape[1] - 1)
            for j, a in ((int(v), 1 - v % 1), (min(int(v) + 1, image.shape[0] - 1), v % 1)):
                for i, b in ((int(u), 1 - u % 1), (min(int(u) + 1, image.shape[1] - 1), u % 1)):
                    out[y, x] += a * b * image[j, i]
    return out


def softmax(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def slow_scores(logits, masks, *, padded, network, size, resize="scores"):
    """Semantic score maps [K, H, W]."""
    shares = softmax(logits)[:, :-1]
    full = np.stack([bilinear(mask, padded) for mask in masks])[:, : network[0], : network[1]]
    if resize == "masks":
        full = np.stack([bilinear(mask, size) for mask in full])
        return np.einsum("qk,qhw->khw", shares, sigmoid(full))
    scores = np.einsum("qk,qhw->khw", shares, sigmoid(full))
    return np.stack([bilinear(score, size) for score in scores])


def slow_panoptic(logits, masks, *, padded, network, size, things, object_mask, overlap):
    shares = softmax(logits)
    best = [
        (q, int(row.argmax()), row.max())
        for q, row in enumerate(shares)
        if row.argmax() < shares.shape[1] - 1 and row.max() > object_mask
    ]
    segments, info, stuff = np.zeros(size, int), [], {}
    if not best:
        return segments, info
    full = {
        q: sigmoid(bilinear(bilinear(masks[q], padded)[: network[0], : network[1]], size))
        for q, _, _ in best
    }
    owner = np.argmax([score * full[q] for q, _, score in best], axis=0)
    for i, (q, category, score) in enumerate(best):
        mine, own = owner == i, np.sum(full[q] >= 0.5)
        if mine.sum() == 0 or own == 0 or mine.sum() / own < overlap:
            continue
        if category in stuff:
            segments[mine] = stuff[category]
            continue
        number = len(info) + 1
        segments[mine] = number
        thing = bool(things[category])
        info.append({"id": number, "category": category, "thing": thing, "score": score})
        if not thing:
            stuff[category] = number
    return segments, info


def logits_of(labels, *, classes, score=SURE):
    """Logits [Q, classes + 1] that are sure of one label a query; label = classes is background."""
    logits = np.zeros((len(labels), classes + 1), np.float32)
    logits[np.arange(len(labels)), labels] = score
    return logits


def masks_of(*drawings):
    """Mask logits [Q, 3, 4] from drawings of three rows: # inside, . outside."""
    cells = np.array([[list(row) for row in drawing.split()] for drawing in drawings])
    return np.where(cells == "#", SURE, -SURE).astype(np.float32)


def merge(labels, masks, *, things=(True, False, True), overlap=0.8, object_mask=0.5):
    return panoptic(
        logits_of(labels, classes=3), masks, **SIZES,
        things=np.array(things), object_mask=object_mask, overlap=overlap,
    )  # fmt: skip


@pytest.fixture(params=[1 << 16, 1], ids=["one strip", "many strips"])
def strips(request, monkeypatch):
    monkeypatch.setattr(postprocess, "STRIP", request.param)
    monkeypatch.setattr(postprocess, "ROWS", 2)


GEOMETRIES = [
    {"padded": (16, 24), "network": (16, 24), "size": (16, 24)},
    {"padded": (16, 24), "network": (13, 21), "size": (13, 21)},
    {"padded": (16, 24), "network": (13, 21), "size": (29, 47)},  # enlarged
    {"padded": (16, 24), "network": (16, 20), "size": (7, 9)},  # reduced
    {"padded": (16, 24), "network": (13, 24), "size": (13, 31)},
    {"padded": (4, 6), "network": (4, 6), "size": (4, 6)},  # masks at full size
]


def random_answer(seed, *, spread=2.0):
    """Logits of 7 queries and 4 classes, and masks of 4x6."""
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=(7, 5))).astype(np.float32)
    return logits, (4 * rng.normal(size=(7, 4, 6))).astype(np.float32)


def check_labels(labels, scores):
    """Asserts that the labels are those of the highest scores [K, H, W], up to rounding."""
    assert labels.shape == scores.shape[1:] and labels.dtype == np.int32
    picked = np.take_along_axis(scores, labels[None], axis=0)[0]
    np.testing.assert_allclose(picked, scores.max(axis=0), rtol=1e-5)
    assert np.mean(labels == scores.argmax(axis=0)) > 0.99
    assert len(np.unique(labels)) >= 2


@pytest.mark.parametrize("resize", ["scores", "masks"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_semantic_map_equals_the_formula(geometry, resize, strips):
    logits, masks = random_answer(0)
    labels = semantic(logits, masks, **geometry, resize=resize)
    check_labels(labels, slow_scores(logits, masks, **geometry, resize=resize))


@pytest.mark.parametrize("resize", ["scores", "masks"])
def test_views_are_averaged_at_the_original_size(resize, strips):
    """Of three scales, one of them mirrored, with other logits each."""
    size, views, scores = (13, 19), [], []
    for i, (padded, network) in enumerate([((16, 24), (13, 19)), ((8, 12), (6, 9))] * 2):
        logits, masks = random_answer(i, spread=0.5)
        flipped = i == 1
        views.append(View(logits, masks, padded, network, flipped))
        where = {"padded": padded, "network": network, "size": size}
        score = slow_scores(logits, masks, **where, resize=resize)
        scores.append(score[:, :, ::-1] if flipped else score)
    mean = np.mean(scores, axis=0)
    check_labels(semantic_mean(views, size=size, resize=resize), mean)
    assert np.mean(mean.argmax(axis=0) != scores[0].argmax(axis=0)) > 0.1  # the others matter


def test_a_mirrored_answer_of_a_mirrored_image_changes_nothing():
    logits, masks = random_answer(3)
    plain = View(logits, masks, (16, 24), (16, 24))
    mirrored = View(logits, masks[:, :, ::-1], (16, 24), (16, 24), flipped=True)
    labels = semantic_mean([plain], size=(13, 21))
    np.testing.assert_array_equal(semantic_mean([plain, mirrored], size=(13, 21)), labels)
    np.testing.assert_array_equal(semantic_mean([mirrored], size=(13, 21)), labels)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_segments_equal_the_formula(geometry, strips):
    rng = np.random.default_rng(1)
    rules = {"things": np.array([True, False, True, False]), "object_mask": 0.4, "overlap": 0.3}
    logits = (3 * rng.normal(size=(9, 5))).astype(np.float32)
    masks = (4 * rng.normal(size=(9, 4, 6))).astype(np.float32)
    segments, info = panoptic(logits, masks, **geometry, **rules)
    expected, expected_info = slow_panoptic(logits, masks, **geometry, **rules)
    assert segments.dtype == np.int32
    np.testing.assert_array_equal(segments, expected)
    assert len(info) >= 3
    for found, wanted in zip(info, expected_info, strict=True):
        assert found | {"score": 0} == wanted | {"score": 0}
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-6)


def test_the_inputs_are_left_as_they_are():
    masks = np.linspace(-2, 2, 12, dtype=np.float32).reshape(1, 3, 4)
    logits = logits_of([0], classes=3)
    before = masks.copy(), logits.copy()
    semantic(logits, masks, **SIZES)
    merge([0], masks)
    np.testing.assert_array_equal(masks, before[0])
    np.testing.assert_array_equal(logits, before[1])


def test_equal_scores_go_to_the_lowest_class():
    logits = np.zeros((1, 4), np.float32)
    labels = semantic(logits, np.zeros((1, 3, 4), np.float32), **SIZES)
    np.testing.assert_array_equal(labels, np.zeros((3, 4)))


def test_background_is_never_a_label():
    logits = logits_of([3, 3], classes=3)  # both queries are sure of background
    logits[0, 1] = 1.0
    labels = semantic(logits, masks_of("#### #### ####", "#### #### ####"), **SIZES)
    np.testing.assert_array_equal(labels, np.ones((3, 4)))


def test_extreme_logits_are_fine():
    masks = 1e4 * np.sign(masks_of("##.. ##.. ##..", "..## ..## ..##"))
    labels = semantic(logits_of([2, 1], classes=3, score=1e4), masks, **SIZES)
    np.testing.assert_array_equal(labels, [[2, 2, 1, 1]] * 3)


def test_two_stuff_queries_of_one_class_share_a_segment():
    masks = masks_of("##.. .... ....", ".... .... ..##", ".... #### ##..")
    segments, info = merge([1, 1, 0], masks)
    np.testing.assert_array_equal(segments, [[1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 1, 1]])
    assert [(s["id"], s["category"], s["thing"]) for s in info] == [(1, 1, False), (2, 0, True)]


def test_two_thing_queries_of_one_class_are_two_segments():
    segments, info = merge([0, 0], masks_of("##.. ##.. ##..", "..## ..## ..##"))
    np.testing.assert_array_equal(segments, [[1, 1, 2, 2]] * 3)
    assert [(s["id"], s["category"], s["thing"]) for s in info] == [(1, 0, True), (2, 0, True)]
    assert info[0]["score"] == pytest.approx(softmax(logits_of([0], classes=3)).max(), abs=1e-6)


@pytest.mark.parametrize(("overlap", "kept"), [(0.74, True), (0.76, False)])
def test_a_segment_that_owns_too_little_of_its_mask_is_dropped(overlap, kept):
    masks = masks_of("#### #### ####", "###. .... ....")
    masks[0] = 1  # sigmoid 0.73: the first query owns every pixel of its mask but three
    segments, info = merge([2, 0], masks, overlap=overlap)
    expected = np.full((3, 4), int(kept))  # 9 of 12 = 0.75
    expected[0, :3] = 1 + kept
    np.testing.assert_array_equal(segments, expected)
    assert len(info) == 1 + kept


def test_a_query_whose_class_is_not_sure_enough_is_not_kept():
    logits = logits_of([0], classes=3, score=1.0)  # softmax e / (e + 3) = 0.475
    for threshold, count in ((0.47, 1), (0.48, 0)):
        segments, info = panoptic(
            logits, masks_of("#### #### ####"), **SIZES,
            things=np.ones(3, bool), object_mask=threshold, overlap=0.8,
        )  # fmt: skip
        assert len(info) == count
        assert segments.max() == count


def test_background_queries_leave_an_empty_map():
    segments, info = merge([3, 3], masks_of("#### #### ####", "##.. ##.. ##.."))
    np.testing.assert_array_equal(segments, np.zeros((3, 4)))
    assert info == []


def test_a_query_whose_mask_is_nowhere_above_one_half_is_dropped():
    segments, info = merge([0], masks_of(".... .... ...."))
    np.testing.assert_array_equal(segments, np.zeros((3, 4)))
    assert info == []


def test_segments_become_classes():
    segments = np.array([[0, 1, 2], [2, 3, 3]])
    info = [{"id": 1, "category": 4}, {"id": 2, "category": 0}, {"id": 3, "category": 4}]
    labels = instances_to_semantic(segments, info)
    np.testing.assert_array_equal(labels, [[-1, 4, 0], [0, 4, 4]])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(instances_to_semantic(segments * 0, []), -np.ones((2, 3)))


@pytest.mark.parametrize("resize", ["scores", "masks"])
def test_memory_is_that_of_strips(resize):
    """Masks of all queries at full size would be 24 MB, scores of all classes 16 MB."""
    rng = np.random.default_rng(5)
    logits = (5 * rng.normal(size=(100, 66))).astype(np.float32)
    masks = (4 * rng.normal(size=(100, 24, 32))).astype(np.float32)
    where = {"padded": (96, 128), "network": (90, 120), "size": (200, 300)}
    rules = {"things": np.arange(65) < 30, "object_mask": 0.0, "overlap": 0.0}
    tracemalloc.start()
    try:
        semantic(logits, masks, **where, resize=resize)
        panoptic(logits, masks, **where, **rules)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9e6
