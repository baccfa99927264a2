import json
import sys

import pytest

from lmseg_jax import configuration, configuration_rules
from lmseg_jax.configuration_rules import CHOICES
from lmseg_jax.datasets.card import load_card
from lmseg_jax.errors import UserError
from lmseg_jax.models.category_decoder import ORDERS, QUERIES
from lmseg_jax.models.heads import HEADS, SIMILARITIES, TEMPERATURES
from lmseg_jax.models.lmseg import BACKBONES, DTYPES, PIXELS, REMAT, STRIDES
from lmseg_jax.models.pixel_decoder import PIXEL_DECODERS
from lmseg_jax.pipeline.policies import DRAWN


def demo(*overrides):
    return configuration.load("demo", [f"--config.{text}" for text in overrides])


def write(folder, text, name="mine.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_shipped_config_is_loaded_by_name_and_passes_its_check():
    config = configuration.load("demo")
    configuration.check(config)
    assert config.model.decoder.layers == 3
    assert "demo" in configuration.shipped_configs()


def test_every_shipped_config_passes_its_check():
    without_data = {"base", "own_data", "finetune"}
    for name in set(configuration.shipped_configs()) - without_data:
        assert configuration.check(configuration.load(name)) is None, name


def test_own_data_trains_the_cards_after_the_colon():
    config = configuration.load("own_data:my/roads.toml,world_colors")
    configuration.check(config)
    assert config.data.train == ("my/roads.toml", "world_colors")
    with pytest.raises(UserError, match="data.train.*names no dataset card"):
        configuration.check(configuration.load("own_data"))


def test_a_config_in_any_folder_builds_on_the_shipped_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(
        tmp_path,
        "from configs import base\n"
        "def get_config(rate='2'):\n"
        "    config = base.get_config()\n"
        "    config.optimizer.rate = float(rate)\n"
        "    return config\n",
    )
    assert configuration.load(path).optimizer.rate == 2.0
    assert configuration.load("mine.py:0.5").optimizer.rate == 0.5


def test_a_project_with_its_own_configs_folder_is_served_first(tmp_path):
    code = "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'a': 1})"
    write(tmp_path, code, "configs/base.py")
    path = write(tmp_path, "from configs.base import get_config", "configs/mine.py")
    assert configuration.load(path).to_dict() == {"a": 1}
    assert configuration.load("base").seed == 0


def test_loading_leaves_no_import_behind():
    before = dict(sys.modules), list(sys.path)
    configuration.load("demo")
    assert (dict(sys.modules), list(sys.path)) == before


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.steps=10", lambda c: c.optimizer.steps == 10),
        ("optimizer.steps=160_000", lambda c: c.optimizer.steps == 160_000),
        ("optimizer.rate=1", lambda c: c.optimizer.rate == 1.0),
        ("evaluation.cross=false", lambda c: c.evaluation.cross is False),
        ("evaluation.cross=True", lambda c: c.evaluation.cross is True),
        ("evaluation.scales=0.5,1,1.5", lambda c: c.evaluation.scales == (0.5, 1, 1.5)),
        ("data.root=/a b/=c", lambda c: c.data.root == "/a b/=c"),
        ("data.train=('a', 'b')", lambda c: c.data.train == ("a", "b")),
        ("data.train=a,b", lambda c: c.data.train == ("a", "b")),
        ("data.train=cards/a.toml", lambda c: c.data.train == ("cards/a.toml",)),
        ("data.train=", lambda c: c.data.train == ()),
        ("batching.weights=0.5,2,1", lambda c: c.batching.weights == (0.5, 2, 1)),
        ("model.resnet.depths=[3,4,6,3]", lambda c: c.model.resnet.depths == (3, 4, 6, 3)),
    ],
)
def test_an_override_takes_the_type_of_its_key(override, read):
    assert read(demo(override))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.querys=1", "--config.model.querys: no such key; the nearest is --config.model.qu"),
        ("optimizer.steps=many", "--config.optimizer.steps=many: expects a whole number"),
        ("optimizer.steps=1.5", "expects a whole number"),
        ("optimizer.rate=fast", "--config.optimizer.rate=fast: expects a number"),
        ("evaluation.cross=maybe", "expects true or false"),
        ("data.train=('a'", "expects a list such as a,b"),
        ("model.decoder=3", "--config.model.decoder: is a section; set its keys, such as --conf"),
        ("seed", "--config.seed: no value; write --config.seed=VALUE"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError) as caught:
        demo(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loaded_config_is_locked():
    with pytest.raises(AttributeError):
        demo().model.quries = 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(): return 3", "returned int, not a ConfigDict"),
        ("x = ", "SyntaxError"),
        ("import configs.basis", "ModuleNotFoundError: No module named 'configs.basis'"),
        ("", "has no attribute 'get_config'"),
    ],
)
def test_a_config_that_fails_is_named(tmp_path, code, message):
    path = write(tmp_path, code)
    with pytest.raises(UserError) as caught:
        configuration.load(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", ["demoo", "no/such.py"])
def test_a_config_that_is_not_there_lists_the_shipped_ones(name):
    with pytest.raises(UserError, match=f"--config {name}: no such file; .*demo"):
        configuration.load(name)


IMPOSSIBLE = [
    ("mode=dance", "config.mode = 'dance': is not one of train, evaluate, pretrain, words"),
    ("seed=-1", "config.seed = -1: is below 0"),
    ("model.pixels=rgb", "config.model.pixels = 'rgb': is not one of clip, imagenet"),
    ("model.head=linear", "config.model.decoder.order = 'visual-text': config.model.head = "),
    ("model.pixel_decoder.mask_width=-1", "is below 0"),
    ("model.decoder.project=false", "config.model.decoder.project = False: pixel8 has 48"),
    ("model.dtype=float16", "is not one of float32, bfloat16"),
    ("model.remat=all", "is not one of none, blocks"),
    ("model.head=tail", "config.model.head = 'tail': is not one of text"),
    ("model.similarity=dot", "config.model.similarity = 'dot': is not one of cosine, raw"),
    ("model.decoder.queries=ones", "is not one of zeros, learned"),
    (
        "model.text.template=a photo",
        "config.model.text.template = 'a photo': has not one {name} in",
    ),
    ("model.text.template={name} {name}", "has not one {name} in it"),
    ("model.query_mlp=3", "--config.model.query_mlp=3: expects true or false"),
    ("data.names=second", "config.data.names = 'second': is not one of first, whole"),
    ("model.backbone=vit", "config.model.backbone = 'vit': is not one of clip_resnet"),
    ("model.resnet.norm=batch", "is not one of frozen, group"),
    ("model.decoder.order=text", "is not one of visual-text, text-visual, visual"),
    ("model.decoder.memory=res2", "is not one of res3, res4, res5, pixel8, pixel16"),
    ("optimizer.schedule=step", "is not one of poly, cosine"),
    ("data.on_error=ignore", "config.data.on_error = 'ignore': is not one of stop, skip"),
    ("loss.resolution=half", "is not one of full, quarter"),
    ("loss.unlabelled=maybe", "is not one of excluded, negative"),
    ("matcher.where=cloud", "is not one of host, device"),
    ("model.queries=11", "config.model.queries = 11: is below config.data.max_targets = 12"),
    ("batching.policy=random", "is not one of stratified, one_dataset, padded"),
    ("batching.batch=13", "config.batching.batch = 13: is no multiple of config.batching.multiple"),
    ("batching.micro=3", "config.batching.micro = 3: is no multiple of config.batching.multiple"),
    ("batching.weights=1,2", "config.batching.weights = (1, 2): has not one share for each of"),
    ("batching.weights=1,0,1", "has a share that is not above 0"),
    ("data.train=", "config.data.train = (): names no dataset card"),
    ("data.train=a,a", "is not a list of different cards"),
    ("data.train=(1,)", "is not a list of different cards"),
    ("model.decoder.heads=5", "config.model.width = 96: is no multiple of config.model.decoder.he"),
    ("model.text.heads=3", "config.model.text.width = 64: is no multiple of config.model.text.he"),
    ("model.width=98", "config.model.width = 98: is no multiple of 4"),
    ("model.resnet.depths=3,4,6", "is not four numbers of blocks"),
    ("model.decoder.dropout=1", "config.model.decoder.dropout = 1.0: is not in [0, 1)"),
    ("model.decoder.dropout=nan", "is not in [0, 1)"),
    ("optimizer.clip=0", "config.optimizer.clip = 0.0: is not above 0"),
    ("optimizer.rate=nan", "config.optimizer.rate = nan: is below 0"),
    ("evaluation.every=0", "config.evaluation.every = 0: is below 1"),
    ("evaluation.scales=0.5,0", "evaluation.scales = (0.5, 0): has a factor outside 0 to 4"),
    ("evaluation.scales=8,", "has a factor outside 0 to 4"),
    ("evaluation.scale=0", "evaluation.scale = 0.0: has a factor outside 0 to 4"),
    ("mesh.data=0", "config.mesh.data = 0: is neither -1 nor a number of devices"),
    ("mesh.data=4", "config.mesh.data = 4: mesh.data x mesh.fsdp devices do not divide"),
    ("mesh.fsdp=3", "config.mesh.fsdp = 3: mesh.data x mesh.fsdp devices do not divide"),
    (
        "pretrained.model=worlds",
        "config.pretrained.model = 'worlds' has an image encoder of its own beside"
        " config.pretrained.image = 'worlds-clip'; set --config.pretrained.image= to begin",
    ),
    (
        "pretrained.image=",
        "frozen norms need weights; set --config.pretrained.image=... or --config",
    ),
]


@pytest.mark.parametrize(("override", "message"), IMPOSSIBLE)
def test_an_impossible_value_is_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError) as caught:
        configuration.check(demo(override))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


HEADS_WITHOUT_TEXT = [
    (
        ("head=multi_head",),
        ("pretrained.text=worlds-clip",),
        "config.pretrained.text = 'worlds-clip'",
    ),
    (
        ("head=linear",),
        (),
        "config.data.train = ('world_patterns', 'world_colors', 'world_coarse')",
    ),
    (
        ("head=linear",),
        ("data.train=", "mode=evaluate", "data.evaluate=world_coarse,world_colors"),
        "config.data.evaluate = ('world_coarse', 'world_colors'): config.model.head = \"linear\"",
    ),
    (("head=manual_taxonomy",), ("data.evaluate=world_shapes",), "no classes for world_shapes"),
    (("head=multi_head", "resnet.affine=true"), ("pretrained.image=",), "is for frozen norms"),
]


@pytest.mark.parametrize(("model", "others", "message"), HEADS_WITHOUT_TEXT)
def test_a_head_without_text_is_told_what_does_not_fit(model, others, message):
    overrides = [f"model.{key}" for key in ("decoder.order=visual", *model)]
    overrides += ["pretrained.text=", *others]
    if "pretrained.image=" in others:
        overrides.append("model.resnet.norm=group")
    with pytest.raises(UserError) as caught:
        configuration.check(demo(*overrides))
    assert message in str(caught.value)


@pytest.mark.parametrize("head", ["multi_head", "manual_taxonomy"])
def test_a_head_without_text_trains_without_a_text_tower(head):
    overrides = [f"model.head={head}", "model.decoder.order=visual"]
    assert configuration.check(demo(*overrides, "pretrained.text=")) is None
    with pytest.raises(UserError, match="pretrained.text = 'worlds-clip': .* has no text tower"):
        configuration.check(demo(*overrides))


def test_a_key_that_a_config_file_invents_is_an_error(tmp_path):
    path = write(
        tmp_path,
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config()\n"
        "    config.model.quries = 3\n"
        "    return config\n",
    )
    with pytest.raises(UserError, match=r"config.model.quries: no such key; .* config.model.queri"):
        configuration.check(configuration.load(path))


def test_a_key_that_a_config_file_lacks_is_an_error(tmp_path):
    path = write(
        tmp_path,
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config()\n"
        "    del config.model.queries\n"
        "    return config\n",
    )
    with pytest.raises(UserError, match="config.model.queries: is missing"):
        configuration.check(configuration.load(path))


def test_a_value_of_another_type_is_an_error(tmp_path):
    path = write(
        tmp_path,
        "from configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config()\n"
        "    del config.seed\n"
        "    config.seed = '7'\n"
        "    return config\n",
    )
    with pytest.raises(UserError, match="config.seed = '7': is str, not int"):
        configuration.check(configuration.load(path))


@pytest.mark.parametrize("value", ["0.009", "1.5"])
def test_a_learned_temperature_starts_within_its_bounds(value):
    configuration.check(demo(f"model.temperature={value}"))
    with pytest.raises(UserError, match=r"model.temperature = .*: is not in \[0.01, 1.0\], where"):
        configuration.check(demo(f"model.temperature={value}", "model.temperature_learned=true"))


@pytest.mark.parametrize(
    "override",
    [
        "model.similarity=raw",
        "model.temperature_learned=true",
        "model.query_mlp=true",
        "model.adapter_norm=true",
    ],
)
def test_switches_of_the_text_head_are_for_it_only(override):
    other = ["model.head=multi_head", "model.decoder.order=visual", "pretrained.text="]
    configuration.check(demo(override))
    configuration.check(demo(*other))
    key = override.split("=")[0]
    with pytest.raises(UserError, match=f"{key} = .*: is for config.model.head = 'text' only"):
        configuration.check(demo(override, *other))


def test_known_names_are_those_that_the_model_has():
    assert set(CHOICES["batching.policy"]) == {"stratified", *DRAWN}
    assert set(CHOICES["model.similarity"]) == set(SIMILARITIES)
    assert set(CHOICES["model.decoder.queries"]) == set(QUERIES)
    assert configuration_rules.TEMPERATURES == TEMPERATURES
    assert set(CHOICES["model.backbone"]) == set(BACKBONES)
    assert set(CHOICES["model.dtype"]) == set(DTYPES)
    assert set(CHOICES["model.remat"]) == set(REMAT)
    assert set(CHOICES["model.head"]) == set(HEADS)
    assert set(CHOICES["model.pixels"]) == set(PIXELS)
    assert set(CHOICES["model.decoder.order"]) == set(ORDERS)
    assert set(CHOICES["model.decoder.memory"]) == set(STRIDES)
    assert set(CHOICES["model.pixel_decoder.name"]) == set(PIXEL_DECODERS)


def test_a_command_line_is_read_in_one_place():
    options = configuration.parse(
        ["--config", "demo", "--workdir", "runs/x", "--config.seed=3", "--debug"]
    )
    assert options.config.seed == 3
    assert str(options.workdir) == "runs/x"
    assert options.debug and not options.distributed


def test_a_cluster_is_joined_by_flags_or_environment(monkeypatch):
    argv = ["--config=demo", "--workdir=x"]
    by_flags = configuration.parse([*argv, "--coordinator=h:1", "--processes=2", "--process=1"])
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    by_environment = configuration.parse(argv)
    for options in (by_flags, by_environment):
        assert options.distributed
        assert (options.coordinator, options.processes, options.process) == ("h:1", 2, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=x"], "required: --config"),
        (["--config=demo"], "required: --workdir"),
        (["--config=demo", "--workdir=gs://b/x"], "gs://b/x: no address; mount it and name the"),
        (["--config=demo", "--workdir=x", "--sed=1"], "--sed=1: no such flag"),
        (["--config=demo", "--workdir=x", "--coordinator=h:1"], "needs --processes and --process"),
        (["--config=demo", "--workdir=x", "--heartbeat=0"], "--heartbeat 0: is below 1 second"),
    ],
)
def test_a_wrong_command_line_is_an_error(argv, message):
    with pytest.raises(UserError, match=message):
        configuration.parse(argv)


CARDS = ("world_patterns", "world_colors", "world_coarse")


def fingerprint(*overrides, files=(("a", 3),), cards=CARDS):
    cards = [load_card(name) for name in cards]
    return configuration.fingerprint(demo(*overrides), cards, {"world_colors/train": list(files)})


@pytest.mark.parametrize(
    "override",
    [
        "data.root=/elsewhere",
        "data.workers=3",
        "data.threads=9",
        "data.on_error=skip",
        "data.evaluate_limit=5",
        "mesh.cpu_devices=1",
        "log.every=7",
        "evaluation.every=3",
        "checkpoint.keep=9",
        "mode=evaluate",
        "model.manual.restrict=false",
        "model.remat=blocks",
    ],
)
def test_where_and_how_fast_leave_the_fingerprint_alone(override):
    assert fingerprint(override) == fingerprint()


def test_a_fingerprint_survives_json():
    assert json.loads(json.dumps(fingerprint())) == fingerprint()


def test_differences_name_key_and_both_values():
    found = configuration.differences(
        fingerprint("optimizer.rate=0.0001"), fingerprint("optimizer.rate=0.001", "seed=1")
    )
    assert found == [
        "optimizer.rate: 0.0001 in the workdir, 0.001 asked for",
        "seed: 0 in the workdir, 1 asked for",
    ]


def test_equal_fingerprints_have_no_differences():
    assert configuration.differences(fingerprint(), fingerprint()) == []


def test_a_workdir_from_before_a_key_goes_on_unless_the_key_says_otherwise():
    old = {key: value for key, value in fingerprint().items() if key not in configuration.BEFORE}
    assert configuration.differences(old, fingerprint()) == []
    assert configuration.differences(old, fingerprint("model.similarity=raw")) == [
        "model.similarity: cosine in the workdir, raw asked for"
    ]
    base = configuration.flat(configuration.load("base"))
    assert configuration.BEFORE.items() <= base.items()


def test_other_files_and_other_cards_are_differences():
    (line,) = configuration.differences(fingerprint(), fingerprint(files=[("a", 4)]))
    assert line.startswith("files of world_colors/train: 1 files, ")
    names = {
        line.split(":")[0]
        for line in configuration.differences(fingerprint(), fingerprint(cards=CARDS[:2]))
    }
    assert names == {"data.train", "card world_coarse"}
