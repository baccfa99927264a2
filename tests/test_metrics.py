import numpy as np
import pytest

from lmseg_jax.errors import UserError
from lmseg_jax.metrics import PanopticMetric, SemanticMetric

NAMES = ("road", "person", "sky")
THINGS = np.array([False, True, False])


def panoptic_scores(prediction, info, truth, classes, *, area=None, crowd=None):
    """Scores of one image; areas are counted and nothing is a crowd unless given."""
    truth, classes = np.array(truth), np.array(classes, np.int32)
    if area is None:
        area = np.array([np.sum(truth == i) for i in range(len(classes))])
    crowd = np.zeros(len(classes), bool) if crowd is None else np.array(crowd, bool)
    metric = PanopticMetric(NAMES, THINGS)
    listed = [{"id": key, "category": value} for key, value in info.items()]
    metric.update(np.array(prediction), listed, truth, classes, np.array(area), crowd)
    return metric.compute()


def counts(scores, name):
    return tuple(scores["classes"][name][key] for key in ("tp", "fp", "fn"))


def random_panoptic(rng):
    """A prediction and a truth that often agree, with void, crowds and untrue areas."""
    truth = np.kron(rng.integers(-1, 6, (4, 4)), np.ones((3, 3), int))
    segments = np.where(rng.random((12, 12)) < 0.75, truth + 1, rng.integers(0, 9, (12, 12)))
    classes = rng.integers(0, 3, 6)
    info = [
        {
            "id": int(i),
            "category": int(classes[i - 1] if i < 7 and rng.random() < 0.8 else rng.integers(0, 3)),
        }
        for i in np.unique(segments[segments > 0])
    ]
    area = np.array([np.sum(truth == i) for i in range(6)]) + rng.integers(0, 3, 6)
    return segments, info, truth, classes, area, rng.random(6) < 0.3


def slow_panoptic(images):
    """tp, fp, fn and summed IoU of each class, pair by pair."""
    tp, fp, fn, quality = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    for segments, info, truth, classes, area, crowd in images:
        matched = set()
        for segment in info:
            mine, category = segments == segment["id"], segment["category"]
            found = False
            for i in range(len(classes)):
                both = np.sum(mine & (truth == i))
                if crowd[i] or classes[i] != category or both == 0:
                    continue
                iou = both / (mine.sum() + area[i] - both - np.sum(mine & (truth == -1)))
                if iou > 0.5:
                    tp[category] += 1
                    quality[category] += iou
                    matched.add(i)
                    found = True
            crowds = [i for i in range(len(classes)) if crowd[i] and classes[i] == category]
            excused = np.sum(mine & (truth == -1))
            if crowds:
                excused += np.sum(mine & (truth == crowds[-1]))
            if not found and not excused / mine.sum() > 0.5:
                fp[category] += 1
        for i in range(len(classes)):
            if i not in matched and not crowd[i]:
                fn[classes[i]] += 1
    return tp, fp, fn, quality


def test_semantic_scores_by_hand():
    metric = SemanticMetric(NAMES)
    metric.update(np.array([[0, 0, 1], [1, 1, 2]]), np.array([[0, 0, 0], [1, 1, 1]]))
    scores = metric.compute()
    # road: 2 of 3 pixels, IoU 2/3; person: 2 of 3, both = 2, either = 4; sky: only predicted
    assert scores["iou"] == {
        "road": pytest.approx(200 / 3),
        "person": pytest.approx(50),
        "sky": None,
    }
    assert scores["miou"] == pytest.approx((200 / 3 + 50) / 2)
    assert scores["fwiou"] == pytest.approx((200 / 3 + 50) / 2)
    assert scores["macc"] == pytest.approx(200 / 3)
    assert scores["pacc"] == pytest.approx(400 / 6)


def test_a_class_absent_from_the_truth_lowers_only_the_legacy_mean():
    metric = SemanticMetric(NAMES)
    metric.update(np.array([[0, 0, 2, 1]]), np.array([[0, 0, 0, 1]]))
    scores = metric.compute()
    assert scores["miou"] == pytest.approx((200 / 3 + 100) / 2)
    assert scores["miou_legacy"] == pytest.approx((200 / 3 + 100) / 3)


def test_frequencies_weigh_the_frequency_weighted_mean():
    metric = SemanticMetric(NAMES)
    metric.update(np.array([[0, 0, 0, 2]]), np.array([[0, 0, 0, 1]]))
    assert metric.compute()["fwiou"] == pytest.approx(75)


def test_void_truth_counts_nowhere():
    with_void, without = SemanticMetric(NAMES), SemanticMetric(NAMES)
    with_void.update(np.array([[0, 1, 2, 2, 1]]), np.array([[0, 1, 1, -1, -1]]))
    without.update(np.array([[0, 1, 2]]), np.array([[0, 1, 1]]))
    assert with_void.compute() == without.compute()


def test_a_pixel_without_prediction_is_missed():
    metric = SemanticMetric(NAMES)
    metric.update(np.array([[0, -1]]), np.array([[0, 0]]))
    assert metric.compute()["iou"]["road"] == pytest.approx(50)


def test_no_truth_gives_no_semantic_score():
    metric = SemanticMetric(NAMES)
    metric.update(np.zeros((2, 2), int), np.full((2, 2), -1))
    scores = metric.compute()
    assert [scores[key] for key in ("miou", "miou_legacy", "fwiou", "macc", "pacc")] == [None] * 5
    assert set(scores["iou"].values()) == {None}


def test_semantic_scores_equal_sums_over_pixels():
    rng = np.random.default_rng(0)
    metric = SemanticMetric(NAMES)
    images = [(rng.integers(0, 3, (6, 7)), rng.integers(-1, 3, (6, 7))) for _ in range(4)]
    for prediction, truth in images:
        metric.update(prediction, truth)
    prediction, truth = (np.concatenate(x) for x in zip(*images, strict=True))
    prediction = np.where(truth < 0, -1, prediction)
    for k, name in enumerate(NAMES):
        both = np.sum((prediction == k) & (truth == k))
        either = np.sum((prediction == k) | (truth == k))
        assert metric.compute()["iou"][name] == pytest.approx(100 * both / either)


def test_perfect_segments_score_100():
    scores = panoptic_scores([[1, 1, 2, 3]], {1: 0, 2: 1, 3: 1}, [[0, 0, 1, 2]], [0, 1, 1])
    for key in ("pq", "sq", "rq", "pq_things", "sq_things", "rq_things", "pq_stuff"):
        assert scores[key] == 100


def test_an_iou_of_one_half_is_no_match():
    scores = panoptic_scores([[1, 1, 0, 0]], {1: 1}, [[0, 0, 0, 0]], [1])
    assert counts(scores, "person") == (0, 1, 1)


def test_an_iou_above_one_half_is_a_match():
    scores = panoptic_scores([[1, 1, 1, 0, 0]], {1: 1}, [[0, 0, 0, 0, 0]], [1])
    assert counts(scores, "person") == (1, 0, 0)
    assert scores["sq"] == pytest.approx(60)
    assert scores["rq"] == 100
    assert scores["pq"] == pytest.approx(60)


def test_segments_of_other_classes_do_not_match():
    scores = panoptic_scores([[1, 1]], {1: 0}, [[0, 0]], [1])
    assert counts(scores, "road") == (0, 1, 0)
    assert counts(scores, "person") == (0, 0, 1)
    assert (scores["pq"], scores["sq"], scores["rq"]) == (0, 0, 0)


def test_predicted_void_pixels_leave_the_union():
    # 2 shared, 3 more in void: IoU = 2 / (5 + 3 - 2 - 3) = 2/3 instead of 1/3
    scores = panoptic_scores([[1, 1, 1, 1, 1, 0]], {1: 1}, [[0, 0, -1, -1, -1, 0]], [1])
    assert counts(scores, "person") == (1, 0, 0)
    assert scores["pq"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(("void", "wrong"), [(2, 1), (3, 0)])
def test_a_prediction_mostly_in_void_is_ignored(void, wrong):
    truth = [[-1] * void + [0] * (4 - void) + [0] * 8]
    scores = panoptic_scores([[1] * 4 + [0] * 8], {1: 1}, truth, [0])
    assert counts(scores, "person") == (0, wrong, 0)


@pytest.mark.parametrize(("category", "wrong"), [(1, 0), (0, 1)])
def test_a_prediction_mostly_in_a_crowd_of_its_class_is_ignored(category, wrong):
    scores = panoptic_scores(
        [[1, 1, 1, 1]], {1: category}, [[0, 0, 0, 1]], [1, 2], crowd=[True, False]
    )
    assert counts(scores, NAMES[category]) == (0, wrong, 0)


def test_void_and_crowd_together_excuse_a_prediction():
    scores = panoptic_scores(
        [[1, 1, 1, 1, 1]], {1: 1}, [[0, 0, -1, 1, 1]], [1, 2], crowd=[True, False]
    )
    assert counts(scores, "person") == (0, 0, 0)


def test_the_last_crowd_of_a_class_is_the_one_that_excuses():
    first = panoptic_scores([[1, 1, 1, 2]], {1: 1, 2: 2}, [[0, 0, 0, 1]], [1, 1], crowd=[1, 1])
    assert counts(first, "person") == (0, 1, 0)
    last = panoptic_scores([[1, 1, 1, 2]], {1: 1, 2: 2}, [[1, 1, 1, 0]], [1, 1], crowd=[1, 1])
    assert counts(last, "person") == (0, 0, 0)


def test_a_crowd_is_neither_matched_nor_missed():
    scores = panoptic_scores([[1, 1]], {1: 1}, [[0, 0]], [1], crowd=[True])
    assert counts(scores, "person") == (0, 0, 0)
    assert scores["pq"] is None


def test_the_official_area_counts_in_the_union():
    scores = panoptic_scores([[1, 1]], {1: 1}, [[0, 0]], [1], area=[4])
    assert counts(scores, "person") == (0, 1, 1)
    scores = panoptic_scores([[1, 1]], {1: 1}, [[0, 0]], [1], area=[3])
    assert scores["sq"] == pytest.approx(200 / 3)


def test_a_true_segment_without_pixels_is_missed():
    scores = panoptic_scores([[1, 1]], {1: 0}, [[0, 0]], [0, 1], area=[2, 5])
    assert counts(scores, "person") == (0, 0, 1)


def test_averages_are_over_classes_that_count():
    # road 100, person 0 (missed), sky absent
    scores = panoptic_scores([[1, 1, 0]], {1: 0}, [[0, 0, 1]], [0, 1])
    assert (scores["pq"], scores["pq_things"], scores["pq_stuff"]) == (50, 0, 100)
    assert scores["classes"]["sky"] == {
        "pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0
    }  # fmt: skip


def test_no_segments_give_no_panoptic_score():
    scores = panoptic_scores([[0, 0]], {}, [[-1, -1]], [])
    assert [scores[key] for key in scores if key != "classes"] == [None] * 9


def test_panoptic_scores_equal_pairwise_counting():
    rng = np.random.default_rng(1)
    images = [random_panoptic(rng) for _ in range(40)]
    metric = PanopticMetric(NAMES, THINGS)
    for image in images:
        metric.update(*image)
    tp, fp, fn, quality = slow_panoptic(images)
    assert tp.min() > 5 and fp.min() > 5 and fn.min() > 5
    scores = metric.compute()
    for k, name in enumerate(NAMES):
        assert counts(scores, name) == (tp[k], fp[k], fn[k])
    each = 100 * quality / (tp + fp / 2 + fn / 2)
    assert scores["pq"] == pytest.approx(each.mean(), abs=1e-6)
    assert scores["pq_things"] == pytest.approx(each[1], abs=1e-6)
    assert scores["pq_stuff"] == pytest.approx(each[[0, 2]].mean(), abs=1e-6)
    assert scores["sq"] == pytest.approx(100 * (quality / tp).mean(), abs=1e-6)
    assert scores["rq"] == pytest.approx(100 * (tp / (tp + fp / 2 + fn / 2)).mean(), abs=1e-6)


def test_ids_may_be_large_and_unordered():
    scores = panoptic_scores([[9_000_000, 7]], {9_000_000: 1, 7: 0}, [[0, 1]], [1, 0])
    assert scores["pq"] == 100


@pytest.mark.parametrize(
    ("prediction", "ids", "message"),
    [
        ([[1, 5]], [1], "ids 5 that its list"),
        ([[1, -4]], [1], "ids -4 that its list"),
        ([[1, 1]], [1, 3], "ids 3 that no pixel"),
        ([[1, 1]], [1, 1], "ids 1 twice"),
        ([[1, 0]], [1, 0], "ids 0 twice"),
        ([[1, -2]], [1, -2], "ids -2 twice or not above 0"),
    ],
)
def test_a_map_and_a_list_that_disagree_are_an_error(prediction, ids, message):
    metric = PanopticMetric(NAMES, THINGS)
    info = [{"id": i, "category": 0} for i in ids]
    nothing = np.zeros(0, int)
    with pytest.raises(UserError, match=f"image 'berlin_7'.*{message}"):
        metric.update(
            np.array(prediction), info, np.full((1, 2), -1), nothing, nothing, nothing > 0,
            name="berlin_7",
        )  # fmt: skip
    assert all(value.sum() == 0 for value in metric.state.values())


@pytest.mark.parametrize("parts", [2, 5])
def test_merged_metrics_equal_a_single_one(parts):
    rng = np.random.default_rng(2)
    images = [random_panoptic(rng) for _ in range(10)]
    panoptic = [PanopticMetric(NAMES, THINGS) for _ in range(parts + 1)]
    semantic = [SemanticMetric(NAMES) for _ in range(parts + 1)]
    for i, image in enumerate(images):
        prediction, truth = image[0] % 3, image[2] % 4 - 1
        for metrics, arguments in ((panoptic, image), (semantic, (prediction, truth))):
            metrics[0].update(*arguments)
            metrics[1 + i % parts].update(*arguments)
    for single, first, *others in (panoptic, semantic):
        for other in reversed(others):
            first.merge(other)
        assert first.compute() == single.compute()


def test_sums_over_processes_are_exact_beyond_32_bits():
    metrics = [SemanticMetric(NAMES) for _ in range(3)]
    for i, metric in enumerate(metrics):
        metric.state["matrix"][:] = 2**50 + np.arange(12).reshape(4, 3) + i
    arrays = [metric.arrays()["matrix"] for metric in metrics]
    assert arrays[0].dtype == np.int32
    total = metrics[0].from_arrays({"matrix": np.sum(arrays, axis=0, dtype=np.int32)})
    expected = 3 * (2**50 + np.arange(12).reshape(4, 3) + 1)
    np.testing.assert_array_equal(total.state["matrix"], expected)


def test_a_panoptic_metric_survives_its_arrays():
    metric = PanopticMetric(NAMES, THINGS)
    rng = np.random.default_rng(3)
    for _ in range(5):
        metric.update(*random_panoptic(rng))
    assert metric.from_arrays(metric.arrays()).compute() == metric.compute()
