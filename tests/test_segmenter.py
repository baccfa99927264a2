"""A segmenter from a workdir or a converted model, against the model called directly."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import lmseg_jax
from lmseg_jax import assembly, cli, segmenter, state, tokenizer
from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import converted
from tests.goldens import maskformer as goldens
from tests.tiny import tiny_config, weights_of, write_workdir

SIZE = (64, 96)


@pytest.fixture(scope="module")
def config():
    config = tiny_config()
    config.data.train = ("world_patterns", "world_coarse")
    config.optimizer.average = 0.9
    return config


@pytest.fixture(scope="module")
def weights(config):
    return weights_of(config)


@pytest.fixture(scope="module")
def workdir(config, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    write_workdir(folder, config, weights)
    return folder


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded(workdir):
    return lmseg_jax.load(workdir)


@pytest.fixture(scope="module")
def direct(config, weights):
    """(image, dataset, names of all datasets) -> logits and masks of the model itself."""
    model = state.merge(state.graph(config.model), *jax.tree.map(jnp.asarray, weights))

    @jax.jit
    def run(image, dataset, tokens, index, valid):
        text = model.encode_text(tokens, index, valid)
        found = model(image[None], text, dataset[None], valid=jnp.ones((1, *SIZE), bool), last=True)
        return found["logits"][0, 0], found["masks"][0, 0]

    def ask(image, dataset, names):
        rows = tokenizer.vocabulary(names)
        return run(image, jnp.int32(dataset), rows.tokens, rows.index, rows.valid)

    return ask


def trained_names(config):
    return [card.taxonomy.names for card in assembly.load_cards(config)]


@pytest.mark.parametrize(("taxonomy", "dataset"), [("world_patterns", 0), ("world_coarse", 1)])
def test_raw_is_the_model_with_the_newest_average(loaded, direct, config, image, taxonomy, dataset):
    names = trained_names(config)
    logits, masks = loaded.raw(image, taxonomy=taxonomy)
    expected_logits, expected_masks = direct(image, dataset, names)
    count = len(names[dataset]) + 1
    assert logits.shape == (6, count) and masks.shape == (6, SIZE[0] // 4, SIZE[1] // 4)
    np.testing.assert_allclose(logits, expected_logits[:, :count], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(masks, expected_masks, rtol=1e-4, atol=1e-4)


def test_free_words_that_are_a_taxonomys_names_give_its_numbers(loaded, config, image):
    names = trained_names(config)[0]
    by_name = loaded.raw(image, taxonomy="world_patterns")
    by_words = loaded.raw(image, classes=[name.upper().replace(" ", "_") for name in names])
    np.testing.assert_allclose(by_words[0], by_name[0], rtol=1e-5, atol=1e-5)  # padded otherwise
    np.testing.assert_allclose(by_words[1], by_name[1], rtol=1e-5, atol=1e-5)


def test_embeddings_are_those_of_the_model_whatever_the_taxonomy(loaded, config, weights):
    model = state.merge(state.graph(config.model), *jax.tree.map(jnp.asarray, weights))
    rows = tokenizer.vocabulary([["round thing", "angular thing", "water", "ground"]])
    encode = jax.jit(lambda *words: model.encode_text(*words)["embeddings"])
    expected = encode(rows.tokens, rows.index, rows.valid)[0, :4]
    trained = loaded.embeddings(taxonomy="world_coarse")[:-1]  # background is last
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)
    joined = loaded.embeddings(taxonomy="world_coarse+world_patterns")  # read as any words are
    assert joined.shape == (8 + 1, 16)
    np.testing.assert_allclose(joined[:4], expected, rtol=1e-4, atol=1e-4)


def test_several_words_for_one_class_add_their_probabilities(loaded, image):
    def probabilities(classes):
        logits, _ = loaded.raw(image, classes=classes)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    parted = probabilities(["car", "truck", "person"])
    joined = probabilities(["car, truck", "person"])
    assert joined.shape == (6, 3)
    np.testing.assert_allclose(joined[:, 0], parted[:, 0] + parted[:, 1], rtol=1e-5)
    np.testing.assert_allclose(joined[:, 1:], parted[:, 2:], rtol=1e-5)


def test_names_are_read_once_however_many_images_follow(loaded, image, monkeypatch):
    encode, read = loaded._encode, []

    def noted(*arguments):
        read.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(loaded, "_encode", noted)
    first, *others = (loaded.raw(image, classes=["harbour", "pier"])[0] for _ in range(3))
    assert len(read) == 1
    assert all(np.array_equal(other, first) for other in others)
    loaded.raw(image, classes=["harbour", "quay"])
    assert len(read) == 2


def test_lists_of_names_share_a_program_until_there_are_too_many(loaded, image):
    loaded.raw(image, classes=["car"])
    programs = set(loaded._programs)
    loaded.raw(image, classes=[f"thing {i}" for i in range(15)])  # 16 with background
    assert set(loaded._programs) == programs
    assert segmenter._at_least(17, segmenter.FEWEST_NAMES) == 32


class Quick:
    """In place of a jitted function: counts what is compiled, and answers with zeros."""

    def __init__(self):
        self.compiled = 0

    def lower(self, params, frozen, text, dataset, image, valid):
        return self

    def compile(self):
        self.compiled += 1
        time.sleep(0.05)  # long enough for other threads to come
        return lambda *operands: (np.zeros((6, operands[2]["valid"].shape[1])), np.zeros((6, 8, 8)))


@pytest.fixture
def quick(loaded, monkeypatch):
    monkeypatch.setattr(loaded, "_predict", Quick())
    monkeypatch.setattr(loaded, "_programs", OrderedDict())
    return loaded


def test_programs_that_were_not_asked_for_longest_are_forgotten(quick, image, monkeypatch):
    monkeypatch.setattr(segmenter, "PROGRAMS", 2)
    for height in (32, 64, 32, 96):
        quick.raw(np.zeros((height, 32, 3), np.uint8), classes=["car"])
    assert [key[0][0] for key in quick._programs] == [32, 96]
    assert quick._predict.compiled == 3


def test_threads_that_ask_at_once_share_one_compilation(quick, image):
    found = []

    def ask():
        found.append(quick.raw(image, classes=["car"])[0].shape)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(6, 2)] * 4
    assert quick._predict.compiled == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give taxonomy= or classes="),
        ({"taxonomy": "world_coarse", "classes": ["car"]}, "no 'car'; give a list of names"),
        ({"taxonomy": "nothing"}, "which are world_patterns, world_coarse"),
        ({"classes": []}, "is empty"),
        ({"classes": "car"}, "give a list"),
        ({"classes": ["car,"]}, "has an empty word"),
        ({"classes": ["car", "Car"]}, "'car' stands there twice"),
        ({"classes": ["background"]}, "stands for no object"),
    ],
)
def test_words_that_cannot_be_asked_say_why(loaded, image, asked, message):
    with pytest.raises(ValueError, match=message):
        loaded.raw(image, **asked)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((64, 60, 3), np.uint8), "64 x 60; height and width must be multiples of 32: pad"),
        (np.zeros((0, 32, 3), np.uint8), "multiples of 32"),
        (np.zeros((64, 64, 3), np.float32), r"float32 \(64, 64, 3\); expected uint8"),
        (np.zeros((64, 64), np.uint8), "expected uint8"),
    ],
)
def test_an_image_of_the_wrong_kind_says_what_to_do(loaded, wrong, message):
    with pytest.raises(ValueError, match=message):
        loaded.raw(wrong, classes=["car"])


def test_the_taxonomies_of_training_come_from_the_workdir(loaded, config):
    assert list(loaded.taxonomies) == ["world_patterns", "world_coarse"]
    assert loaded.taxonomies["world_coarse"].names == trained_names(config)[1]


def test_a_converted_model_is_loaded_with_its_taxonomy(config, weights, loaded, tmp_path):
    model = config.model.to_dict()
    model = {key: list(v) if isinstance(v, tuple) else v for key, v in model.items()}
    words = {"streets": {"names": list(trained_names(config)[0]), "things": None}}
    found = converted.Converted({}, model, *weights, taxonomies=words)
    converted.write(tmp_path / "model", found)
    again = lmseg_jax.load(tmp_path / "model")
    assert again.taxonomies["streets"].names == trained_names(config)[0]
    assert again.model == loaded.model
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.frozen), weights)


def test_a_converted_model_of_other_shapes_is_refused(config, weights, tmp_path):
    params = weights[0] | {"prompt": {"context": np.zeros((3, 16), np.float32)}}
    found = converted.Converted({}, config.model.to_dict(), params, weights[1])
    converted.write(tmp_path / "model", found)
    with pytest.raises(UserError, match=r"prompt/context is float32 \[3, 16\] there"):
        lmseg_jax.load(tmp_path / "model")


def test_pretrained_towers_are_no_model(tmp_path):
    found = converted.Converted(
        {}, {"backbone": "clip_resnet"}, {"backbone": {"a": np.ones(2)}}, {}
    )
    converted.write(tmp_path / "towers", found)
    with pytest.raises(UserError, match="no segmentation model; train with --config.pretrained"):
        lmseg_jax.load(tmp_path / "towers")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither the workdir of a training run"):
        lmseg_jax.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json: broken"):
        lmseg_jax.load(tmp_path)


def test_importing_the_package_imports_no_jax():
    script = "import sys, lmseg_jax; assert not {'jax', 'numpy'} & set(sys.modules); lmseg_jax.x"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "has no attribute 'x'" in done.stderr


@pytest.fixture(scope="module")
def maskformer(tmp_path_factory):
    """Hugging Face's MaskFormer of the goldens, through the command and back."""
    folder = tmp_path_factory.mktemp("maskformer")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(goldens.FOLDER / name, folder)
    shapes = json.loads((goldens.FOLDER / "tensors.json").read_text())
    save_file(goldens.weights(shapes), folder / "model.safetensors")
    out = folder / "converted"
    arguments = ["--from", "maskformer_hf", "--input", str(folder), "--output", str(out)]
    assert cli.main(["convert", *arguments]) == 0
    return lmseg_jax.load(out)


@pytest.mark.parametrize("number", range(3))
def test_a_converted_maskformer_gives_the_librarys_logits(maskformer, number):
    height, width = goldens.SIZES[number]
    expected = np.load(goldens.FOLDER / "goldens.npz")
    found = maskformer.raw(goldens.image(number, (height, width)), taxonomy="maskformer_hf")
    for part, name in zip(found, ("logits", "masks"), strict=True):
        true = expected[f"{name}_{height}x{width}"]
        assert part.shape == true.shape
        assert np.abs(part - true).max() <= 1e-4 * np.abs(true).max()


def test_the_only_taxonomy_need_not_be_named(maskformer):
    image = goldens.image(0, goldens.SIZES[0])
    named = maskformer.raw(image, taxonomy="maskformer_hf")
    for part, expected in zip(maskformer.raw(image), named, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_head_with_fixed_classes_has_no_embeddings(maskformer):
    with pytest.raises(UserError, match="its classes are numbers"):
        maskformer.embeddings(taxonomy="maskformer")


def test_a_head_with_fixed_classes_reads_no_words(maskformer):
    with pytest.raises(UserError, match="head 'linear', whose classes are fixed: give only"):
        maskformer.raw(np.zeros((32, 32, 3), np.uint8), classes=["car"])
