import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lmseg_jax.data_command import main
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.datasets.source import UnmappedLabel
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.batches import Feed, Loader
from lmseg_jax.pipeline.buckets import Plan
from tests.prepared import png, prepare

COUNT = 12
FOLDER = "prepared_scenes/1.0.0"


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def ids(number):
    return np.random.default_rng(100 + number).integers(0, 8, (6, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A root with a dataset of twelve and two examples, and its card."""
    root = tmp_path_factory.mktemp("tfds")
    examples = [(png(picture(i)), png(ids(i))) for i in range(COUNT)]
    prepare(root, {"train": examples, "validation": examples[:2]})
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "root")


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def source(root, split="train"):
    return open_source(load_card(root / "prepared.toml"), split, root=root)


def test_samples_are_what_the_records_hold(written):
    found = source(written)
    assert len(found) == COUNT
    for number in range(COUNT):
        sample = found[number]
        np.testing.assert_array_equal(sample.image, picture(number))
        np.testing.assert_array_equal(semantic_map(sample), ids(number).astype(np.int32) - 1)
        assert (sample.dataset, sample.name) == ("prepared", f"{number:06d}")
    assert found.files(3) == (f"{FOLDER}/train/000003",)
    with pytest.raises(IndexError):
        found[COUNT]
    assert "tensorflow" not in sys.modules


def test_splits_have_the_names_of_tfds_and_may_be_slices(root):
    assert len(source(root, "val")) == 2
    edit(root / "prepared.toml", '"validation"', '"train[75%:]"')
    found = source(root, "val")
    assert len(found) == 3
    np.testing.assert_array_equal(found[0].image, picture(9))


def test_a_source_travels_to_workers_and_is_read_by_many_threads(written):
    found = source(written)
    found[0]  # a reader is open now
    again = pickle.loads(pickle.dumps(found))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: again[i % COUNT].image, range(6 * COUNT)))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, picture(i % COUNT))


def batches(written, **settings):
    card = load_card(written / "prepared.toml")
    feed = Feed("prepared", open_source(card, "train", root=written), card.train, 0)
    loader = Loader([feed], Plan([(96, 96)], (), batch=4, multiple=1), **settings, seed=1)
    return [update.buckets[0] for update in loader.iterate(0, 4)]


@pytest.mark.slow
def test_a_worker_process_reads_the_same_batches(written):
    expected = batches(written, max_targets=8)
    for one, other in zip(expected, batches(written, max_targets=8, workers=1), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_data_check_reads_it(written, capsys):
    assert main(["check", str(written / "prepared.toml"), "--root", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "prepared/train: OK, 12 images (card: 12)" in printed
    assert "sizes (width x height): 8x6 (12)" in printed
    pixels = np.mean([ids(i) == 0 for i in range(COUNT)])
    assert f"{100 * pixels:.2f}" in next(line for line in printed.splitlines() if "(void)" in line)


def test_an_unmapped_id_names_example_feature_and_id(root):
    edit(root / "prepared.toml", "void = [0]", "void = [9]")
    where = rf"{FOLDER}: example 0 of train, feature labels/segmentation: unmapped label id 0: "
    with pytest.raises(UnmappedLabel, match=where):
        source(root)[0]


def test_data_check_lists_unmapped_ids_by_example(root, capsys):
    edit(root / "prepared.toml", "void = [0]", "void = [9]")
    card = str(root / "prepared.toml")
    assert main(["check", card, "--root", str(root), "--split", "val"]) == 2
    expected = f"in 2 images: {FOLDER}/validation/000000, {FOLDER}/validation/000001"
    assert expected in capsys.readouterr().out


BROKEN = {
    "label of another size": (png(picture(0)), png(ids(0)[:4])),
    "label that is JPEG": (png(picture(0)), png(ids(0), "JPEG")),
    "truncated image": (png(picture(0))[:80], png(ids(0))),
    "no label": (png(picture(0)), b""),
    "GIF": (png(picture(0), "GIF"), png(ids(0))),
    "colours": (png(picture(0)), png(picture(1))),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    prepare(root, {"train": list(BROKEN.values())})
    return root


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("label of another size", "image is 8x6, but feature labels/segmentation is 8x4; "),
        ("label that is JPEG", "segmentation: not a PNG file but JPEG"),
        ("truncated image", "feature image: cannot be decoded: .*[Tt]runcated"),
        ("no label", "segmentation: holds no image"),
        ("GIF", "feature image: not a JPEG or PNG file but GIF"),
        ("colours", r"segmentation: a label file with colours \(RGB\)"),
    ],
)
def test_a_bad_example_names_folder_number_feature_and_what_is_wrong(broken, kind, words):
    number = list(BROKEN).index(kind)
    with pytest.raises(UserError, match=f"{FOLDER}: example {number} of train.*{words}"):
        source(broken)[number]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('label = "labels/segmentation"', "", "options.label is missing"),
        ('label = "labels/segmentation"', 'label = "labels/mask"', "known there: segmentation"),
        ('label = "labels/segmentation"', 'label = "labels"', "is FeaturesDict.*expected an Image"),
        ('label = "labels/segmentation"', 'label = "number"', "is Tensor; expected an Image"),
        ('label = "labels/segmentation"', 'label = "image/x"', "nothing has 'x'"),
        ('image = "image"', 'image = "picture"', "feature 'picture'.*known there: image, lab"),
        ('image = "image"', 'image = "image"\nname = "x"', "options.name is not a key"),
        ("/1.0.0", "", f"no dataset_info.json.*it has {FOLDER}"),
        ("prepared_scenes/1.0.0", "other/1.0.0", "no prepared TFDS dataset.*download_and_prepare"),
        ("prepared_scenes/1.0.0", "../x", "options.dataset is '../x'.*below the root"),
        ('"validation"', '"test"', "split 'test' is not there; it has train, validation"),
        ('"validation"', '"train[7%"', r"split 'train\[7%' cannot be read"),
        ('task = "semantic"', 'task = "panoptic"', "expected task = .semantic"),
        ("[files]", '[files]\nlabels = "{name}.png"', "files.labels is not read by tfds"),
    ],
)
def test_a_card_that_does_not_fit_says_what_is_there(root, old, new, words):
    edit(root / "prepared.toml", old, new)
    with pytest.raises(UserError, match=words):
        source(root, "val")


def test_a_missing_root_names_the_key(root):
    with pytest.raises(UserError, match=r"config\.data\.root \(--root\) is not set"):
        open_source(load_card(root / "prepared.toml"), "train", root="")


def test_a_label_of_floats_is_refused(root):
    path = root / FOLDER / "features.json"
    features = json.loads(path.read_text())
    labels = features["featuresDict"]["features"]["labels"]["featuresDict"]["features"]
    labels["segmentation"]["image"]["dtype"] = "float32"
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match="is Image of float32; expected an Image of uint8 or"):
        source(root)


def test_records_that_need_tensorflow_are_refused(root):
    edit(root / FOLDER / "dataset_info.json", "array_record", "tfrecord")
    with pytest.raises(UserError, match="tfrecord, which needs TensorFlow; .*array_record"):
        source(root)


def test_files_that_are_missing_or_broken_are_named(root):
    folder = root / FOLDER
    records = folder / "prepared_scenes-train.array_record-00000-of-00001"
    whole = records.read_bytes()
    records.write_bytes(whole[:100] + bytes(20) + whole[120:])
    with pytest.raises(UserError, match="example 0 of train: cannot be read: Corrupted"):
        source(root)[0]
    np.testing.assert_array_equal(source(root)[5].image, picture(5))  # the others can be read
    records.unlink()
    with pytest.raises(UserError, match=r"train\.array_record-00000-of-00001: no such file"):
        source(root)
    for name in ("features.json", "dataset_info.json"):
        (folder / name).write_text("{", encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}: is no JSON"):
            source(root)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_no_other_code_is_loaded(root, tmp_path, monkeypatch, key):
    (tmp_path / "spy_of_a_test.py").write_text("raise SystemExit('loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    path = root / FOLDER / "features.json"
    features = json.loads(path.read_text())
    scalar = features["featuresDict"]["features"]["number"]
    del scalar["pythonClassName"]
    scalar[key] = "spy_of_a_test.Feature"
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match="features.json: 'spy_of_a_test.Feature' is none of TFDS's"):
        source(root)
    assert "spy_of_a_test" not in sys.modules
