import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from lmseg_jax import configuration, flops, plan, programs, sharding
from lmseg_jax.datasets.card import load_card
from lmseg_jax.errors import UserError
from lmseg_jax.programs import Program
from tests.tiny import tiny_config

SQUARE, WIDE = 2 * 4 * 96 * 96 * 5, 2 * 4 * 96 * 128 * 5  # of the stand-ins below


def stand_ins(config, cards, mesh, *, buckets):
    """Small programs under the names of an update's: a product of each pixel with five numbers."""
    rows = NamedSharding(mesh, sharding.BATCH)

    def gradient(x):
        return jnp.sum(x[..., None] @ jnp.ones((1, 5)), axis=0)

    def program(name, shape, shared):
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        jitted = jax.jit(gradient, out_shardings=sharding.replicated(mesh))
        return Program(name, jitted, (x,), flops.count(gradient, x), shared)

    gradients = [program("gradient " + "x".join(map(str, shape)), shape, True) for shape in buckets]
    names = ("denominators", "text", "add", "update")
    others = [program(name, (4, 1, 1), False) for name in names]  # 40 operations each
    return [*others[:2], *gradients, *others[2:]]


@pytest.fixture(scope="module")
def found():
    config = tiny_config()
    config.data.train = ("world_patterns", "world_colors")
    config.batching.batch = config.batching.multiple = 4
    config.batching.weights = (3, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "of_update", stand_ins)
        return plan.measure(config, sharding.make_mesh(2, 1, multiple=4)) | {"compiler": "CPU's"}


def test_the_mean_update_weighs_each_gradient_program_by_its_share(found):
    # an update is one piece here, so there is nothing to add
    assert found["flops"] == 0.75 * SQUARE + 0.25 * WIDE + 3 * 40
    assert found["flops_a_device"] == (0.75 * SQUARE + 0.25 * WIDE) / 2 + 3 * 40


def test_a_device_holds_its_share_of_the_images(found):
    gradient = next(row for row in found["programs"] if row["name"] == "gradient 4x96x96")
    assert gradient["flops_a_device"] == SQUARE // 2
    assert gradient["argument_bytes"] == 2 * 96 * 96 * 4  # two of four images
    assert gradient["message_bytes"] == 96 * 96 * 5 * 4  # the sum over both devices


def test_the_plan_of_batches_needs_no_data():
    config = tiny_config()
    config.data.train = ("cityscapes", "coco_panoptic")
    config.batching.batch = config.batching.multiple = 4
    cards = [load_card(name) for name in config.data.train]
    names, batches = plan.batch_plan(config, cards)
    assert names == ["cityscapes", "coco_panoptic/landscape", "coco_panoptic/portrait"]
    assert batches.shapes == [(512, 1024), (800, 1344), (1344, 800)]
    assert batches.shares.tolist() == [0.5, 0.25, 0.25]


def test_padding_is_told_of_images_that_no_crop_cuts_to_one_shape(found):
    config = tiny_config()
    config.data.train = ("cityscapes", "coco_panoptic")
    cards = [load_card(name) for name in config.data.train]
    shares = plan.padding_of(config, cards)
    assert set(shares) == {"coco_panoptic/landscape", "coco_panoptic/portrait"}
    # short sides 480 to 800 on 800x1344: at most 1 - 480 x 640 / (800 x 1344), at least that of
    # the largest, 800x1067
    assert all(20.6 < share < 71.5 for share in shares.values())
    told = plan.table(found | {"padding": {"coco/landscape": 41.2, "coco/portrait": 38.9}})
    assert "41 % of coco/landscape is padding, if its images are 640x480" in told
    assert "39 % of coco/portrait is padding, if its images are 480x640" in told


def test_a_prediction_is_arithmetic_over_peak():
    found = {"flops_a_device": 2e12, "batch": 16}
    predicted = plan.predict(found, peak=10, efficiency=0.5)
    assert predicted["seconds"] == pytest.approx(0.4)
    assert predicted["images_a_second"] == pytest.approx(40)


def test_the_table_names_devices_programs_and_messages(found):
    told = plan.table(found | {"predicted": plan.predict(found, peak=1, efficiency=0.5)})
    assert told.startswith("2 devices (2 data x 1 fsdp); 4 images an update")
    told_of = ("world_patterns", "gradient 4x96x128", "x all-reduce f32", "50% of 1 TFLOP/s")
    once = "(text and update, which each computes whole, counted once), 0.00 on each"
    for words in (*told_of, "as the CPU's plans it", "temporaries MiB", once):
        assert words in told


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys, found):
    monkeypatch.setattr(plan, "measure", lambda config, mesh: dict(found))
    path = tmp_path / "plan.json"
    arguments = ["--config", "demo", "--devices", "8", "--peak", "1", "--json", str(path)]
    batching = ["--config.batching.batch=24", "--config.batching.multiple=8"]
    assert plan.main([*arguments, *batching]) == 0
    assert "an update:" in capsys.readouterr().out
    assert json.loads(path.read_text())["predicted"]["peak"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "0"], "--devices is 0; expected 1 to"),
        (["--efficiency", "2"], "--efficiency is 2.0"),
        (["--peak", "0"], "--peak is 0.0; expected more than 0"),
        (["--peak", "-197"], "--peak is -197.0; expected more than 0"),
        (["--colour"], "--colour: no such flag"),
        (["--topology", "v5e:2x4"], "pip install 'jax[tpu]'"),
    ],
)
def test_a_wrong_flag_is_named(arguments, words, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no TPU plugin")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(UserError) as error:
        plan.main(["--config", "demo", *arguments])
    assert words in str(error.value)


def test_a_topology_says_how_many_devices(capsys):
    with pytest.raises(SystemExit) as ended:
        plan.main(["--config", "demo", "--topology", "v5e:2x4", "--devices", "1"])
    assert ended.value.code == 2
    assert "--devices: not allowed with argument --topology" in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_names_what_does():
    with pytest.raises(UserError, match="batching.multiple = 4"):
        plan.main(["--config", "demo", "--devices", "8", "--config.batching.multiple=4"])


def test_pixels_of_an_update_are_those_of_its_crops():
    config = configuration.load("demo")  # four images of each world
    areas = [math.prod(load_card(name).train.crop) for name in config.data.train]
    assert plan.update_pixels(config) == 4 * sum(areas)
    config = configuration.load("camvid_facade", ["--config.batching.weights=1,3"])
    assert plan.update_pixels(config) == 8 * 192 * 256
