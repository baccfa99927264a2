"""`lmseg export` of a tiny workdir: what is written, what reads it, and what it refuses."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import lmseg_jax
from lmseg_jax import assembly, cli, export, exported, loading, scoring, segmenter, stablehlo, state
from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import mapping
from tests.tiny import tiny_config, weights_of, write_workdir

TRAINED = ("world_patterns", "world_coarse")
SCORES = {"world_patterns": {"miou": 12.3456, "iou": {"ground": 1.0}}}


@pytest.fixture(scope="module")
def config():
    config = tiny_config()
    config.data.train = TRAINED
    config.optimizer.average = 0.9
    return config


@pytest.fixture(scope="module")
def weights(config):
    return weights_of(config)


@pytest.fixture(scope="module")
def workdir(config, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    write_workdir(folder, config, weights)
    (folder / "scores.json").write_text(json.dumps(SCORES))
    return folder


@pytest.fixture(scope="module")
def stored(workdir):
    return loading.read(workdir)


@pytest.fixture(scope="module")
def source(stored):
    return segmenter.of_stored(stored)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, export.SIZE + (3,), dtype=np.uint8)


def run(*flags):
    return cli.main(["export", *map(str, flags)])


@pytest.fixture(scope="module")
def whole(workdir, tmp_path_factory):
    """With both kinds of file."""
    folder = tmp_path_factory.mktemp("exports") / "whole"
    assert run("--checkpoint", workdir, "--output", folder, "--format", "both") == 0
    return folder


@pytest.fixture(scope="module")
def fixed(workdir, tmp_path_factory):
    """Without a text tower, with the artefact."""
    folder = tmp_path_factory.mktemp("exports") / "fixed"
    assert run("--checkpoint", workdir, "--output", folder, "--text-free", "--stablehlo") == 0
    return folder


@pytest.fixture(scope="module")
def text_free(fixed):
    return lmseg_jax.load(fixed)


def check_close(found, expected, tolerance=1e-4):
    for part, true in zip(found, expected, strict=True):
        assert part.shape == true.shape
        assert np.abs(part - true).max() <= tolerance * np.abs(true).max()


@pytest.mark.parametrize("form", exported.FORMS)
def test_an_export_holds_the_evaluated_weights_and_all_of_the_taxonomies(
    whole, config, weights, form
):
    found = loading.of_export(whole, form=form)
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.frozen), weights)
    cards = assembly.load_cards(config)
    assert [space.taxonomy for space in found.spaces.values()] == [card.taxonomy for card in cards]
    for card, space in zip(cards, found.spaces.values(), strict=True):
        assert (space.test, space.task) == (card.test, card.task)
        assert (space.object_mask, space.overlap) == (card.object_mask, card.overlap)


def test_an_export_answers_in_taxonomies_and_in_any_words(whole, source, image):
    model = lmseg_jax.load(whole)
    check_close(model.raw(image, taxonomy=TRAINED[1]), source.raw(image, taxonomy=TRAINED[1]))
    words = {"classes": ["zebra", "sofa, couch"]}
    check_close([model.embeddings(**words)], [source.embeddings(**words)])


def test_the_manifest_has_scores_versions_and_digests(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["origin"]["scores"] == {"world_patterns": {"miou": 12.35}}
    assert manifest["origin"]["update"] == 8
    assert manifest["versions"]["jax"] == jax.__version__
    files = {p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    digest = hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["files"]["model.safetensors"] == digest
    parts = {name.split("/")[0] for name in load_file(whole / "model.safetensors")}
    assert {"params", "frozen"} <= parts <= {"params", "frozen", "text"}  # no optimizer state


def test_half_an_export_is_half_as_large_and_close(stored, source, image, tmp_path):
    contents = export.contents(stored, source, text_free=False)
    manifest = exported.write(tmp_path, contents, forms=["safetensors"], half=True)
    exported.seal(tmp_path, manifest)
    arrays = load_file(tmp_path / "model.safetensors")
    kinds = {name: array.dtype for name, array in arrays.items()}
    assert kinds.pop(exported.TEXT) == np.float32 and set(kinds.values()) == {np.dtype("float16")}
    model = lmseg_jax.load(tmp_path)
    found, expected = (x.raw(image, taxonomy=TRAINED[0]) for x in (model, source))
    check_close(found, expected, export.HALF_TOLERANCE)
    assert np.abs(found[0] - expected[0]).max() > 0


def test_a_text_free_export_answers_for_the_names_it_has(text_free, fixed, source, image):
    names = source.taxonomies[TRAINED[0]].names
    check_close(text_free.raw(image, taxonomy=TRAINED[0]), source.raw(image, taxonomy=TRAINED[0]))
    check_close(text_free.raw(image, classes=names[::-1]), source.raw(image, classes=names[::-1]))
    union = "+".join(TRAINED)
    check_close(text_free.raw(image, taxonomy=union), source.raw(image, taxonomy=union))
    two = text_free.segment(image, names[1::-1], taxonomy=TRAINED[0])
    assert two.names == names[1::-1]
    stored = mapping.paths(loading.of_export(fixed).params)
    assert not [path for path, _ in stored if path.split("/")[0] in ("prompt", "adapter")]


@pytest.mark.parametrize("asked", [{"classes": ["Ground", "zebra"]}, {"taxonomy": "camvid"}])
def test_a_text_free_export_says_which_words_it_knows(text_free, image, asked):
    message = r"cannot read '\w+'; the words it knows: striped object, .*ground.*, round thing"
    with pytest.raises(UserError, match=message):
        text_free.segment(image, **asked)


def test_a_text_free_export_can_only_become_another(fixed, tmp_path, capsys):
    assert run("--checkpoint", fixed, "--output", tmp_path / "x") == 2
    assert "has no text tower; add --text-free" in capsys.readouterr().err


def test_the_artefact_takes_any_batch_size_and_number_of_names(fixed, source):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)
    rows = source.embeddings(classes=["zebra"])
    answer = stablehlo.run(
        fixed / stablehlo.NETWORK,
        images,
        inside=np.ones(images.shape[:3], bool),
        embeddings=rows,
        valid=np.ones(len(rows), bool),
    )
    expected = source.raw(images[2], classes=["zebra"])
    check_close((answer["logits"][2], answer["masks"][2]), expected)
    artefact = jax.export.deserialize(bytearray((fixed / stablehlo.NETWORK).read_bytes()))
    assert set(artefact.platforms) == {"cpu", "cuda", "tpu"}


def test_the_program_in_the_docs_runs_without_flax_and_without_this_package(
    fixed, source, image, tmp_path
):
    text = (Path(__file__).parents[1] / "docs/export.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(program.splitlines()) <= 30
    (tmp_path / "segment.py").write_text(program)
    blocked = (
        "import runpy, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flax', 'lmseg_jax', 'orbax', 'transformers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path('segment.py', run_name='__main__')\n"
    )
    Image.fromarray(image).save(tmp_path / "image.png")
    flags = ["segment.py", str(fixed), TRAINED[0], "image.png", "labels.png"]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    expected = source.segment(image, taxonomy=TRAINED[0])
    assert np.mean(labels == expected.labels) > 0.95  # labels, not masks, are resized there
    assert all(line.split(":")[0] in expected.names for line in done.stdout.splitlines())


def test_an_export_that_answers_otherwise_is_refused(stored, source, fixed):
    changed = jax.tree.map(lambda value: 1.01 * value, stored.params)
    other = segmenter.of_stored(replace(stored, params=changed))
    with pytest.raises(UserError, match="x: class logits in world_patterns differ by"):
        export.compared(source, other, tolerance=export.TOLERANCE, what="x")
    with pytest.raises(UserError, match="stablehlo: class logits in world_patterns differ by"):
        export.compared_artefact(other, fixed / stablehlo.NETWORK, tolerance=export.TOLERANCE)


def test_what_is_refused_at_the_end_leaves_nothing(workdir, tmp_path, monkeypatch, capsys):
    def refuse(*asked, **more):
        raise UserError("otherwise")

    monkeypatch.setattr(export, "compared", refuse)
    assert run("--checkpoint", workdir, "--output", tmp_path / "out" / "x") == 2
    assert "error: otherwise" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_scores_are_those_of_the_exported_weights_on_the_runs_own_sets(
    source, workdir, monkeypatch
):
    asked = {}

    def evaluate(network, sets, config):
        asked.update(network=network, names=[data.card.name for data in sets])
        return {"world_patterns": {"miou": 12.3456, "iou": {"ground": 1.0}}}, {}

    monkeypatch.setattr(scoring, "evaluate_all", evaluate)
    assert export.score(source, workdir) == {"world_patterns": {"miou": 12.35}}
    assert asked["names"] == list(TRAINED)
    text = source.text_of_training()
    np.testing.assert_allclose(asked["network"].text["embeddings"], text, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "full"], "full: is there already; name a new folder"),
        (["--output", "full/file"], "file: is there already"),
        (["--output", "full/file/x"], "cannot write"),
        (["--checkpoint", "full"], "neither the workdir of a training run"),
        (["--half"], "--half: is for safetensors"),
        (["--score", "--text-free"], "--score: needs a training workdir"),
    ],
)
def test_what_cannot_be_exported_says_why(workdir, tmp_path, monkeypatch, capsys, flags, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("something")
    monkeypatch.chdir(tmp_path)
    given = {"--checkpoint": str(workdir), "--output": "new"}
    more = []
    for flag in flags:
        if flag in given:
            given[flag] = flags[1]
        elif flag.startswith("--"):
            more.append(flag)
    assert run(*(x for pair in given.items() for x in pair), *more) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def copied(whole, folder):
    """An export of one file that may be broken."""
    folder.mkdir()
    manifest = json.loads((whole / "manifest.json").read_text())
    manifest["arrays"] = {"safetensors": "model.safetensors"}
    (folder / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    return manifest


def test_a_changed_or_missing_file_is_named(whole, tmp_path):
    manifest = copied(whole, tmp_path / "x")
    (tmp_path / "x/manifest.json").write_text(json.dumps(manifest))
    path = tmp_path / "x/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: is not what was exported; copy"):
        lmseg_jax.load(tmp_path / "x")
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: is missing"):
        lmseg_jax.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is version 2, this program reads version 1"),
        ({"taxonomies": {"a": {}}}, r"manifest\.json: broken \(KeyError"),
        ({"arrays": {}}, "broken"),
        ({"arrays": {"pickle": "x"}}, "broken"),
        ({"model": {"queries": 7}}, "position is"),
        ({"text_tower": {"name": "worlds-clip", "sha256": "0" * 64}}, "does not ship"),
    ],
)
def test_a_broken_manifest_says_what_is_wrong(whole, tmp_path, change, message):
    manifest = copied(whole, tmp_path / "x")
    if "model" in change:
        change = {"model": manifest["model"] | change["model"]}
    (tmp_path / "x/manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=message):
        lmseg_jax.load(tmp_path / "x")


def test_values_beyond_float16_are_refused(tmp_path):
    found = exported.Exported({}, {"params/x": np.array([1e5], np.float32)}, {})
    with pytest.raises(UserError, match="params/x has values above 65504"):
        exported.write(tmp_path, found, forms=["safetensors"], half=True)


def test_a_shipped_text_tower_is_named_and_not_stored_again(tmp_path):
    found = loading.read("worlds")
    model = json.loads(json.dumps(found.model.to_dict()))
    arrays = exported.arrays_of(found.params, found.frozen, text=found.text)
    whole = exported.Exported(model, arrays, found.spaces, origin=found.origin)
    exported.seal(tmp_path, exported.write(tmp_path, whole, forms=["safetensors"]))
    stored = load_file(tmp_path / "model.safetensors")
    assert not [name for name in stored if "text_encoder" in name]
    again = loading.read(tmp_path)
    trees = ((x.params, x.frozen) for x in (again, found))
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_model_with_fixed_classes_is_exported_without_embeddings(config, tmp_path):
    fixed = tiny_config()
    fixed.data.train = TRAINED
    fixed.model.head = "multi_head"
    words = assembly.vocabulary_of(fixed, assembly.load_cards(fixed))
    write_workdir(tmp_path / "run", fixed, weights_of(fixed, vocabulary=words))
    found = loading.read(tmp_path / "run")
    model = segmenter.of_stored(found)
    (tmp_path / "x").mkdir()
    contents = export.contents(found, model, text_free=False)
    exported.seal(tmp_path / "x", exported.write(tmp_path / "x", contents, forms=["orbax"]))
    again = loading.read(tmp_path / "x")
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    assert again.text is None
    np.testing.assert_array_equal(again.vocabulary["index"], words["index"])
    with pytest.raises(UserError, match="head 'multi_head', which never reads words"):
        export.contents(found, model, text_free=True)
    flags = ["--checkpoint", tmp_path / "run", "--output", tmp_path / "y", "--stablehlo"]
    assert run(*flags) == 2
    assert state.without_text(found.params).keys() == found.params.keys()


def test_without_a_cpu_nothing_is_compared(monkeypatch):
    def none(**asked):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX_PLATFORMS leaves out the CPU"):
        export.cpu()
