"""What the compiled programs of an update exchange, and what they take."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmseg_jax import assembly, matcher, programs, sharding, state
from lmseg_jax.models import lmseg
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def config():
    config = tiny_config()
    config.data.train = ("world_patterns", "world_colors")
    config.batching.batch = config.batching.multiple = 8
    config.matcher.where = "host"  # of the device's matcher, loops are exchanged
    return config


IMAGES, ROWS, COLUMNS, TARGETS, QUERIES = 11, 7, 13, 17, 19  # of a device; of res5; of an image


@pytest.fixture(scope="module")
def prime(config):
    """With counts of images, pixels, targets and queries whose primes divide no parameter."""
    config = config.copy_and_resolve_references()
    config.batching.batch = 8 * IMAGES
    config.data.max_targets, config.model.queries = TARGETS, QUERIES
    return config


def on_mesh(config, *, data, fsdp, buckets):
    """{name: program}, on eight devices."""
    mesh = sharding.make_mesh(data, fsdp, multiple=8)
    found = programs.of_update(config, assembly.load_cards(config), mesh, buckets=buckets)
    return {program.name: program for program in found}


def sides(shape):
    """(2, 3) of "f32[2,3]"."""
    return [int(side) for side in shape[:-1].split("[")[1].split(",") if side]


def first_queries(cost, count, *, where, mesh):
    """Stands for the matcher in a program that the compilation cache keeps: target i, query i."""
    layers, images, _, targets = cost.shape
    return jnp.broadcast_to(jnp.arange(targets), (layers, images, targets))


@pytest.mark.parametrize(("data", "fsdp", "matched"), [(2, 4, True), (4, 2, False), (8, 1, False)])
def test_devices_exchange_gradients_parameters_and_scalars_only(
    prime, monkeypatch, data, fsdp, matched
):
    monkeypatch.setattr(sharding, "SMALLEST", 2**10)
    if not matched:
        monkeypatch.setattr(matcher, "assign", first_queries)
    bucket = (8 * IMAGES, 32 * ROWS, 32 * COLUMNS)
    *_, gradient, _, _ = on_mesh(prime, data=data, fsdp=fsdp, buckets=[bucket]).values()
    params, _ = jax.eval_shape(lambda: state.weights(prime.model, 0))
    allowed = {(), (2, 10, prime.model.width)}  # the text: two datasets, at most ten names
    allowed |= {(2,), (prime.model.decoder.layers,)}  # the loss of each dataset and layer
    for leaf in jax.tree.leaves(params):
        allowed |= {leaf.shape, leaf.shape[2:]}  # a 3x3 kernel is reduced place by place
    for count in (IMAGES, ROWS, COLUMNS, TARGETS, QUERIES):  # else a gathered operand could pass
        known = {shape for shape in allowed if np.prod(shape, dtype=int) % count == 0}
        assert known == ({(QUERIES, prime.model.width)} if count == QUERIES else set())
    allowed = {tuple(sorted(shape)) for shape in allowed}  # a compiler may transpose
    messages = programs.collectives(gradient.compile())
    found = {tuple(sorted(sides(message.shape))) for message in messages}
    assert found <= allowed
    kinds = {"all-reduce", "all-gather"} if fsdp > 1 else {"all-reduce"}
    assert {message.kind for message in messages} == kinds
    total = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4
    sums = [message.bytes for message in messages if message.kind == "all-reduce"]
    assert total <= sum(sums) < 1.1 * total  # every gradient once, and little else


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), (8, 1)])
def test_beside_gradients_devices_exchange_split_text_weights_counts_and_norms_only(
    prime, monkeypatch, data, fsdp
):
    monkeypatch.setattr(sharding, "SMALLEST", 2**10)
    prime = prime.copy_and_resolve_references()
    prime.model.decoder.layers = 1
    found = {
        name: {(message.kind, message.shape) for message in programs.collectives(one.compile())}
        for name, one in on_mesh(prime, data=data, fsdp=fsdp, buckets=[]).items()
    }
    text = [
        leaf.shape
        for tree in jax.eval_shape(lambda: state.weights(prime.model, 0))
        for part in lmseg.TEXT_PARTS
        for leaf in jax.tree.leaves(tree.get(part, {}))
    ]
    split = {shape for shape in text if sharding.parameter_spec(shape, fsdp)}
    assert bool(split) == (fsdp > 1)
    weights = {("all-gather", f"f32[{','.join(map(str, shape))}]") for shape in split}
    assert found == {
        "denominators": {("all-reduce", "s32[]")},  # how many targets there are
        "text": weights,
        "add": set(),
        "update": weights | ({("all-reduce", "f32[]")} if split else set()),  # squared norms
    }


def test_messages_are_counted_with_their_bytes():
    mesh = sharding.make_mesh(4, 2, multiple=8)
    rows = NamedSharding(mesh, PartitionSpec(sharding.AXES))

    def mean(x):
        return jnp.sum(x, axis=0)

    x = jax.ShapeDtypeStruct((16, 6, 5), jnp.float32, sharding=rows)
    compiled = jax.jit(mean, out_shardings=sharding.replicated(mesh)).lower(x).compile()
    (message,) = programs.collectives(compiled)
    assert (message.kind, message.shape, message.count) == ("all-reduce", "f32[6,5]", 1)
    assert message.bytes == 4 * 6 * 5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("f32[6,5]{1,0} all-gather(%p), dimensions={0}", [("all-gather", "f32[6,5]")]),
        (
            "(f32[3,5]{1,0}, f32[6,5]{1,0:T(8,128)}) all-gather-start(%p), dimensions={0}",
            [("all-gather", "f32[6,5]")],
        ),
        (
            "(f32[2,3]{1,0}, f32[5,7]{1,0}) all-reduce-start(%p, %q), to_apply=%add",
            [("all-reduce", "f32[5,7]"), ("all-reduce", "f32[2,3]")],
        ),
        (
            "(f32[8,8]{1,0}, f32[8,8]{1,0}, u32[]{:S(2)}, u32[]) collective-permute-start(%p)",
            [("collective-permute", "f32[8,8]")],
        ),
        ("f32[6,5]{1,0} all-gather-done(%a)", []),
        ("f32[6,5]{1,0} add(%p, %q)", []),
    ],
)
def test_a_message_is_what_it_leaves_behind_whether_it_is_awaited_at_once_or_later(line, expected):
    compiled = types.SimpleNamespace(as_text=lambda: f"ENTRY %main {{\n  %x = {line}\n}}")
    found = programs.collectives(compiled)
    assert [(message.kind, message.shape) for message in found] == expected
    assert all(message.count == 1 for message in found)


@pytest.mark.parametrize(
    ("shape", "expected"), [("f32[2,3]", 24), ("bf16[7]", 14), ("pred[]", 1), ("s32[]", 4)]
)
def test_the_size_of_an_array_follows_from_its_type(shape, expected):
    assert programs.size(shape) == expected


def test_parameters_and_moments_are_split_over_fsdp(config, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 2**10)
    vocabulary = assembly.vocabulary_of(config, assembly.load_cards(config))
    whole, split = (
        assembly.abstract_state(
            config, sharding.make_mesh(1, fsdp, multiple=8), vocabulary=vocabulary
        )[0]
        for fsdp in (1, 8)
    )

    def on_one_device(tree):
        return sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((tree.params, tree.optimizer))
        )

    assert on_one_device(split) < 0.3 * on_one_device(whole)


def test_an_update_peaks_at_its_largest_bucket(config):
    config = config.copy_and_resolve_references()
    config.model.decoder.layers = 1
    config.loss.resolution, config.matcher.where = "quarter", "device"
    mesh = sharding.make_mesh(1, 1, multiple=8)
    cards = assembly.load_cards(config)
    found = programs.of_update(config, cards, mesh, buckets=[(2, 32, 32), (2, 64, 64)])
    compiled = {program.name: program.compile() for program in found}
    # without the step's option the CPU's compiler drops them, and remat with them
    assert "opt-barrier" in compiled["gradient 2x64x64"].as_text()
    memory = {name: program.memory_analysis() for name, program in compiled.items()}
    taken = {name: one.temp_size_in_bytes for name, one in memory.items()}
    assert taken.pop("gradient 2x64x64") > max(taken.values())  # the smaller one's, the text's, ...
    # all that stays from bucket to bucket are sums of one size, and adding to them is in place
    small, large = (memory[f"gradient 2x{side}x{side}"] for side in (32, 64))
    assert small.output_size_in_bytes == large.output_size_in_bytes
    new = memory["add"].output_size_in_bytes - memory["add"].alias_size_in_bytes
    assert new < 0.01 * large.output_size_in_bytes  # the addresses
    assert memory["add"].temp_size_in_bytes < 0.01 * large.output_size_in_bytes


def test_parameters_and_moments_are_changed_in_place(config):
    config = config.copy_and_resolve_references()
    config.data.train = ("world_patterns",)
    config.model.head, config.model.decoder.order = "linear", "visual"  # no text path
    mesh = sharding.make_mesh(1, 1, multiple=8)
    found = programs.of_update(config, assembly.load_cards(config), mesh, buckets=[])
    (update,) = [program for program in found if program.name == "update"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(update.arguments[0].params)) * 4
    compiled = update.compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * parameters
    # nothing is read after it was overwritten
    rng = np.random.default_rng(0)
    arguments = jax.tree.map(
        lambda x: jnp.asarray(rng.random(x.shape), x.dtype, copy=True), update.arguments
    )
    expected = jax.device_get(jax.jit(update.function.__wrapped__)(*arguments))
    found = jax.device_get(compiled(*arguments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
