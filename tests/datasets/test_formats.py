import dataclasses
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from lmseg_jax.datasets.card import Files, load_card, shipped_cards
from lmseg_jax.datasets.formats import FORMATS, open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.errors import UserError
from lmseg_jax.taxonomy import Category, Taxonomy

ROAD, PERSON, SKY = (128, 64, 128), (220, 20, 60), (70, 130, 180)


def make_card(**changes):
    """Ids 7 = road, 3 = person, 5 = sky; 255 and black are void; images and labels by split."""
    classes = (
        Category(7, "road", False, ROAD),
        Category(3, "person", True, PERSON),
        Category(5, "sky", False, SKY),
    )
    card = dataclasses.replace(
        load_card("camvid"),
        name="roads",
        path="roads.toml",
        format="label_png",
        taxonomy=Taxonomy("roads", classes, (255,)),
        splits={"train": 2, "val": 1},
        files=Files(
            folder="roads",
            images=("{split}/{name}.jpg", "{split}/{name}.png"),
            labels="{split}_labels/{name}.png",
        ),
    )
    return dataclasses.replace(card, **changes)


def write(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)


LABELS = np.array([[7, 7, 7], [3, 255, 3]], np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two images in train, b before a by time but not by name; one label each."""
    for name, suffix in (("b", "png"), ("a", "jpg")):
        write(tmp_path / f"roads/train/{name}.{suffix}", np.full((2, 3, 3), 90, np.uint8))
        write(tmp_path / f"roads/train_labels/{name}.png", LABELS)
    return tmp_path


def test_a_sample_has_one_segment_for_each_class_that_occurs(root):
    sample = open_source(make_card(), "train", root=root)[0]
    assert sample.classes.tolist() == [0, 1]
    assert sample.area.tolist() == [3, 2]
    assert sample.crowd.tolist() == [False, False]
    assert sample.segments.tolist() == [[0, 0, 0], [1, -1, 1]]
    assert semantic_map(sample).tolist() == [[0, 0, 0], [1, -1, 1]]
    assert sample.image.shape == (2, 3, 3)
    assert (sample.dataset, sample.name) == ("roads", "a")


def test_a_class_that_is_absent_leaves_no_gap(root):
    write(root / "roads/train_labels/a.png", np.full((2, 3), 5, np.uint8))
    sample = open_source(make_card(), "train", root=root)[0]
    assert sample.classes.tolist() == [2]
    assert sample.segments.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_samples_are_sorted_by_name_and_several_suffixes_are_found(root):
    source = open_source(make_card(), "train", root=root)
    assert len(source) == 2
    assert source.files(0) == ("roads/train/a.jpg", "roads/train_labels/a.png")
    assert source.files(1) == ("roads/train/b.png", "roads/train_labels/b.png")


def test_a_limit_keeps_the_first_samples(root):
    source = open_source(make_card(), "train", root=root, limit=1)
    assert len(source) == 1
    assert source[0].name == "a"
    with pytest.raises(IndexError):
        source[1]


@pytest.mark.parametrize("limit", [0, 1])
def test_a_source_survives_pickling(root, limit):
    source = pickle.loads(pickle.dumps(open_source(make_card(), "train", root=root, limit=limit)))
    assert source[0].classes.tolist() == [0, 1]


def test_a_palette_label_is_read_as_indices(root):
    palette = Image.new("P", (3, 2))
    palette.putdata(LABELS.ravel().tolist())
    palette.putpalette([(7 * i) % 256 for i in range(768)])
    palette.save(root / "roads/train_labels/a.png")
    sample = open_source(make_card(), "train", root=root)[0]
    assert semantic_map(sample).tolist() == [[0, 0, 0], [1, -1, 1]]


def test_mapillary_is_read_as_downloaded(tmp_path):
    """Its palette has the colours of the classes, but it is the index that counts; 65 is void."""
    card = dataclasses.replace(load_card("mapillary"), splits={"val": 1})
    folder = tmp_path / "mapillary_vistas/validation"
    write(folder / "images/one.jpg", np.zeros((2, 3, 3), np.uint8))
    write(folder / "instances/one.png", np.zeros((2, 3), np.uint16))
    label = Image.new("P", (3, 2))
    label.putdata([13, 27, 65, 13, 64, 0])
    label.putpalette([*card.taxonomy.colors.ravel().tolist(), 0, 0, 0])
    (folder / "labels").mkdir()
    label.save(folder / "labels/one.png")
    sample = open_source(card, "val", root=tmp_path)[0]
    assert semantic_map(sample).tolist() == [[13, 27, -1], [13, 64, 0]]


def test_a_16_bit_label_keeps_its_ids(root):
    taxonomy = Taxonomy("roads", (Category(300, "road", False, ROAD),), (0,))
    write(root / "roads/train_labels/a.png", np.array([[300, 300, 0]] * 2, np.uint16))
    sample = open_source(make_card(taxonomy=taxonomy), "train", root=root)[0]
    assert semantic_map(sample).tolist() == [[0, 0, -1]] * 2


def test_an_unmapped_id_names_the_file_and_the_id(root):
    write(root / "roads/train_labels/b.png", np.array([[7, 11, 3], [12, 7, 7]], np.uint8))
    source = open_source(make_card(), "train", root=root)
    with pytest.raises(
        UserError, match=r"train_labels/b\.png: unmapped label id 11, 12: .*roads\.toml"
    ):
        source[1]


def test_an_image_and_a_label_of_other_sizes_are_both_named(root):
    write(root / "roads/train_labels/a.png", np.full((4, 5), 7, np.uint8))
    with pytest.raises(UserError, match=r"a\.jpg is 3x2.*a\.png is 5x4"):
        open_source(make_card(), "train", root=root)[0]


def test_colours_become_classes(root):
    card = make_card(format="color_png", void_colors=((0, 0, 0),))
    colours = np.array([[ROAD, ROAD, SKY], [PERSON, (0, 0, 0), SKY]], np.uint8)
    for mode in ("RGB", "RGBA"):
        write(root / "roads/train_labels/a.png", colours, mode)
        sample = open_source(card, "train", root=root)[0]
        assert semantic_map(sample).tolist() == [[0, 0, 2], [1, -1, 2]]


def test_an_unmapped_colour_is_an_error(root):
    card = make_card(format="color_png", void_colors=((0, 0, 0),))
    colours = np.array([[ROAD, (255, 255, 255), (1, 2, 3)]] * 2, np.uint8)
    write(root / "roads/train_labels/a.png", colours)
    with pytest.raises(UserError, match=r"a\.png: unmapped label colour \(1, 2, 3\), \(255, 255"):
        open_source(card, "train", root=root)[0]


@pytest.mark.parametrize(
    ("format", "label", "words"),
    [
        ("label_png", np.zeros((2, 3, 3), np.uint8), "with colours.*color_png"),
        ("color_png", LABELS, "without colours.*label_png"),
    ],
)
def test_the_wrong_kind_of_label_file_says_which_format_fits(root, format, label, words):
    write(root / "roads/train_labels/a.png", label)
    with pytest.raises(UserError, match=words):
        open_source(make_card(format=format), "train", root=root)[0]


def test_a_missing_root_names_the_key_the_path_and_the_source(tmp_path):
    card = make_card(about={"source": "example.org"})
    with pytest.raises(
        UserError, match=r"config\.data\.root \(--root\) is '.*nowhere'.*example\.org"
    ):
        open_source(card, "train", root=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.data\.root \(--root\) is not set"):
        open_source(card, "train", root="")


def test_a_missing_folder_is_named(root):
    with pytest.raises(UserError, match=r"roads/val.*: no such folder"):
        open_source(make_card(), "val", root=root)


def test_an_empty_split_is_an_error(root):
    (root / "roads/val").mkdir()
    (root / "roads/val_labels").mkdir()
    with pytest.raises(UserError, match=r"roads/val is empty.*roads/val/\{name\}\.jpg"):
        open_source(make_card(), "val", root=root)


def test_an_unknown_split_lists_the_known_ones(root):
    with pytest.raises(UserError, match="no split 'test'; the card has train, val"):
        open_source(make_card(), "test", root=root)


def test_an_unknown_format_lists_the_known_ones(root):
    with pytest.raises(UserError, match="'voc'.*label_png, color_png, .*world"):
        open_source(make_card(format="voc"), "train", root=root)


def test_every_shipped_card_has_a_reader():
    assert {load_card(name).format for name in shipped_cards()} <= set(FORMATS)


def test_label_files_cannot_make_a_panoptic_card(root):
    with pytest.raises(UserError, match="task is 'panoptic'.*no instances"):
        open_source(make_card(task="panoptic"), "train", root=root)


def test_an_option_that_nobody_reads_is_an_error(root):
    with pytest.raises(UserError, match=r"options\.offset"):
        open_source(make_card(options={"offset": 1}), "train", root=root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ""}, r"roads\.toml: files\.labels is missing; label_png needs it"),
        ({"images": ()}, r"roads\.toml: files\.images is missing"),
        ({"segments": "a.json"}, r"roads\.toml: files\.segments is not read by label_png"),
    ],
)
def test_files_that_do_not_fit_the_format_are_named(root, changes, words):
    files = dataclasses.replace(make_card().files, **changes)
    with pytest.raises(UserError, match=words):
        open_source(make_card(files=files), "train", root=root)


def test_an_image_without_a_label_is_an_error(root):
    (root / "roads/train_labels/a.png").unlink()
    with pytest.raises(UserError, match=r"a\.jpg has no label .*a\.png \(1 of 2"):
        open_source(make_card(), "train", root=root)


def test_two_images_of_one_name_are_an_error(root):
    write(root / "roads/train/a.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"train/a\.png and .*train/a\.jpg are both"):
        open_source(make_card(), "train", root=root)


def test_images_and_labels_may_share_a_folder_and_names_may_have_folders(tmp_path):
    files = Files(images=("{split}/x_{name}.png",), labels="{split}/x_{name}_labels.png")
    write(tmp_path / "train/x_town/one.png", np.zeros((2, 3, 3), np.uint8))
    write(tmp_path / "train/x_town/one_labels.png", LABELS)
    write(tmp_path / "train/readme.png", LABELS)
    source = open_source(make_card(files=files), "train", root=tmp_path)
    assert [source[i].name for i in range(len(source))] == ["town/one"]


def test_a_split_may_have_another_name_in_the_files(root):
    files = dataclasses.replace(make_card().files, split_names={"val": "train"})
    assert len(open_source(make_card(files=files), "val", root=root)) == 2


@pytest.mark.parametrize("text", ["b\na", "train/b.png\n\n train/a.jpg \n"])
def test_a_list_gives_names_and_order_without_a_final_newline(root, text):
    files = dataclasses.replace(make_card().files, list="{split}.txt")
    (root / "roads/train.txt").write_text(text)
    source = open_source(make_card(files=files), "train", root=root)
    assert [source.files(i)[0] for i in range(len(source))] == [
        "roads/train/b.png",
        "roads/train/a.jpg",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("a\nc", r"train\.txt: line 2: 'c'"), ("a\n../a", r"line 2"), ("a\nb\na", "line 3.*line 1")],
)
def test_a_list_that_does_not_fit_names_the_line(root, text, words):
    files = dataclasses.replace(make_card().files, list="{split}.txt")
    (root / "roads/train.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        open_source(make_card(files=files), "train", root=root)


def test_a_list_that_is_missing_is_named(root):
    files = dataclasses.replace(make_card().files, list="{split}.txt")
    with pytest.raises(UserError, match=r"roads/train\.txt"):
        open_source(make_card(files=files), "train", root=root)


def test_a_world_needs_no_root():
    source = open_source(load_card("world_coarse"), "val", root="", limit=3)
    assert len(source) == 3
    assert source[0].dataset == "world_coarse"


@pytest.mark.parametrize(("name", "split"), [("camvid", "val"), ("labelmefacade", "val")])
def test_real_data_can_be_read(name, split):
    root = os.environ.get("LMSEG_DATA", "")
    card = load_card(name)
    if not root or not os.path.isdir(os.path.join(root, card.files.folder)):
        pytest.skip(f"LMSEG_DATA names no folder with {card.files.folder}")
    source = open_source(card, split, root=root)
    assert len(source) == card.splits[split]
    sample = source[len(source) // 2]
    assert sample.image.shape[:2] == sample.segments.shape
    assert len(sample.classes) > 2
