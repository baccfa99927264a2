"""Losses: contrastive text-query classification, focal and dice masks, over all decoder layers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import matcher
from lmseg_jax.upsampling import phases, upsample

ALPHA, GAMMA = 0.25, 2  # focal loss (Lin et al., 2017), as in MaskFormer
GROUP = 5  # targets of an image whose full-resolution masks live at a time


@jax.tree_util.register_dataclass
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

    def at_stride(self, stride: int) -> "Targets":
        """The same at a lower resolution, by the nearest neighbour."""
        segments, counted = (x[:, ::stride, ::stride] for x in (self.segments, self.counted))
        return Targets(self.classes, segments, counted)

    def in_phases(self, factor: int) -> "Targets":
        """The same pixels in the order of `phases`."""
        segments, counted = (phases(x, factor) for x in (self.segments, self.counted))
        return Targets(self.classes, segments, counted)

    def masks(self, index: Array) -> tuple[Array, Array]:
        """f32 targets `index` [B, n, H, W] and counted [B, H, W]."""
        masks = self.segments[:, None] == index[None, :, None, None]
        return masks.astype(jnp.float32), self.counted.astype(jnp.float32)


def targets_of(bucket: dict[str, Array], *, unlabelled: str) -> Targets:
    """Targets of a Batch; `unlabelled` pixels are "excluded" or "negative" for every mask."""
    segments = bucket["segments"].astype(jnp.int32)
    counted = segments >= 0 if unlabelled == "excluded" else jnp.ones_like(segments, bool)
    return Targets(bucket["classes"], segments, counted)


@jax.custom_jvp
def logistic(x: Array) -> tuple[Array, Array, Array]:
    """sigmoid(x), softplus(x) and softplus(-x), of one exponential and one logarithm.

    Their derivatives are p (1 - p), p and p - 1 of the same p, so a gradient needs no other.
    """
    power = jnp.exp(-jnp.abs(x))
    rest = jnp.log1p(power)
    p = jnp.where(x >= 0, 1, power) / (1 + power)
    return p, jnp.maximum(x, 0) + rest, jnp.maximum(-x, 0) + rest


@logistic.defjvp
def _logistic_jvp(primals, tangents):
    found = logistic(*primals)
    (p, _, _), (dx,) = found, tangents
    return found, (p * (1 - p) * dx, p * dx, (p - 1) * dx)


def focal_terms(logits: Array) -> tuple[Array, Array]:
    """Focal loss of each pixel if its target were 1, and if it were 0.

    positive = alpha (1 - p)^gamma softplus(-x), negative = (1 - alpha) p^gamma softplus(x).
    """
    p, as_zero, as_one = logistic(logits)
    return ALPHA * (1 - p) ** GAMMA * as_one, (1 - ALPHA) * p**GAMMA * as_zero


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
    inside = logistic(logits)[0] * counted
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
      targets: of the bucket; nearest neighbours at stride H / h are taken.
      weights: `classification`, `focal`, `dice`.

    Returns:
      f32 [B, Q, T]; columns of unused targets mean nothing.

    Source: LMSeg Sec. 3.3; MaskFormer (Cheng et al., 2021).
    """
    b, t = targets.classes.shape
    stride = targets.segments.shape[1] // masks.shape[2]
    target, counted = targets.at_stride(stride).masks(jnp.arange(t))
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

    inside = logistic(x)[0] * pixels
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


@jax.custom_vjp
def mask_losses(
    masks: Array, query: Array, targets: Targets, weights: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Focal and dice losses of each image's targets, upsampled to the size of the targets.

    The gradient is computed with the value, GROUP targets of each image in one layer at a time:
    what a group has at full resolution is gone before the next one, and nothing is computed twice.
    Groups in which no image has a target are skipped.

    Args:
      masks: [L, B, Q, h, w], logits.
      query: i32 [L, B, T], the query of each target; two real targets never share one.
      targets: of the bucket, [B, H, W]; unused ones come last.
      weights: of `focal` and `dice`, scalars.

    Returns:
      The weighted sum over each image's targets [L, B], and its parts by the keys of `weights`,
      [L, B], which are numbers to be shown: no gradient comes from them.
    """
    return _mask_losses(masks, query, targets, weights)[0]


def _mask_losses(masks: Array, query: Array, targets: Targets, weights: dict[str, Array]):
    """What `mask_losses` returns, and the gradient of its sum over layers and images."""
    layers, b, t = query.shape
    factor = targets.segments.shape[1] // masks.shape[3]
    targets = targets.in_phases(factor)
    size = min(GROUP, t) if factor > 1 else t  # at the masks' own resolution all fit at a time
    count = -(-t // size)
    most = jnp.sum(targets.real, axis=-1)  # [B]
    padded = jnp.pad(query, ((0, 0), (0, 0), (0, count * size - t)))
    groups = jnp.moveaxis(padded.reshape(layers, b, count, size), 2, 1).reshape(-1, b, size)

    def used(layer, first, query):
        chosen = jax.vmap(lambda mask, index: mask[index])(masks[layer], query)
        index = first + jnp.arange(size)
        target, counted = targets.masks(index)
        real = index[None] < most[:, None]

        def loss(chosen):
            large = upsample(chosen, factor)
            parts = {
                "focal": focal_loss(large, target, counted[:, None]),
                "dice": dice_loss(large, target, counted[:, None]),
            }
            parts = {
                key: weights[key] * jnp.sum(jnp.where(real, part, 0), axis=-1)
                for key, part in parts.items()
            }
            return jnp.sum(sum(parts.values())), parts

        gradient, parts = jax.grad(loss, has_aux=True)(chosen)
        return parts, gradient

    def unused(layer, first, query):
        return dict.fromkeys(weights, jnp.zeros(b)), jnp.zeros((b, size, *masks.shape[3:]))

    def group(operands):
        return jax.lax.cond(operands[1] < jnp.max(most), used, unused, *operands)

    layer, first = (x.ravel() for x in np.indices((layers, count)))
    parts, gradient = jax.lax.map(group, (layer, size * first, groups))
    parts = {key: jnp.sum(part.reshape(layers, count, b), axis=1) for key, part in parts.items()}

    def place(query, gradient):
        return jnp.zeros(masks.shape[2:]).at[query].add(gradient)

    gradient = jnp.moveaxis(gradient.reshape(layers, count, b, size, *masks.shape[3:]), 1, 2)
    gradient = gradient.reshape(layers, b, -1, *masks.shape[3:])
    return (sum(parts.values()), parts), jax.vmap(jax.vmap(place))(padded, gradient)


def _scaled(gradient: Array, cotangents):
    return gradient * cotangents[0][..., None, None, None], None, None, None


mask_losses.defvjp(_mask_losses, _scaled)


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

    Matching runs first, without gradient and in one callback for all layers.

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

    if loss.resolution == "quarter":
        targets = targets.at_stride(targets.segments.shape[1] // masks.shape[3])
    shares = {key: loss[key] / denominators["masks"] for key in ("focal", "dice")}
    names = valid[bucket["dataset"]]

    outlines, parts = mask_losses(masks, query, targets, shares)
    classification = jax.vmap(
        lambda logits, query: contrastive_loss(
            logits, query, targets.classes, valid=names, no_object=loss.no_object
        )
    )(logits, query)
    classification *= loss.classification / denominators["weights"]
    whole = classification + outlines  # [L, B]
    total = jnp.sum(whole)
    parts |= {"classification": classification}
    parts = {key: jnp.sum(value) for key, value in parts.items()}
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
