"""An update of a tiny model is measured; nothing is said about how long it takes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lmseg_jax import assembly, bench_inference, bench_step, bench_text, cli, flops, plan, state
from lmseg_jax.errors import UserError
from tests.tiny import tiny_config, vocabulary


def config_of(head):
    config = tiny_config()
    config.data.train = ("world_patterns", "world_colors")
    config.batching.batch, config.batching.multiple = 2, 1
    config.model.decoder.layers = 1
    if head == "linear":
        config.data.train = ("world_patterns",)
        config.model.head, config.model.decoder.order = "linear", "visual"
    return config


@pytest.fixture(scope="module")
def found():
    return bench_step.measure(config_of("text"), size=64, targets=3, runs=2, side=64)


def test_the_keys_that_were_agreed_on_are_there(found):
    for key in ("median_s", "gflop", "peak_gflops", "fraction", "fraction_in_turns", "temp_mb"):
        assert found[key] > 0, key
    assert found["temp_program"] in ("text", "gradient", "update")
    assert json.loads(json.dumps(found)) == found


def test_the_fraction_is_what_was_reached_of_the_peak(found):
    reached = found["gflop"] / found["median_s"]
    assert found["fraction"] == pytest.approx(reached / found["peak_gflops"])
    # the products beside an update are at most as fast as the best of all
    assert found["fraction_in_turns"] >= found["fraction"]
    assert found["min_s"] <= found["median_s"] <= found["max_s"]


def test_every_part_is_timed(found):
    parts = {"backbone forward", "backbone", "fpn", "decoder", "matching", "loss", "optimizer"}
    assert set(found["parts_s"]) == parts | {"text"}
    text = bench_step.table(found)
    for part in (*parts, "text path:"):
        assert part in text


def test_the_loss_of_the_timed_update_is_a_number(found):
    assert np.isfinite(found["loss"]) and found["loss"] > 0


def test_both_models_of_the_paper_can_be_asked_for():
    text, linear = (
        bench_step.paper_config(head, batch=2, slots=24) for head in bench_step.HEADS[::-1]
    )
    assert len(text.data.train) == 4 and text.model.backbone == "clip_resnet"
    assert linear.model.backbone == "resnet" and linear.model.decoder.order == "visual"
    assert linear.model.resnet.norm == text.model.resnet.norm == "frozen"
    (card,) = assembly.load_cards(linear)
    assert len(card.taxonomy) == 150
    quarter = bench_step.paper_config(
        "text", batch=1, slots=9, overrides=("--config.loss.resolution=quarter",)
    )
    assert (quarter.loss.resolution, quarter.data.max_targets) == ("quarter", 9)


def test_the_texts_share_of_the_recipes_own_update_is_printed(found, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_step, "measure", lambda *arguments, **options: copy.deepcopy(found))
    monkeypatch.setattr(plan, "update_flops", lambda config: 10 * found["text"]["ours"])
    assert cli.run(["bench", "step", "--json", str(tmp_path / "step.json")]) == 0
    assert "; 10.0% of the " in capsys.readouterr().out
    written = json.loads((tmp_path / "step.json").read_text())
    assert written["text"]["recipe_share"] == pytest.approx(0.1)


def test_the_text_path_takes_a_twelfth_of_the_plain_form_at_most():
    short = ("--config.model.resnet.depths=1,1,1,1", "--config.model.decoder.layers=1")
    config = bench_step.paper_config("text", batch=2, slots=24, overrides=short)  # text is whole
    words = assembly.vocabulary_of(config, assembly.load_cards(config))
    count = bench_text.count(config, words)
    assert (count.names, count.positions) == (405, 77)
    assert 12 * count.ours <= count.naive


def test_the_plain_form_is_counted_right():
    """By hand: the products of one block, forward; the gradient of one reader of the prompt."""
    config = config_of("text")
    words = vocabulary()
    params, frozen = jax.eval_shape(lambda: state.weights(config.model, 0))
    graphdef = state.graph(config.model)
    index = np.zeros(3, np.int32)
    counted = flops.count(
        lambda params, frozen: bench_text.plain_embeddings(
            state.merge(graphdef, params, frozen), words["tokens"], index
        ),
        params,
        frozen,
    )
    n, s, w, e, d = 3, 77, config.model.text.width, config.model.text.embedding, config.model.width
    block = 2 * n * s * w * (3 * w + w + 8 * w) + 2 * 2 * n * s * s * w
    assert counted == config.model.text.layers * block + 2 * n * w * e + 2 * n * e * d


def test_the_plain_form_gives_the_same_embeddings_and_gradients():
    config = config_of("text")
    words = vocabulary()
    graphdef = state.graph(config.model)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: state.weights(config.model, 0))
    weights = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    cotangent = rng.normal(size=(*words["index"].shape, config.model.width)).astype(np.float32)
    cotangent *= words["valid"][..., None]

    def ours(params, frozen):
        model = state.merge(graphdef, params, frozen)
        return model.encode_text(words["tokens"], words["index"], words["valid"])["embeddings"]

    def plain(params, frozen):
        model = state.merge(graphdef, params, frozen)
        rows = bench_text.plain_embeddings(model, words["tokens"], words["index"].reshape(-1))
        return rows.reshape(*words["index"].shape, -1)

    @jax.jit
    def both(params, frozen):
        found = []
        for embed in (ours, plain):
            out, back = jax.vjp(lambda params, embed=embed: embed(params, frozen), params)
            (grads,) = back(cotangent)
            found.append((out, grads["prompt"], grads["adapter"]))
        return found

    here, there = both(*weights)
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_both_sides_of_inference_are_timed_in_turns():
    configs = {"lmseg": config_of("text"), "maskformer": config_of("linear")}
    configs["lmseg"].data.train = ("world_patterns",)
    found = bench_inference.measure(configs, size=64, runs=2)
    assert {side: len(times) for side, times in found["times_s"].items()} == {
        "lmseg": 2,
        "maskformer": 2,
    }
    pairs = zip(found["times_s"]["lmseg"], found["times_s"]["maskformer"], strict=True)
    assert found["ratios"] == pytest.approx([lmseg / plain for lmseg, plain in pairs])
    assert found["classes"] == len(assembly.load_cards(configs["lmseg"])[0].taxonomy)
    assert "ratio" in bench_inference.table(found)


def test_our_side_of_the_comparison_with_torch_answers_each_line_with_an_update():
    script = Path(__file__).resolve().parents[1] / "bench" / "peer_maskformer.py"
    command = [sys.executable, str(script), "--side", "ours", "--tiny"]
    command += ["--size", "64", "--batch", "1", "--targets", "3"]
    done = subprocess.run(command, input="run\nrun\n", capture_output=True, text=True, check=True)
    about, *updates = map(json.loads, done.stdout.splitlines())
    assert about["gflop"] > 0
    assert len(updates) == 2
    assert updates[0]["loss"] != updates[1]["loss"]
    assert all(np.isfinite(update["loss"]) and update["seconds"] > 0 for update in updates)


def test_inference_compares_the_same_backbone_on_150_classes():
    configs = bench_inference.paper_configs()
    assert {config.model.backbone for config in configs.values()} == {"clip_resnet"}
    heads = {side: config.model.head for side, config in configs.items()}
    assert heads == {"lmseg": "text", "maskformer": "linear"}
    orders = {side: config.model.decoder.order for side, config in configs.items()}
    assert orders == {"lmseg": "visual-text", "maskformer": "visual"}
    for config in configs.values():
        (card,) = assembly.load_cards(config)
        assert len(card.taxonomy) == 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--size", "100"], "--size is 100; expected a multiple of 32"),
        (["step", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["step", "--targets", "9", "--slots", "4"], "--slots is 4; expected at least --targets"),
        (["step", "--config.loss.resolutoin=full"], "loss.resolutoin"),
        (["inference", "--runs", "0"], "--runs is 0; expected at least 1"),
        (["inference", "--batch", "2"], "--batch: no such flag"),
    ],
)
def test_a_wrong_flag_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        cli.run(["bench", *arguments])
