"""Training that begins from a trained model: what is taken, what is drawn anew, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmseg_jax import (
    assembly,
    checkpoint,
    cli,
    configuration,
    finetuning,
    loading,
    scoring,
    sharding,
    state,
    train,
)
from lmseg_jax.errors import UserError
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.pipeline.batches import Loader
from lmseg_jax.step import make_step, run_update
from tests.goldens import maskformer
from tests.tiny import tiny_config, weights_of, write_workdir

OLD, NEW = ("world_patterns", "world_coarse"), ("world_coarse", "world_shapes")
CLIP = Path(__file__).parent / "fixtures" / "clip_rn_tiny.safetensors"
FOURTH = str(Path(__file__).parent / "fixtures" / "world_grounds.toml")
SHAPES = ["disc", "ring", "square", "triangle", "star", "cross"]


def config_of(cards, *, head="text", model=""):
    config = tiny_config()
    config.data.train = cards
    config.model.head = head
    config.model.decoder.order = "visual-text" if head == "text" else "visual"
    config.optimizer.average = 0.9
    config.pretrained.model = str(model)
    return config


def trained(folder, cards, *, head="text"):
    """The workdir of a run, and what it has learned: (params, frozen)."""
    config = config_of(cards, head=head)
    vocabulary = assembly.vocabulary_of(config, assembly.load_cards(config))
    weights = weights_of(config, vocabulary=vocabulary)
    write_workdir(folder, config, weights)
    return weights


def begin(config):
    cards = assembly.load_cards(config)
    return finetuning.begin(config, cards, vocabulary=assembly.vocabulary_of(config, cards))


def initial_state(config, begun):
    vocabulary = assembly.vocabulary_of(config, assembly.load_cards(config))
    mesh = sharding.make_mesh(1, 1, multiple=2)
    return assembly.initial_state(config, mesh, vocabulary=vocabulary, begun=begun)[0]


def check_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning") / "text"
    return folder, trained(folder, OLD)


@pytest.fixture(scope="module")
def without_text(tmp_path_factory):
    """A converted MaskFormer of the smallest size."""
    folder = tmp_path_factory.mktemp("finetuning")
    source = folder / "maskformer"
    source.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (source / name).write_text((maskformer.FOLDER / name).read_text())
    shapes = json.loads((maskformer.FOLDER / "tensors.json").read_text())
    save_file(maskformer.weights(shapes), source / "model.safetensors")
    command = ["convert", "--from", "maskformer_hf", "--input", str(source)]
    assert cli.main([*command, "--output", str(folder / "converted")]) == 0
    return folder / "converted"


def test_other_cards_go_on_from_all_weights_and_the_average_begins_with_them(workdir):
    folder, (params, frozen) = workdir
    begun, lines = begin(config_of(NEW, model=folder))
    first = initial_state(config_of(NEW, model=folder), begun)
    check_equal(first.params, params)
    check_equal(first.average, params)
    check_equal(first.frozen, frozen)
    assert int(first.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(first.optimizer))
    assert lines == [
        f"begins from {folder}: adapter, backbone, decoder, mask_head, pixel_decoder, prompt,"
        " text_encoder",
        "drawn anew: nothing; left out: nothing",
    ]


def test_nothing_is_taken_unless_a_model_is_named():
    assert begin(config_of(NEW)) == (({}, {}), [])


def test_a_linear_head_keeps_the_classes_whose_names_both_have(tmp_path):
    params, frozen = trained(tmp_path, ("world_patterns",), head="linear")
    (taken, constant), lines = begin(config_of(("world_shapes",), head="linear", model=tmp_path))
    found = taken["head"].pop("classes")
    known = params["head"].pop("classes")
    check_equal(taken, params)
    check_equal(constant, frozen)
    # striped, checkered, dotted, plain object, ground, background; six shapes, ground, background
    for leaf in ("kernel", "bias"):
        check_equal(found[leaf][..., [6, 7]], known[leaf][..., [4, 5]])
    assert found["kernel"].shape == (16, 8)
    assert 0 < np.abs(found["kernel"][:, :6]).max() <= 1 / 4  # drawn within 1 / sqrt(16)
    assert lines[2] == (
        f"classes: 2 of 8 taken; drawn anew: {', '.join(SHAPES)}; left out: striped object,"
        " checkered object, dotted object, plain object"
    )


def test_a_multi_head_keeps_the_layers_of_its_old_datasets(tmp_path):
    params, _ = trained(tmp_path, OLD, head="multi_head")
    (taken, _), lines = begin(config_of(NEW, head="multi_head", model=tmp_path))
    check_equal(taken["head"]["classes"][0], params["head"]["classes"][1])
    assert taken["head"]["classes"][1]["bias"].shape == (8,)
    assert lines[2:] == [
        "classes of world_coarse: 5 of 5 taken; drawn anew: none; left out: none",
        f"classes of world_shapes: 0 of 8 taken; drawn anew: {', '.join(SHAPES)}, ground,"
        " background; left out: none",
    ]


def test_a_manual_taxonomy_keeps_every_name_of_its_union(tmp_path):
    params, _ = trained(tmp_path, OLD, head="manual_taxonomy")
    (taken, _), lines = begin(config_of(NEW, head="manual_taxonomy", model=tmp_path))
    found, known = (tree["head"]["classes"]["kernel"] for tree in (taken, params))
    # old: four patterns, ground, round thing, angular thing, water, background
    # new: round thing, angular thing, water, ground, six shapes, background
    check_equal(found[:, [0, 1, 2, 3, 10]], known[:, [5, 6, 7, 4, 8]])
    assert lines[2].startswith(f"classes: 5 of 11 taken; drawn anew: {', '.join(SHAPES)}; left")


def test_a_converted_maskformer_learns_to_read(without_text):
    config = config_of(NEW)
    values = loading.read(without_text).model
    config.model = values.copy_and_resolve_references()
    config.model.head, config.model.decoder.order = "text", "visual-text"
    config.model.text.width, config.model.text.heads = 16, 2
    config.model.text.layers, config.model.text.embedding = 3, 32
    config.pretrained.model = str(without_text)
    with pytest.raises(UserError, match="has head 'linear', and config.model.head = 'text' needs"):
        begin(config)
    config.pretrained.text = str(CLIP)
    begun, lines = begin(config)
    assert lines[1:4] == [
        "drawn anew: adapter, decoder/layers/*/attentions/2, decoder/layers/*/norms/2, prompt;"
        " left out: head",
        f"text_encoder is that of {CLIP}",
        "model.decoder.order is 'visual' there and 'visual-text' here",
    ]
    assert "model.head is 'linear' there and 'text' here" in lines
    first = initial_state(config, begun)
    source = loading.read(without_text)
    for part in ("backbone", "pixel_decoder", "mask_head"):
        check_equal(first.params[part], source.params[part])
    layer, known = (tree["decoder"]["layers"][0] for tree in (first.params, source.params))
    assert len(layer["attentions"]) == 3
    check_equal(layer["attentions"][1], known["attentions"][1])
    expected = assembly.pretrained(config, *state.shapes(config.model))["text_encoder"][1]
    check_equal(first.frozen["text_encoder"], expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", 32, "model.width is 16 there and 32 here; set its values, which --config finet"),
        ("queries", 9, "model.queries is 6 there and 9 here"),
        ("pixels", "imagenet", "model.pixels is 'clip' there and 'imagenet' here"),
        ("query_mlp", True, "model.query_mlp is False there and True here"),
    ],
)
def test_another_model_is_refused_by_key_and_both_values(workdir, key, value, message):
    config = config_of(NEW, model=workdir[0])
    config.model[key] = value
    with pytest.raises(UserError) as caught:
        begin(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_order_whose_attentions_have_other_places_is_refused(workdir):
    config = config_of(NEW, model=workdir[0])
    config.model.decoder.order = "text-visual"
    with pytest.raises(UserError, match="decoder.order is 'visual-text' there and 'text-visual'"):
        begin(config)
    config.model.decoder.order = "visual"
    _, lines = begin(config)
    left = "decoder/layers/*/attentions/2, decoder/layers/*/norms/2"
    assert lines[1] == f"drawn anew: nothing; left out: {left}"


def test_what_may_differ_is_told(workdir):
    config = config_of(NEW, model=workdir[0])
    config.model.temperature = 0.1
    assert begin(config)[1][2:] == ["model.temperature is 0.07 there and 0.1 here"]


def test_a_model_has_one_text_tower(workdir, monkeypatch):
    folder, _ = workdir
    config = config_of(NEW, model=folder)
    config.pretrained.text = "worlds-clip"
    with pytest.raises(UserError, match="pretrained.text = 'worlds-clip': .* of its own"):
        begin(config)
    stored = loading.read(folder)
    halves = {name: state.without_text(getattr(stored, name)) for name in ("params", "frozen")}
    monkeypatch.setattr(loading, "read", lambda _: replace(stored, **halves))
    config.pretrained.text = ""
    with pytest.raises(UserError, match="is an export without text.* without --text-free, or set"):
        begin(config)
    config.pretrained.text = str(CLIP)
    (params, frozen), lines = begin(config)
    assert not {"prompt", "adapter"} & set(params) and "text_encoder" not in frozen
    assert lines[1] == "drawn anew: adapter, prompt; left out: nothing"


def test_the_config_takes_the_models_sizes(workdir, without_text):
    for model in ("worlds", workdir[0], without_text):
        config = configuration.load(f"finetune:{model},world_shapes")
        assert configuration.flat(config.model) == configuration.flat(loading.read(model).model)
        assert config.pretrained.model == str(model)
        configuration.check(config)
    with pytest.raises(UserError, match="finetune:nowhere: no model there .* finetune:MODEL,CARD"):
        configuration.load("finetune:nowhere,world_shapes")


def test_every_shipped_model_is_known_to_the_config():
    for name in loading.SHIPPED:
        assert configuration.load(f"finetune:{name}").pretrained.model == name


def test_a_run_that_goes_on_reads_no_model(tmp_path):
    config = config_of(NEW, model=tmp_path / "gone")
    config.mesh.data = 1
    with pytest.raises(UserError, match="gone: neither the workdir"):
        train.run(config, tmp_path / "run")
    cards = assembly.load_cards(config)
    facts = {
        "fingerprint": assembly.fingerprint(config, cards, assembly.training_feeds(config, cards))
    }
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / assembly.CHECKPOINTS, keep=1, every=1)
    checkpoints.save(1, {"params": {"other": np.zeros(3)}}, facts)
    checkpoints.close()
    with pytest.raises(UserError, match="a checkpoint of another model"):
        train.run(config, tmp_path / "run")


@pytest.fixture(scope="module")
def fourth_world():
    """Scores of "worlds" on a new and on an old world, before and after a few updates with both."""
    settings = {
        "data.evaluate_limit": 4,
        "data.augmentation": FOURTH,  # small crops, one shape
        "batching.batch": 8,
        "batching.micro": 2,
        "matcher.where": "device",
        "optimizer.steps": 16,
        "optimizer.rate": 7e-4,
        "optimizer.warmup": 0,
        "optimizer.average": 0.9,
    }
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    config = configuration.load(f"finetune:worlds,{FOURTH},world_patterns", overrides)
    configuration.check(config)
    cards = assembly.load_cards(config)
    vocabulary = assembly.vocabulary_of(config, cards)
    mesh, graph = sharding.make_mesh(1, 1, multiple=2), state.graph(config.model)
    begun, _ = finetuning.begin(config, cards, vocabulary=vocabulary)
    now, shardings = assembly.initial_state(config, mesh, vocabulary=vocabulary, begun=begun)
    network = scoring.Network(graph, vocabulary, mesh)
    sets = assembly.evaluation_sets(config, cards)

    def scores():
        network.load(*assembly.evaluated_weights(now))
        found = (scoring.evaluate_set(network, data, batch=4, threads=1)[0] for data in sets)
        return [score["miou"] for score in found]

    before = scores()
    feeds = assembly.training_feeds(config, cards)
    plan, targets = assembly.training_plan(config, feeds), config.data.max_targets
    loader = Loader(
        feeds, plan, seed=config.seed, max_targets=targets, micro=config.batching.micro, threads=1
    )
    optimizer = make_optimizer(config.optimizer)
    step = make_step(
        config, graph, optimizer, vocabulary=vocabulary, mesh=mesh, shardings=shardings
    )
    for update in loader.iterate(0, config.optimizer.steps):
        now, _ = run_update(step, now, update.buckets, mesh=mesh, seed=config.seed)
    return before, scores()


def test_a_fourth_world_is_learned_and_an_old_one_still_answers(fourth_world):
    (new_before, old_before), (new_after, old_after) = fourth_world
    assert new_before < 10 and new_after > new_before + 15
    assert old_before > 50 and old_after > old_before - 8
