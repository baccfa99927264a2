"""Losses: contrastive text-query classification, focal and dice masks, over all decoder layers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import matcher

ALPHA, GAMMA = 0.25, 2  # focal loss (Lin et al., 2017), as in MaskFormer
GROUP = 10  # targets of an image whose full-resolution masks live at a time


@dataclass(frozen=True)
class Targets:
    """What a bucket's images hold, as the losses need it.

    Attributes:
      classes: i32 [B, T], -1 where unused.
      segments: i32 [B, H, W], -1 void, -2 padding.
      counted: bool [B, H, W], pixels that enter masks' cost and loss.
    """

    classes: Array
    segments: Array
    counted: Array

    @property
    def real(self) -> Array:
        return self.classes >= 0

    def masks(self, index: Array, *, stride: int = 1) -> tuple[Array, Array]:
        """f32 targets `index` [B, n, h, w] and counted [B, h, w], nearest neighbour at `stride`."""
        segments = self.segments[:, ::stride, ::stride]
        masks = segments[:, None] == index[None, :, None, None]
        return masks.astype(jnp.float32), self.counted[:, ::stride, ::stride].astype(jnp.float32)


def targets_of(bucket: dict[str, Array], *, unlabelled: str) -> Targets:
    """Targets of a Batch; `unlabelled` pixels are "excluded" or "negative" for every mask."""
    segments = bucket["segments"].astype(jnp.int32)
    counted = segments >= 0 if unlabelled == "excluded" else jnp.ones_like(segments, bool)
    return Targets(bucket["classes"], segments, counted)


def focal_terms(logits: Array) -> tuple[Array, Array]:
    """Focal loss of each pixel if its target were 1, and if it were 0.

    positive = alpha (1 - p)^gamma softplus(-x), negative = (1 - alpha) p^gamma softplus(x).
    """
    p = jax.nn.sigmoid(logits)
    positive = ALPHA * (1 - p) ** GAMMA * jax.nn.softplus(-logits)
    negative = (1 - ALPHA) * p**GAMMA * jax.nn.softplus(logits)
    return positive, negative


def focal_loss(logits: Array, target: Array, counted: Array) -> Array:
    """Focal loss of each mask, the mean over counted pixels.

    Args:
      logits: [..., H, W], before the sigmoid.
      target: [..., H, W], 0 or 1.
      counted: [..., H, W], 0 where a pixel is left out.

    Returns:
      [...], at least 0; 0 where nothing is counted.

    Source: LMSeg Eq. 3; Lin et al., 2017, alpha 0.25, gamma 2.
    """
    positive, negative = focal_terms(logits)
    pixels = (target * positive + (1 - target) * negative) * counted
    return jnp.sum(pixels, (-2, -1)) / jnp.maximum(jnp.sum(counted, (-2, -1)), 1)


def dice_loss(logits: Array, target: Array, counted: Array) -> Array:
    """Dice loss of each mask, 0 for a perfect mask and near 1 for a disjoint one.

    loss = 1 - (2 |p t| + 1) / (|p| + |t| + 1), p = sigmoid(logits); sums run over counted pixels.

    Args:
      logits: [..., H, W], before the sigmoid.
      target: [..., H, W], 0 or 1.
      counted: [..., H, W], 0 where a pixel is left out.

    Returns:
      [...], one value in [0, 1) per mask; the caller weighs and averages.

    Source: LMSeg Eq. 3; V-Net (Milletari et al., 2016).
    """
    inside = jax.nn.sigmoid(logits) * counted
    target = target * counted
    overlap = 2 * jnp.sum(inside * target, axis=(-2, -1))
    total = jnp.sum(inside, axis=(-2, -1)) + jnp.sum(target, axis=(-2, -1))
    return 1 - (overlap + 1) / (total + 1)


def matching_cost(
    logits: Array, masks: Array, targets: Targets, *, weights: dict[str, float]
) -> Array:
    """Cost of giving each target to each query, at the resolution of the masks.

    cost = -w_c softmax(logits)[class] + w_f focal + w_d dice; pairwise sums are matrix products.

    Args:
      logits: [B, Q, K].
      masks: [B, Q, h, w], logits.
      targets: of the bucket, nearest neighbour at stride H / h.
      weights: `classification`, `focal`, `dice`.

    Returns:
      f32 [B, Q, T]; columns of unused targets mean nothing.

    Source: LMSeg Sec. 3.3; MaskFormer (Cheng et al., 2021).
    """
    b, t = targets.classes.shape
    stride = targets.segments.shape[1] // masks.shape[2]
    target, counted = targets.masks(jnp.arange(t), stride=stride)
    truth = (target * counted[:, None]).reshape(b, t, -1)  # [B, T, P]
    pixels = counted.reshape(b, 1, -1)
    x = masks.reshape(b, masks.shape[1], -1)  # [B, Q, P]

    probability = jax.nn.softmax(logits, axis=-1)
    asked = jnp.maximum(targets.classes, 0)[:, None, :]
    label = jnp.take_along_axis(probability, jnp.broadcast_to(asked, (b, x.shape[1], t)), axis=2)

    positive, negative = focal_terms(x)
    focal = jnp.einsum("bqp,btp->bqt", positive - negative, truth, precision="highest")
    focal = focal + jnp.sum(negative * pixels, axis=-1)[..., None]
    focal = focal / jnp.maximum(jnp.sum(pixels, axis=-1), 1)[..., None]

    inside = jax.nn.sigmoid(x) * pixels
    overlap = 2 * jnp.einsum("bqp,btp->bqt", inside, truth, precision="highest")
    total = jnp.sum(inside, axis=-1)[..., None] + jnp.sum(truth, axis=-1)[:, None, :]
    dice = 1 - (overlap + 1) / (total + 1)
    return -weights["classification"] * label + weights["focal"] * focal + weights["dice"] * dice


def denominators(classes: Array, *, queries: int, no_object: float) -> dict[str, Array]:
    """What the sums of a whole update are divided by, so that cutting it changes nothing.

    Args:
      classes: i32 [N, T], of every image of the update, -1 where unused.
      queries: Q.
      no_object: class weight of an unmatched query.

    Returns:
      `masks`: number of real targets, at least 1; `weights`: sum of the class weights of all
      queries, real + no_object (N Q - real).
    """
    real = jnp.sum(classes >= 0).astype(jnp.float32)
    return {
        "masks": jnp.maximum(real, 1),
        "weights": real + no_object * (classes.shape[0] * queries - real),
    }


def contrastive_loss(logits: Array, query: Array, classes: Array, *, valid, no_object) -> Array:
    """Weighted sum over an image's queries of -log softmax(logits)[target].

    A matched query's target is its segment's class (weight 1), any other's is background, the last
    valid name (weight `no_object`).

    Args:
      logits: [B, Q, K].
      query: i32 [B, T], the query of each target.
      classes: i32 [B, T], -1 where unused.
      valid: bool [B, K], real names.
      no_object: weight of background.

    Returns:
      [B]; divide by `denominators()["weights"]`.

    Source: LMSeg Eq. 2.
    """
    b, q, _ = logits.shape
    background = jnp.sum(valid, axis=-1) - 1
    real = classes >= 0
    slot = jnp.where(real, query, q)  # unused targets fall out of range and are dropped

    def place(row, slot, values):
        return row.at[slot].set(values, mode="drop")

    label = jax.vmap(place)(jnp.broadcast_to(background[:, None], (b, q)), slot, classes)
    weight = jax.vmap(place, (None, 0, None))(jnp.full(q, no_object), slot, 1.0)
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probability, label[..., None], axis=-1)[..., 0]
    return -jnp.sum(weight * picked, axis=-1)


def upsample(x: Array, factor: int) -> Array:
    """Bilinear interpolation at pixel centres, edges repeated; two neighbours an axis.

    The numbers of `jax.image.resize`, which is a product with a dense matrix of H x h an axis.

    Args:
      x: [..., h, w].
      factor: by which both sides grow.

    Returns:
      [..., factor h, factor w].
    """
    place = (np.arange(factor) + 0.5) / factor - 0.5  # in the old pixel, from its centre
    weights = np.float32([np.maximum(-place, 0), 1 - np.abs(place), np.maximum(place, 0)])
    for _ in range(2):  # each time along the last axis
        before = jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
        after = jnp.concatenate([x[..., 1:], x[..., -1:]], axis=-1)
        x = sum(
            neighbour[..., None] * weight.reshape((1,) * x.ndim + (-1,))
            for neighbour, weight in zip((before, x, after), weights, strict=True)
        )
        x = jnp.swapaxes(x.reshape(*x.shape[:-2], -1), -1, -2)
    return x


def full_mask_losses(masks: Array, targets: Targets) -> tuple[Array, Array]:
    """Focal and dice loss of each target's mask, upsampled to the size of the targets.

    GROUP targets of each image are upsampled at a time, forward and backward, and groups in which
    no image has a target are skipped: memory goes with GROUP, work with the targets that there are.

    Args:
      masks: [B, T, h, w], logits of the query that has each target.
      targets: of the bucket, [B, H, W].

    Returns:
      [B, T] each; values of unused targets mean nothing.
    """
    b, t, h, w = masks.shape
    size = min(GROUP, t)
    count = -(-t // size)
    masks = jnp.pad(masks, ((0, 0), (0, count * size - t), (0, 0), (0, 0)))
    masks = jnp.moveaxis(masks.reshape(b, count, size, h, w), 1, 0)
    most = jnp.max(jnp.sum(targets.real, axis=-1))  # unused targets come last

    @jax.checkpoint  # here too, or a skipped group would write zeros for all that a used one keeps
    def used(first, masks):
        target, counted = targets.masks(first + jnp.arange(size))
        masks = upsample(masks, target.shape[2] // h)
        counted = counted[:, None]
        return focal_loss(masks, target, counted), dice_loss(masks, target, counted)

    def unused(first, masks):
        return jnp.zeros((b, size)), jnp.zeros((b, size))

    @jax.checkpoint
    def group(operands):
        first, masks = operands
        return jax.lax.cond(first < most, used, unused, first, masks)

    found = jax.lax.map(group, (size * jnp.arange(count), masks))  # [count, B, size]
    return tuple(jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, :t] for x in found)


def total_loss(
    predictions: dict[str, Array],
    bucket: dict[str, Array],
    denominators: dict[str, Array],
    *,
    valid: Array,
    loss: ConfigDict,
    matching: ConfigDict,
    mesh: Mesh | None = None,
) -> tuple[Array, dict[str, Array]]:
    """A bucket's share of the update's loss, summed over decoder layers.

    Matching runs first, without gradient and in one callback for all layers; then the losses of
    one layer live at a time.

    Args:
      predictions: logits [L, B, Q, K], masks [L, B, Q, h, w].
      bucket: a Batch.
      denominators: of the whole update.
      valid: bool [M, K], real names of each dataset.
      loss: `config.loss`.
      matching: `config.matcher`.
      mesh: whose axes split B.

    Returns:
      The loss, and its parts: `classification`, `focal`, `dice` (weighted, all layers), `final`
      (the last layer's total), `layers` [L] and `datasets` [M] (the loss of each), and counts:
      `images` [M] of each dataset, `matched` and `no_object` queries of the last layer (with a
      target; that answer background), `nonfinite` costs.
    """
    targets = targets_of(bucket, unlabelled=loss.unlabelled)
    logits = predictions["logits"].astype(jnp.float32)
    masks = predictions["masks"].astype(jnp.float32)
    weights = {key: matching[key] for key in ("classification", "focal", "dice")}
    cost = jax.lax.map(
        lambda layer: matching_cost(*layer, targets, weights=weights),
        jax.lax.stop_gradient((logits, masks)),
    )
    count = jnp.sum(targets.real, axis=-1).astype(jnp.int32)
    query = matcher.assign(cost, count, where=matching.where, mesh=mesh)
    wrong = ~jnp.isfinite(cost) & targets.real[None, :, None, :]

    target, counted = targets.masks(
        jnp.arange(targets.classes.shape[1]), stride=targets.segments.shape[1] // masks.shape[3]
    )  # at the resolution of the masks
    names = valid[bucket["dataset"]]

    @jax.checkpoint
    def layer_loss(layer):
        logits, masks, query = layer
        chosen = jax.vmap(lambda mask, index: mask[index])(masks, query)  # [B, T, h, w]
        if loss.resolution == "full":
            focal, dice = full_mask_losses(chosen, targets)
        else:
            focal = focal_loss(chosen, target, counted[:, None])
            dice = dice_loss(chosen, target, counted[:, None])
        focal, dice = (jnp.sum(jnp.where(targets.real, x, 0), axis=-1) for x in (focal, dice))
        classification = contrastive_loss(
            logits, query, targets.classes, valid=names, no_object=loss.no_object
        )
        return {
            "classification": loss.classification * classification / denominators["weights"],
            "focal": loss.focal * focal / denominators["masks"],
            "dice": loss.dice * dice / denominators["masks"],
        }

    layers = jax.lax.map(layer_loss, (logits, masks, query))  # each [L, B]
    parts = {key: jnp.sum(value) for key, value in layers.items()}
    total = sum(parts.values())
    whole = sum(layers.values())
    mine = bucket["dataset"][:, None] == jnp.arange(len(valid))[None]  # [B, M]
    background = jnp.sum(names, axis=-1)[:, None] - 1
    return total, parts | {
        "final": jnp.sum(whole[-1]),
        "layers": jnp.sum(whole, axis=1),
        "datasets": jnp.sum(jnp.where(mine, jnp.sum(whole, axis=0)[:, None], 0), axis=0),
        "images": jnp.sum(mine, axis=0).astype(jnp.float32),
        "matched": jnp.sum(targets.real).astype(jnp.float32),
        "no_object": jnp.sum(jnp.argmax(logits[-1], axis=-1) == background).astype(jnp.float32),
        "nonfinite": jnp.sum(wrong).astype(jnp.float32),
    }
