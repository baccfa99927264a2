"""Where arrays live: the device mesh, shardings of batches and states, host-to-global arrays."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmseg_jax.errors import UserError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)  # the leading axis of every batch array, over all devices
SMALLEST = 2**16  # elements; splitting less costs more in messages than it saves in memory


def make_mesh(
    data: int, fsdp: int, *, multiple: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh ("data", "fsdp") over the first data * fsdp devices of the run.

    Args:
      data: devices of the data axis; -1 = all that fsdp leaves.
      fsdp: devices over which parameters are split.
      multiple: every bucket holds a multiple of this many images, so the devices must divide it.
      devices: None = those of the run.

    Raises:
      UserError: the devices are not there, leave a process idle, or do not divide `multiple`.
    """
    devices = jax.devices() if devices is None else devices
    there = f"{len(devices)} {devices[0].platform} devices"
    if fsdp < 1 or (data < 1 and data != -1):
        raise UserError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp}: sizes are 1 or more (data: or -1)"
        )
    if data == -1:
        data = len(devices) // fsdp
    used = data * fsdp
    if used == 0 or used > len(devices):
        raise UserError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp}: needs {max(used, fsdp)} devices,"
            f" there are {there}; lower them"
        )
    if multiple % used:
        sizes = [n for n in range(1, len(devices) // fsdp + 1) if multiple % (n * fsdp) == 0]
        fits = f"mesh.data in {sizes}" if sizes else "mesh.fsdp = 1"
        raise UserError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp}: {used} devices do not divide"
            f" batching.multiple = {multiple}; what fits: {fits},"
            f" or batching.multiple = {math.lcm(multiple, used)}"
        )
    if jax.process_count() > 1 and used < len(devices):
        raise UserError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp}: {used} of {there} would leave processes"
            " without work; a run of several processes uses every device"
        )
    return jax.make_mesh(
        (data, fsdp), AXES, devices=devices[:used], axis_types=(AxisType.Auto,) * len(AXES)
    )


def local_mesh() -> Mesh:
    """A mesh of the same axes over this process's own devices, for work that is not shared."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES)
    )


def batch_to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, split over all devices, from the images that this process holds.

    Args:
      batch: arrays [B / processes, ...]; the process's own share in the order of its devices.
      mesh: where they go.

    Returns:
      The same names with arrays [B, ...] sharded by `BATCH`.
    """
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How one array of the state is split over `fsdp` devices.

    The largest axis that `fsdp` divides is split, the last one among equals. Arrays below
    `SMALLEST` elements, and those that no axis fits, are replicated.

    Args:
      shape: of the array.
      fsdp: size of the mesh axis.
    """
    if fsdp == 1 or math.prod(shape) < SMALLEST:
        return PartitionSpec()
    fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not fitting:
        return PartitionSpec()
    chosen = max(fitting, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * chosen, "fsdp")


def state_shardings(abstract_tree, mesh: Mesh):
    """A NamedSharding for each leaf of a tree of arrays or ShapeDtypeStructs; same structure."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, fsdp)), abstract_tree
    )
