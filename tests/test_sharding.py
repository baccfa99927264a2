import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lmseg_jax import sharding
from lmseg_jax.errors import UserError


def test_minus_one_takes_what_fsdp_leaves():
    mesh = sharding.make_mesh(-1, 2, multiple=8)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_a_smaller_mesh_takes_the_first_devices():
    mesh = sharding.make_mesh(2, 1, multiple=2)
    assert mesh.devices.ravel().tolist() == jax.devices()[:2]


def test_devices_that_do_not_divide_multiple_are_an_error_that_names_what_fits():
    with pytest.raises(UserError) as caught:
        sharding.make_mesh(-1, 1, multiple=12)
    message = str(caught.value)
    assert "mesh.data = 8" in message and "batching.multiple = 12" in message
    assert "[1, 2, 3, 4, 6]" in message and "batching.multiple = 24" in message
    assert "\n" not in message


def test_an_fsdp_that_fits_no_data_size_is_named():
    with pytest.raises(UserError, match="what fits: mesh.fsdp = 1"):
        sharding.make_mesh(1, 4, multiple=6)


@pytest.mark.parametrize(("data", "fsdp"), [(16, 1), (-1, 9), (4, 4)])
def test_a_mesh_of_devices_that_are_not_there_is_an_error(data, fsdp):
    with pytest.raises(UserError, match="there are 8 cpu devices"):
        sharding.make_mesh(data, fsdp, multiple=144)


@pytest.mark.parametrize(("data", "fsdp"), [(0, 1), (-2, 1), (1, 0)])
def test_sizes_below_one_are_an_error(data, fsdp):
    with pytest.raises(UserError, match="sizes are 1 or more"):
        sharding.make_mesh(data, fsdp, multiple=1)


@pytest.mark.parametrize(("data", "fsdp"), [(4, 1), (2, 2)])
def test_a_batch_is_split_over_both_axes_in_order(data, fsdp):
    mesh = sharding.make_mesh(data, fsdp, multiple=4)
    image = np.arange(4 * 3, dtype=np.uint8).reshape(4, 3)
    batch = sharding.batch_to_global({"image": image, "dataset": np.arange(4)}, mesh)
    assert batch["image"].dtype == jnp.uint8
    shards = sorted(batch["image"].addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.shape for shard in shards] == [(1, 3)] * 4
    for row, shard in zip(image, shards, strict=True):
        np.testing.assert_array_equal(shard.data[0], row)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((256, 1024), PartitionSpec(None, "fsdp")),
        ((1024, 256), PartitionSpec("fsdp")),
        ((3, 3, 256, 256), PartitionSpec(None, None, None, "fsdp")),
        ((333, 512), PartitionSpec(None, "fsdp")),
        ((333, 333), PartitionSpec()),
        ((2048,), PartitionSpec()),
    ],
)
def test_the_largest_axis_that_fits_is_split(shape, expected):
    assert sharding.parameter_spec(shape, 4) == expected


def test_one_fsdp_device_replicates_everything():
    assert sharding.parameter_spec((1024, 1024), 1) == PartitionSpec()


def test_states_are_placed_by_shape():
    mesh = sharding.make_mesh(4, 2, multiple=8)
    tree = {
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "params": [{"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32)}],
    }
    placed = sharding.state_shardings(tree, mesh)
    assert placed["step"] == sharding.replicated(mesh)
    assert placed["params"][0]["kernel"].spec == PartitionSpec("fsdp")
    array = jax.device_put(jnp.zeros((512, 256)), placed["params"][0]["kernel"])
    assert array.addressable_shards[0].data.shape == (256, 256)
