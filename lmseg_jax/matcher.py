"""Bipartite matching of queries to targets."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from optax.assignment import hungarian_algorithm
from scipy.optimize import linear_sum_assignment

TOO_EXPENSIVE = 1e6  # stands for a cost that is NaN or +inf; -inf becomes its negative


def finite(cost: Array) -> Array:
    """Replaces NaN and +inf by 1e6 and -inf by -1e6, beyond any real cost."""
    return jnp.nan_to_num(cost, nan=TOO_EXPENSIVE, posinf=TOO_EXPENSIVE, neginf=-TOO_EXPENSIVE)


def solve_on_host(cost: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Optimal query of each target by SciPy.

    Args:
      cost: f32 [L, B, Q, T], finite.
      count: int [B], real targets, the first of T; at most Q.

    Returns:
      int32 [L, B, T]; padding targets get query 0.
    """
    cost, count = np.asarray(cost), np.asarray(count)
    query = np.zeros((*cost.shape[:2], cost.shape[3]), np.int32)
    for layer in range(cost.shape[0]):
        for image, real in enumerate(count):
            rows, columns = linear_sum_assignment(cost[layer, image, :, :real].T)
            query[layer, image, rows] = columns
    return query


def solve_on_device(cost: Array, count: Array) -> Array:
    """The same optimum as `solve_on_host`, in JAX alone; slower, for backends without callbacks."""
    _, _, q, t = cost.shape
    real = jnp.arange(t)[None, :] < count[:, None]  # [B, T]
    cost = jnp.where(real[None, :, None, :], cost, 0)  # constant columns leave the optimum alone

    def one(matrix):
        rows, columns = hungarian_algorithm(matrix)  # [Q, T] with T <= Q
        return jnp.zeros(t, jnp.int32).at[columns].set(rows.astype(jnp.int32))

    query = jax.vmap(jax.vmap(one))(cost)
    return jnp.where(real[None], query, 0)


def assign(cost: Array, count: Array, *, where: str, mesh: Mesh | None = None) -> Array:
    """Best query of each target, with the least total cost an image and layer.

    Args:
      cost: f32 [L, B, Q, T], T <= Q; no gradient passes; non-finite values become +-1e6.
      count: int32 [B], real targets of each image.
      where: "host" (one SciPy callback a device) or "device" (optax).
      mesh: whose axes split B; the callback then runs once on each device's share.

    Returns:
      int32 [L, B, T], distinct queries for the real targets, 0 for padding.

    Source: LMSeg Sec. 3.3; DETR (Carion et al., 2020).
    """
    if cost.shape[3] > cost.shape[2]:
        raise ValueError(f"{cost.shape[3]} targets cannot share {cost.shape[2]} queries")
    cost = finite(jax.lax.stop_gradient(cost))
    if where == "device":
        return solve_on_device(cost, count)

    def share(cost, count):
        shape = jax.ShapeDtypeStruct((*cost.shape[:2], cost.shape[3]), jnp.int32)
        return jax.pure_callback(solve_on_host, shape, cost, count)

    if mesh is None:
        return share(cost, count)
    images = PartitionSpec(mesh.axis_names)
    layers_images = PartitionSpec(None, mesh.axis_names)
    return jax.shard_map(
        share, mesh=mesh, in_specs=(layers_images, images), out_specs=layers_images
    )(cost, count)
