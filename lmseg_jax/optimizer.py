"""AdamW as the paper uses it: poly schedule, global clip, slower backbone, no decay on norms."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

UNDECAYED = ("position", "embedding", "context", "temperature")  # of queries, prompt and head


def schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate of update t of T, 0-based.

    poly: rate (1 - t/T)^power; cosine: from rate to rate / 100. Both times min(1, (t+1)/warmup).
    """

    def rate(t):
        progress = jnp.clip(t / config.steps, 0.0, 1.0)
        if config.schedule == "poly":
            shape = (1 - progress) ** config.power
        else:
            shape = 0.01 + 0.99 * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.rate * shape * jnp.minimum(1.0, (t + 1) / max(config.warmup, 1))

    return rate


def names_of(path) -> tuple[str, ...]:
    """Path of a leaf in a nested dict as plain strings."""
    return tuple(str(getattr(entry, "key", entry)) for entry in path)


def decayed(path: tuple[str, ...]) -> bool:
    """True unless a parameter belongs to a norm or is in UNDECAYED."""
    return not any("norm" in name or name in UNDECAYED for name in path)


def rate_factor(path: tuple[str, ...], *, backbone_rate: float) -> float:
    """Share of the base learning rate that a parameter gets."""
    return backbone_rate if path[0] == "backbone" else 1.0


def scale_by_path(factor) -> optax.GradientTransformation:
    """Multiplies each leaf's update by `factor(path)`."""

    def update(updates, state, params=None):
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: factor(names_of(path)) * leaf, updates
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Gradients g times min(1, limit / |g|), |g| the norm of all of them.

    `optax.clip_by_global_norm` divides every element, which the CPU's compiler does once for all
    readers: a copy of the gradients, and two and a half times the time of an update of parameters.
    """

    def update(updates, state, params=None):
        del params
        return optax.tree.scale(jnp.minimum(1, limit / optax.tree.norm(updates)), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """clip(global norm) -> Adam -> decoupled decay -> per-group and scheduled rate.

    Args:
      config: `config.optimizer`.

    Source: LMSeg Sec. 4.1; MaskFormer's parameter groups.
    """
    return optax.chain(
        clip_by_norm(config.clip),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(
            config.decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(
                lambda path, _: decayed(names_of(path)), params
            ),
        ),
        scale_by_path(lambda path: rate_factor(path, backbone_rate=config.backbone_rate)),
        optax.scale_by_learning_rate(schedule(config)),
    )
