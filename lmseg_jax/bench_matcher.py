"""Times the assignment of queries to targets by SciPy on the host and by optax on the device."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmseg_jax import matcher
from lmseg_jax.errors import UserError

SIDES = ("host", "device")
CLASSES, APART = 5, 0.1  # of the targets of an image; how far those of a class differ
ROUNDING = 1e-5  # of a total cost, by which both may differ


def hard_costs(shape: tuple[int, int, int, int]) -> np.ndarray:
    """Costs as an untrained decoder gives them: all targets of a class want the same queries.

    Independent ones take SciPy a quarter to half of the time, as hardly any two targets compete.

    Args:
      shape: L, B, Q, T, that of the f32 result.
    """
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(*shape[:3], CLASSES))
    classes = rng.integers(0, CLASSES, (*shape[:2], 1, shape[3]))
    cost = np.take_along_axis(wanted, classes, axis=3) + APART * rng.normal(size=shape)
    return cost.astype(np.float32)


def total_cost(cost: np.ndarray, query: np.ndarray, real: int) -> np.ndarray:
    """f64 [L, B] of `cost` [L, B, Q, T] and `query` [L, B, T], whose first `real` targets count.

    Raises:
      UserError: two of them share a query.
    """
    query = query[..., :real]
    if np.any(np.diff(np.sort(query), axis=-1) == 0):
        raise UserError("two targets share a query; this is a mistake of the matcher")
    chosen = np.take_along_axis(cost[..., :real], query[:, :, None], axis=2)
    return np.sum(chosen, axis=(2, 3), dtype=np.float64)


def measure(*, batch: int, queries: int, targets: int, slots: int, layers: int, runs: int) -> dict:
    """Everything that `table` prints, as JSON.

    A run is one call of `matcher.assign` for all layers and images by one side and then by the
    other, which begins every second time; compilation and a first call are not timed.

    Args:
      batch: images.
      queries: of an image.
      targets: real ones of each image, at most `slots`.
      slots: T, at most `queries`; the host leaves out those without a target.
      layers: of the decoder.
      runs: how many.

    Raises:
      UserError: the sides' assignments differ in total cost by more than rounding.
    """
    cost = hard_costs((layers, batch, queries, slots))
    arguments = (jnp.asarray(cost), jnp.full(batch, targets, jnp.int32))
    programs = {side: jax.jit(functools.partial(matcher.assign, where=side)) for side in SIDES}
    host, device = (
        total_cost(cost, np.asarray(program(*arguments)), targets) for program in programs.values()
    )
    if not np.allclose(host, device, rtol=ROUNDING, atol=ROUNDING * targets):
        apart = np.abs(host - device).max()
        raise UserError(f"total costs differ by up to {apart:g}; this is a mistake of the matcher")
    times = {side: [] for side in SIDES}
    for run in range(runs):
        for side in SIDES if run % 2 == 0 else reversed(SIDES):
            began = time.perf_counter()
            programs[side](*arguments).block_until_ready()
            times[side].append(time.perf_counter() - began)
    ratios = [host / device for host, device in zip(*times.values(), strict=True)]
    return {
        "device": jax.devices()[0].device_kind,
        "batch": batch,
        "queries": queries,
        "targets": targets,
        "slots": slots,
        "layers": layers,
        "runs": runs,
        "times_s": times,
        **{f"{side}_s": statistics.median(found) for side, found in times.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def table(found: dict) -> str:
    """What was measured, for a person."""
    lines = [
        f"{found['layers']} layers x {found['batch']} images, {found['targets']} targets in "
        f"{found['slots']} slots, {found['queries']} queries, hard costs, on {found['device']}; "
        f"medians of {found['runs']} alternating runs",
    ]
    for side, name in zip(SIDES, ("host, SciPy", "device, optax"), strict=True):
        times = found["times_s"][side]
        lines.append(
            f"  {name:14} {1000 * found[f'{side}_s']:8.1f} ms, "
            f"{1000 * min(times):.1f} to {1000 * max(times):.1f}"
        )
    lines.append(f"  {'host / device':14} {found['ratio']:8.3f}, median of the runs' ratios")
    return "\n".join(lines) + "\nboth find the same total cost of each image and layer"
