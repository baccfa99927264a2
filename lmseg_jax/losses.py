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
GROUP = 3  # targets of an image whose full-resolution masks live at a time


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
        """Targets `index` and what is counted, bool [B, n, H, W] and [B, 1, H, W]."""
        return self.segments[:, None] == index[None, :, None, None], self.counted[:, None]


def targets_of(bucket: dict[str, Array], *, unlabelled: str) -> Targets:
    """Targets of a Batch; `unlabelled` pixels are "excluded" or "negative" for every mask."""
    segments = bucket["segments"].astype(jnp.int32)
    counted = segments >= 0 if unlabelled == "excluded" else jnp.ones_like(segments, bool)
    return Targets(bucket["classes"], segments, counted)


def logistic(x: Array) -> tuple[Array, Array]:
    """sigmoid(x) and softplus(x), of one exponential and one logarithm."""
    power = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1, power) / (1 + power), jnp.maximum(x, 0) + jnp.log1p(power)


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
    truth = (target & counted).astype(jnp.float32).reshape(b, t, -1)  # [B, T, P]
    pixels = counted.astype(jnp.float32).reshape(b, 1, -1)
    sizes = jnp.sum(truth, axis=-1)[:, None]  # [B, 1, T]

    probability = jax.nn.softmax(logits, axis=-1)
    asked = jnp.maximum(targets.classes, 0)[:, None, :]
    label = jnp.take_along_axis(
        probability, jnp.broadcast_to(asked, (b, logits.shape[1], t)), axis=2
    )

    def over(values, regions):
        """Sums over regions, of products with them: [B, Q, P], [B, R, P] -> [B, Q, R]."""
        return jnp.einsum("bqp,brp->bqr", values, regions, precision="highest")

    x = masks.reshape(b, masks.shape[1], -1)  # [B, Q, P]
    p, as_zero = logistic(x)
    negative = (1 - ALPHA) * p**GAMMA * as_zero
    positive = ALPHA * (1 - p) ** GAMMA * (as_zero - x)
    focal = over(positive - negative, truth) + over(negative, pixels)
    focal = focal / jnp.maximum(jnp.sum(pixels, axis=-1), 1)[..., None]

    inside = over(p, jnp.concatenate([truth, pixels], axis=1))
    overlap, size = inside[..., :-1], inside[..., -1:]
    dice = 1 - (2 * overlap + 1) / (size + sizes + 1)
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


def outline_losses(
    x: Array, target: Array, counted: Array, *, sizes: Array, weights: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    """Focal and dice losses of masks, and the gradient of their sum, all of one exponential.

    With z the logit of a pixel's right answer, x in the target and -x elsewhere, and
    w = sigmoid(-z) what is missing there:

      focal = mean of alpha w^gamma softplus(-z),
        its derivative in z -alpha w^gamma (gamma (1 - w) softplus(-z) + w) a pixel;
      dice = 1 - (2 |p t| + 1) / (|p| + |t| + 1), where p = sigmoid(x) is 1 - w in the target and
        w elsewhere, its derivative in x w (1 - w) d, with d its derivative in p.

    Means and sums run over counted pixels; alpha is ALPHA in the target and 1 - ALPHA elsewhere.

    Args:
      x: f32 [B, n, H, W], before the sigmoid.
      target: bool [B, n, H, W].
      counted: bool [B, 1, H, W], False where a pixel is left out.
      sizes: f32 [B, n], counted pixels of each target.
      weights: of `focal` and `dice`, [B, n].

    Returns:
      Losses times their weights, [B, n] by the keys of `weights`, and the gradient [B, n, H, W].

    Source: LMSeg Eq. 3; Lin et al., 2017; V-Net (Milletari et al., 2016).
    """

    def total(values):
        return jnp.sum(values, (-2, -1))

    share = weights["focal"] / jnp.maximum(total(counted.astype(jnp.float32)), 1)
    power = jnp.exp(-jnp.abs(x))
    right = jnp.where(target, x, -x)
    missing = jnp.where(right >= 0, power, 1) / (1 + power)
    surprise = jnp.maximum(-right, 0) + jnp.log1p(power)
    wrong = jnp.where(counted, missing, 0)
    alpha = jnp.where(target, ALPHA, 1 - ALPHA)
    missed = total(jnp.where(target, wrong, 0))
    overlap, false = sizes - missed, total(wrong) - missed
    sum_of_sizes = overlap + false + sizes + 1
    found = {
        "focal": share * total(alpha * missing ** (GAMMA - 1) * wrong * surprise),
        "dice": weights["dice"] * (1 - (2 * overlap + 1) / sum_of_sizes),
    }

    def everywhere(values):
        return values[..., None, None]

    outside = weights["dice"] * (2 * overlap + 1) / sum_of_sizes**2
    inside = outside - weights["dice"] * 2 / sum_of_sizes
    slope = wrong * (1 - missing)
    pull = everywhere(share) * (wrong * missing ** (GAMMA - 1))
    pull *= GAMMA * (1 - missing) * surprise + missing
    gradient = jnp.where(
        target,
        slope * everywhere(inside) - ALPHA * pull,
        slope * everywhere(outside) + (1 - ALPHA) * pull,
    )
    return found, gradient


@jax.custom_vjp
def mask_losses(
    masks: Array, query: Array, targets: Targets, weights: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Losses of each image's targets in each layer, upsampled to the size of the targets.

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
      [L, B], which are numbers to be shown: no gradient comes from them. See `outline_losses`.
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

    def pixels(first):
        target, counted = targets.masks(first + jnp.arange(size))
        return jnp.sum(target & counted, (-2, -1)).astype(jnp.float32)

    sizes = jax.lax.map(pixels, size * jnp.arange(count))  # [count, B, size]

    def used(layer, number, query):
        chosen = jax.vmap(lambda mask, index: mask[index])(masks[layer], query)
        index = size * number + jnp.arange(size)
        target, counted = targets.masks(index)
        real = index[None] < most[:, None]
        large, smaller = jax.vjp(lambda x: upsample(x, factor), chosen)
        parts, gradient = outline_losses(
            large,
            target,
            counted,
            sizes=sizes[number],
            weights={key: jnp.where(real, weight, 0) for key, weight in weights.items()},
        )
        return {key: jnp.sum(part, axis=-1) for key, part in parts.items()}, smaller(gradient)[0]

    def unused(layer, number, query):
        return dict.fromkeys(weights, jnp.zeros(b)), jnp.zeros((b, size, *masks.shape[3:]))

    def group(operands):
        return jax.lax.cond(size * operands[1] < jnp.max(most), used, unused, *operands)

    layer, number = (x.ravel() for x in np.indices((layers, count)))
    parts, gradient = jax.lax.map(group, (layer, number, groups))
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
