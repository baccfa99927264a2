"""`lmseg predict` and back through `lmseg score`, on a tiny tree and a model of random weights."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lmseg_jax import assembly, cli, predict, scoring, segmenter, sharding, state
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.names_card import union_card
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.label_space import of_card
from lmseg_jax.prediction_files import Outputs, image_ids
from lmseg_jax.score import Score
from lmseg_jax.segmentation import Segmentation
from lmseg_jax.taxonomy import from_names
from tests.predictions import run
from tests.tiny import tiny_config
from tests.tiny_tree import CARD, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    return root, write_tree(
        root, sizes=((60, 80), (80, 60), (60, 80)), card=CARD.replace("train = 8", "train = 3")
    )


@pytest.fixture(scope="module")
def parts(tree):
    config, card = tiny_config(), load_card(tree[1])
    words = assembly.vocabulary_of(config, [card])
    shapes = jax.eval_shape(lambda: state.weights(config.model, 0, vocabulary=words))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
    return config, card, words, weights


@pytest.fixture(scope="module")
def model(parts):
    config, card, words, weights = parts
    return segmenter.Segmenter(
        config.model, *weights, spaces={card.name: of_card(card)}, vocabulary=words
    )


@pytest.fixture
def command(model, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda path: model)

    def command(*more, source=tree[0] / "images", folder="out"):
        flags = ["--checkpoint", "x", "--input", str(source), "--output", str(tmp_path / folder)]
        return cli.main(["predict", *flags, *more])

    return command


@pytest.fixture(scope="module", autouse=True)
def images(tree):
    (tree[0] / "images").mkdir()
    for path in (tree[0] / "train").glob("*.jpg"):
        (tree[0] / "images" / path.name).write_bytes(path.read_bytes())


def test_predict_then_score_gives_evaluations_numbers(command, parts, tree, tmp_path):
    config, card, words, weights = parts
    assert command("--taxonomy", "tiny") == 0
    found = run(tree[1], "train", root=tree[0], folder=tmp_path / "out/labels")
    mesh = sharding.local_mesh()
    network = scoring.Network(state.graph(config.model, words), words, mesh)
    network.load(*jax.device_put(weights, sharding.replicated(mesh)))
    data = scoring.EvaluationSet(open_source(card, "train", root=str(tree[0])), card, 0)
    expected, _ = scoring.evaluate_set(network, data, batch=1, threads=1)
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-6)


def test_segments_in_files_score_as_those_in_memory(tmp_path):
    card, seen = load_card("world_colors"), 3
    source = open_source(card, "val", root="", limit=seen)
    (tmp_path / "scenes").mkdir()
    model, expected = segmenter.load("worlds"), Score(card)
    for sample in (source[i] for i in range(seen)):
        name = Path(sample.name).name
        Image.fromarray(sample.image).save(tmp_path / f"scenes/{name}.png")
        found = model.segment(sample.image, taxonomy=card.name, task="panoptic")
        info = [{"id": row["id"], "category": row["category_id"]} for row in found.segments_info]
        expected.semantic.update(found.labels, semantic_map(sample))
        truth = (sample.segments, sample.classes, sample.area, sample.crowd)
        expected.panoptic.update(found.segments, info, *truth, name=name)
    flags = ["--checkpoint", "worlds", "--input", tmp_path / "scenes", "--output", tmp_path / "out"]
    flags += ["--taxonomy", card.name, "--task", "panoptic", "--no-overlay"]
    assert cli.main(["predict", *map(str, flags)]) == 0
    more = ["--limit", str(seen)]
    found = run(card.name, "val", root="", folder=tmp_path / "out/panoptic", more=more)
    assert found == expected.compute()
    assert found["pq"] > 20  # 45 on 60 scenes


def test_the_legend_under_an_overlay_has_the_classes_of_the_picture(command, model, tree, tmp_path):
    assert command("--taxonomy", "tiny") == 0
    picture = np.asarray(Image.open(tmp_path / "out/overlays/0.png"))
    labels = model.segment(tree[0] / "images/0.jpg", taxonomy="tiny").labels
    under = picture[labels.shape[0] :].reshape(-1, 3)
    for k, color in enumerate(model.spaces["tiny"].taxonomy.colors):
        assert (under == color).all(axis=1).any() == (labels == k).any()


def test_a_run_that_was_cut_goes_on_to_the_same_files(command, model, tmp_path, monkeypatch):
    asked = ["--classes", "box; cat", "--task", "panoptic", "--scores", "npy"]
    assert command(*asked, folder="whole") == 0
    segment, answered = model.segment, []

    def interrupted(image, *args, **more):
        answered.append(image)
        if len(answered) == 3:
            raise KeyboardInterrupt
        return segment(image, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(model, "segment", interrupted)
        assert command(*asked) == 130
    lines = tmp_path / "out/panoptic/annotations.jsonl"
    lines.write_text(lines.read_text()[:-20])  # the power went while the second line was written
    assert command(*asked) == 0
    files = [
        {p.relative_to(top): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (tmp_path / "whole", tmp_path / "out")
    ]
    assert len(files[0]) == 3 * 4 + 3 and files[0] == files[1]


def test_label_pngs_of_a_taxonomy_have_one_depth(tmp_path):
    names = from_names(["road", "car"])
    large = replace(names, categories=(names.categories[0], replace(names.categories[1], id=300)))
    outputs = Outputs(tmp_path, large, panoptic=False, overlay=False, force=False)
    for name, k in (("a.png", 0), ("b.png", 1)):
        labels = np.full((2, 3), k, np.int32)
        outputs.write(name, np.zeros((2, 3, 3), np.uint8), Segmentation(labels, labels, [], large))
    written = [np.asarray(Image.open(tmp_path / "labels" / name)) for name in ("a.png", "b.png")]
    assert [(x.dtype, x.max()) for x in written] == [(np.uint16, 1), (np.uint16, 300)]


def test_ids_of_images_are_their_numbers_where_these_are_their_own():
    names = ["000139.png", "001.png", "1.png", "a/7.png", "²³.png"]
    assert image_ids(names) == [139, "001", "1", "a/7", "²³"]


def test_free_words_are_numbered_and_a_second_run_skips(command, tmp_path, capsys):
    assert command("--classes", "box; sofa, couch", "--no-overlay") == 0
    ids = np.unique(np.asarray(Image.open(tmp_path / "out/labels/1.png")))
    assert set(ids.tolist()) <= {1, 2}
    assert command("--classes", "box; sofa, couch", "--no-overlay") == 0
    assert "0 images segmented, 3 were there" in capsys.readouterr().out
    assert command("--classes", "box; cat") == 2
    assert "an earlier run had another names" in capsys.readouterr().err
    assert command("--classes", "box; cat", "--no-overlay", "--force") == 0


def test_a_union_card_is_asked_for_by_its_path(command, tree, tmp_path, model):
    cards = [load_card(tree[1]), load_card("world_coarse")]
    groups = [{0: 0}, {0: 1, 1: 0}, {1: 2}]  # tiny's box is also called "round thing"
    path = tmp_path / "union.toml"
    path.write_text(union_card(cards, groups, name="both"))
    assert command("--taxonomy", str(path), "--no-overlay") == 0
    image = tree[0] / "images/0.jpg"
    written = np.asarray(Image.open(tmp_path / "out/labels/0.png"))
    by_words = model.segment(image, classes=["ground", "box, round thing", "water"])
    np.testing.assert_array_equal(written, by_words.labels + 1)
    assert json.loads((tmp_path / "out/predict.json").read_text())["ids"] == [1, 2, 3]


def test_panoptic_pngs_and_list_are_cocos(command, model, tmp_path, monkeypatch):
    easy = {k: replace(v, object_mask=0.0, overlap=0.0) for k, v in model.spaces.items()}
    monkeypatch.setattr(model, "spaces", easy)
    assert command("--taxonomy", "tiny", "--task", "panoptic", "--no-overlay") == 0
    whole = json.loads((tmp_path / "out/panoptic/predictions.json").read_text())
    assert [row["file_name"] for row in whole["annotations"]] == ["0.png", "1.png", "2.png"]
    assert [row["id"] for row in whole["categories"]] == [0, 1]
    for row in whole["annotations"]:
        red, green, blue = np.moveaxis(
            np.array(Image.open(tmp_path / "out/panoptic" / row["file_name"])).astype(int), -1, 0
        )
        ids, areas = np.unique(red + 256 * green + 65536 * blue, return_counts=True)
        listed = {info["id"]: info["area"] for info in row["segments_info"]}
        assert listed and {info["category_id"] for info in row["segments_info"]} <= {0, 1}
        assert {i: a for i, a in zip(ids, areas, strict=True) if i} == listed


def test_a_bad_file_is_named_at_the_end_and_the_others_are_done(command, tree, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("a/0.jpg", "b/0.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes((tree[0] / "images/0.jpg").read_bytes())
    for name in ("a/!.png", "a/1.png"):  # before and between the others
        (folder / name).write_bytes(b"nothing")
    assert command("--classes", "box", source=folder) == 2
    told = capsys.readouterr().err
    assert "2 could not be read, the first:" in told and "!.png" in told
    labels = sorted(
        p.relative_to(tmp_path / "out/labels").as_posix()
        for p in (tmp_path / "out/labels").rglob("*.png")
    )
    assert labels == ["a/0.png", "b/0.png"]
    assert command("--classes", "box", source=tmp_path / "none") == 2


def test_scores_are_written_and_a_run_without_them_is_completed(command, model, tree, tmp_path):
    assert command("--taxonomy", "tiny", "--no-overlay") == 0
    assert not (tmp_path / "out/scores").exists()
    assert command("--taxonomy", "tiny", "--no-overlay", "--scores", "npy") == 0
    assert command("--taxonomy", "tiny", "--no-overlay", "--scores", "png") == 0
    exact = np.load(tmp_path / "out/scores/1.npy")
    found = model.segment(tree[0] / "images/1.jpg", taxonomy="tiny", scores=True)
    np.testing.assert_array_equal(exact, found.scores)
    written = np.asarray(Image.open(tmp_path / "out/scores/1.png"))
    assert written.dtype == np.uint16
    np.testing.assert_allclose(written / 65535, exact, atol=1e-5)


def test_things_decide_which_classes_have_instances(command, tmp_path, capsys):
    asked = ["--classes", "box; cat, dog", "--task", "panoptic", "--no-overlay"]
    assert command(*asked, "--things", "cat, dog") == 0
    whole = json.loads((tmp_path / "out/panoptic/predictions.json").read_text())
    assert [row["isthing"] for row in whole["categories"]] == [0, 1]
    assert command(*asked, "--things", "") == 2
    assert "an earlier run had another things" in capsys.readouterr().err
    assert command(*asked, "--things", "zebra", "--force") == 2
    assert "things: no 'zebra'" in capsys.readouterr().err
    assert command("--classes", "box", "--things", "box") == 2
    assert "--things: only segments" in capsys.readouterr().err
