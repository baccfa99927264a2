from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from lmseg_jax import losses
from tests.tiny import batch, tiny_config

WEIGHTS = {"classification": 1.0, "focal": 20.0, "dice": 1.0}


def outline(logits, target, counted, *, focal=1.0, dice=1.0):
    """Losses of one mask of one image, and the gradient."""
    sizes = jnp.asarray(np.sum((target > 0) & (counted > 0)), jnp.float32).reshape(1, 1)
    found, gradient = losses.outline_losses(
        jnp.asarray(logits, jnp.float32)[None, None],
        jnp.asarray(target > 0)[None, None],
        jnp.asarray(counted > 0)[None, None],
        sizes=sizes,
        weights={"focal": jnp.full((1, 1), focal), "dice": jnp.full((1, 1), dice)},
    )
    return {key: float(value[0, 0]) for key, value in found.items()}, np.asarray(gradient[0, 0])


@pytest.mark.parametrize(("score", "expected"), [(50.0, 0.0), (-50.0, 0.9)])
def test_dice_of_a_full_target(score, expected):
    ones = np.ones((3, 3))
    np.testing.assert_allclose(outline(score * ones, ones, ones)[0]["dice"], expected, atol=1e-6)


def slow_focal(logits, target, counted):
    """Pixel by pixel, from the definition."""
    values = []
    for x, t, c in zip(logits.ravel(), target.ravel(), counted.ravel(), strict=True):
        if c:
            p = expit(x)
            p_t, a_t = (p, 0.25) if t else (1 - p, 0.75)
            values.append(-a_t * (1 - p_t) ** 2 * np.log(p_t))
    return np.mean(values)


def slow_dice(logits, target, counted):
    p, t = expit(logits[counted > 0]), target[counted > 0]
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def arrays(seed=0, size=(4, 5)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=size), rng.random(size) < 0.4, (rng.random(size) < 0.8) * 1.0


@pytest.mark.parametrize("spread", [1, 20])
def test_focal_and_dice_equal_their_definitions(spread):
    logits, target, counted = arrays()
    found, _ = outline(spread * logits, target, counted, focal=20.0, dice=3.0)
    expected = slow_focal(spread * logits, target, counted)
    np.testing.assert_allclose(found["focal"], 20 * expected, rtol=1e-5)
    expected = slow_dice(spread * logits, target * 1.0, counted)
    np.testing.assert_allclose(found["dice"], 3 * expected, rtol=1e-5)


def test_the_gradient_of_focal_and_dice_is_that_of_their_definitions():
    logits, target, counted = arrays(1)
    _, found = outline(logits, target, counted, focal=20.0, dice=3.0)

    def loss(logits):
        return 20 * slow_focal(logits, target, counted) + 3 * slow_dice(logits, target, counted)

    step = 1e-5
    for place in np.ndindex(logits.shape):
        change = np.zeros_like(logits)
        change[place] = step
        expected = (loss(logits + change) - loss(logits - change)) / (2 * step)
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-7, err_msg=str(place))


def test_logits_beyond_the_range_of_an_exponential_give_finite_losses_and_gradients():
    logits = np.array([[300.0, -300.0], [300.0, -300.0]])
    target = np.array([[1, 1], [0, 0]])
    found, gradient = outline(logits, target, np.ones((2, 2)))
    # two pixels are right, two are 300 away from it, where alpha is 0.25 and 0.75
    np.testing.assert_allclose(found["focal"], (0.25 + 0.75) * 300 / 4, rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, [[0, -0.25 / 4], [0.75 / 4, 0]], atol=1e-6)


def test_a_mask_without_counted_pixels_has_no_loss():
    logits, target, _ = arrays()
    found, gradient = outline(logits, target, np.zeros_like(logits))
    assert found == {"focal": 0, "dice": 0}
    assert not gradient.any()


def predictions(seed, bucket, *, names=4, queries=6):
    rng = np.random.default_rng(seed)
    b, h, w = bucket["segments"].shape
    return {
        "logits": jnp.asarray(rng.normal(size=(2, b, queries, names)), jnp.float32),
        "masks": jnp.asarray(rng.normal(size=(2, b, queries, h // 4, w // 4)), jnp.float32),
    }


def test_the_cost_equals_brute_force_on_stride_four_targets():
    bucket = batch(0, dataset=0, size=(32, 32))
    found = predictions(1, bucket)
    targets = losses.targets_of(jax.tree.map(jnp.asarray, bucket), unlabelled="excluded")
    cost = losses.matching_cost(found["logits"][0], found["masks"][0], targets, weights=WEIGHTS)
    segments = bucket["segments"][:, ::4, ::4]
    logits, masks = np.asarray(found["logits"][0], float), np.asarray(found["masks"][0], float)
    for image in range(2):
        counted = (segments[image] >= 0) * 1.0
        for query in range(6):
            probability = np.exp(logits[image, query] - logsumexp(logits[image, query]))
            for target in range(2):
                truth = (segments[image] == target) * 1.0
                expected = (
                    -probability[bucket["classes"][image, target]]
                    + 20 * slow_focal(masks[image, query], truth, counted)
                    + slow_dice(masks[image, query], truth, counted)
                )
                np.testing.assert_allclose(cost[image, query, target], expected, rtol=1e-4)


def test_the_class_loss_is_a_weighted_sum_over_all_queries():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    valid = jnp.array([[True, True, True, False]])  # background is class 2
    found = losses.contrastive_loss(
        logits, jnp.array([[1, 0]]), jnp.array([[0, -1]]), valid=valid, no_object=0.1
    )
    x = np.asarray(logits[0], float)
    nll = logsumexp(x, axis=-1)[:, None] - x
    np.testing.assert_allclose(found, 0.1 * nll[0, 2] + nll[1, 0] + 0.1 * nll[2, 2], rtol=1e-5)


def test_denominators_count_the_whole_update():
    found = losses.denominators(jnp.array([[3, 1, -1], [-1, -1, -1]]), queries=5, no_object=0.1)
    assert float(found["masks"]) == 2
    np.testing.assert_allclose(found["weights"], 2 + 0.1 * 8, rtol=1e-6)


def test_an_update_without_targets_divides_by_one():
    assert float(losses.denominators(jnp.full((2, 3), -1), queries=5, no_object=0.1)["masks"]) == 1


@cache
def program(**changes):
    """The loss with its parts, compiled once for each config."""
    config = tiny_config()
    config.loss.update(changes)

    def loss(found, bucket):
        return losses.total_loss(
            found,
            bucket,
            losses.denominators(bucket["classes"], queries=6, no_object=0.1),
            valid=jnp.ones((2, 4), bool),
            loss=config.loss,
            matching=config.matcher,
        )

    return jax.jit(loss)


def total(found, bucket, **changes):
    return program(**changes)(found, bucket)


@pytest.fixture(scope="module")
def bucket():
    return batch(0, dataset=0, size=(32, 32))


def test_unused_targets_change_nothing(bucket):
    found = predictions(1, bucket)
    more = bucket | {"classes": np.pad(bucket["classes"], ((0, 0), (0, 2)), constant_values=-1)}
    np.testing.assert_allclose(total(found, more)[0], total(found, bucket)[0], rtol=1e-6)


@pytest.mark.parametrize("resolution", ["full", "quarter"])
def test_padding_counts_no_more_than_void(bucket, resolution):
    found = predictions(1, bucket)
    padded = bucket["segments"] == -2
    assert padded.any()
    void = bucket | {"segments": np.where(padded, -1, bucket["segments"])}
    same = [total(found, b, resolution=resolution)[0] for b in (bucket, void)]
    np.testing.assert_array_equal(same[0], same[1])


def test_the_gradient_of_an_uncounted_pixel_is_zero(bucket):
    found = predictions(1, bucket)

    def loss(masks):
        return total(found | {"masks": masks}, bucket, resolution="quarter")[0]

    gradient = np.asarray(jax.grad(loss)(found["masks"]))
    uncounted = bucket["segments"][0, ::4, ::4] < 0
    assert np.abs(gradient[:, :, :, uncounted]).max() == 0
    assert np.abs(gradient[:, :, :, ~uncounted]).max() > 0


def test_every_layer_is_supervised_alike(bucket):
    found = predictions(1, bucket)
    single = [{key: value[i : i + 1] for key, value in found.items()} for i in range(2)]
    alone = [float(total(layer, bucket)[0]) for layer in single]
    loss, parts = total(found, bucket)
    np.testing.assert_allclose(loss, sum(alone), rtol=1e-5)
    np.testing.assert_allclose(parts["final"], alone[1], rtol=1e-5)


def test_the_loss_is_told_by_layer_and_by_dataset_and_queries_are_counted(bucket):
    found = predictions(1, bucket)
    loss, parts = total(found, bucket)
    assert parts["layers"].shape == (2,) and parts["datasets"].shape == (2,)
    np.testing.assert_allclose(parts["layers"].sum(), loss, rtol=1e-6)
    np.testing.assert_allclose(parts["layers"][1], parts["final"], rtol=1e-6)
    first = {key: value[:, :1] for key, value in found.items()}
    alone = {key: value[:1] for key, value in bucket.items()}
    both = bucket | {"dataset": np.array([1] + [0] * (len(bucket["dataset"]) - 1), np.int32)}
    _, parts = total(found, both)
    share = losses.denominators(jnp.asarray(bucket["classes"]), queries=6, no_object=0.1)
    own = losses.denominators(jnp.asarray(alone["classes"]), queries=6, no_object=0.1)
    _, mine = total(first, alone)  # the first image's loss, with denominators of its own
    mask_parts = (mine["focal"] + mine["dice"]) * own["masks"] / share["masks"]
    class_part = mine["classification"] * own["weights"] / share["weights"]
    np.testing.assert_allclose(parts["datasets"][1], mask_parts + class_part, rtol=1e-5)
    assert parts["images"].tolist() == [len(bucket["dataset"]) - 1, 1]
    assert float(parts["matched"]) == (bucket["classes"] >= 0).sum()
    assert float(parts["no_object"]) == (np.argmax(found["logits"][-1], axis=-1) == 3).sum()


def test_weights_multiply_their_parts(bucket):
    found = predictions(1, bucket)
    _, parts = total(found, bucket)
    _, other = total(found, bucket, classification=3.0, focal=40.0, dice=5.0)
    for key, factor in (("classification", 3), ("focal", 2), ("dice", 5)):
        np.testing.assert_allclose(other[key], factor * parts[key], rtol=1e-6)


def test_maskformers_rule_counts_uncounted_pixels_as_negative(bucket):
    found = predictions(1, bucket)
    assert float(total(found, bucket)[0]) != float(total(found, bucket, unlabelled="negative")[0])


def test_parts_add_up_and_nonfinite_costs_are_counted(bucket):
    found = predictions(1, bucket)
    loss, parts = total(found, bucket)
    np.testing.assert_allclose(
        loss, parts["classification"] + parts["focal"] + parts["dice"], rtol=1e-6
    )
    assert float(parts["nonfinite"]) == 0
    broken = found | {"masks": found["masks"].at[0, 0, 2].set(jnp.nan)}
    assert float(total(broken, bucket)[1]["nonfinite"]) == 2  # one query, two real targets


@pytest.mark.parametrize("group", [1, 3])
def test_a_mask_loss_does_not_depend_on_its_group(group, monkeypatch):
    monkeypatch.setattr(losses, "GROUP", group)
    rng = np.random.default_rng(1)
    bucket = batch(0, dataset=0, size=(32, 32), targets=7)
    bucket["classes"][1, :5] = 0  # one image has two targets, the other five
    targets = losses.targets_of(jax.tree.map(jnp.asarray, bucket), unlabelled="excluded")
    masks = jnp.asarray(rng.normal(size=(2, 9, 8, 8)), jnp.float32)
    query = jnp.asarray([rng.permutation(9)[:7] for _ in range(2)])
    given = jnp.asarray(rng.random(2), jnp.float32)
    weights = {"focal": jnp.float32(20), "dice": jnp.float32(0.5)}

    def plain(masks):
        chosen = jnp.take_along_axis(masks, query[..., None, None], axis=1)
        large = jax.image.resize(chosen, (2, 7, 32, 32), "bilinear")
        truth = targets.segments[:, None] == jnp.arange(7)[None, :, None, None]
        counted = targets.counted[:, None] * 1.0
        right = jax.nn.sigmoid(jnp.where(truth, large, -large))
        focal = -jnp.where(truth, 0.25, 0.75) * (1 - right) ** 2 * jnp.log(right) * counted
        focal = focal.sum((2, 3)) / counted.sum((2, 3))
        inside, truth = jax.nn.sigmoid(large) * counted, truth * counted
        both = inside.sum((2, 3)) + truth.sum((2, 3))
        dice = 1 - (2 * (inside * truth).sum((2, 3)) + 1) / (both + 1)
        focal, dice = (jnp.sum(x * targets.real, axis=-1) for x in (20 * focal, 0.5 * dice))
        return jnp.sum((focal + dice) * given), {"focal": focal, "dice": dice}

    def grouped(masks):
        loss, parts = losses.mask_losses(
            jnp.stack([masks, -masks]), jnp.stack([query, query]), targets, weights
        )
        return jnp.sum(loss[0] * given), {key: part[0] for key, part in parts.items()}

    both = [jax.jit(jax.value_and_grad(f, has_aux=True))(masks) for f in (plain, grouped)]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(a).max())


def test_the_full_resolution_loss_of_a_large_image_takes_little_memory():
    config = tiny_config()
    config.loss.resolution = "full"
    layers, queries, slots, names, side = 6, 100, 100, 151, 1280
    found = {"logits": (layers, 1, queries, names), "masks": (layers, 1, queries, 320, 320)}
    found = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in found.items()}
    image = {
        "segments": jax.ShapeDtypeStruct((1, side, side), jnp.int16),
        "classes": jax.ShapeDtypeStruct((1, slots), jnp.int32),
        "dataset": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def loss(found, image, share):
        return losses.total_loss(
            found,
            image,
            share,
            valid=jnp.ones((1, names), bool),
            loss=config.loss,
            matching=config.matcher,
        )

    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    share = {"masks": scalar, "weights": scalar}
    memory = program.lower(found, image, share).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 1e9  # 3.5e9 with all targets at once; 2.5e9 is allowed
