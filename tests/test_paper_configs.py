"""The experiments of the paper are configs: valid, with the paper's models and plans."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from lmseg_jax import assembly, configuration, plan, state
from lmseg_jax.errors import UserError
from lmseg_jax.models.heads import ManualHead
from tests.tiny import NAMES, tiny_config, vocabulary

SEMANTIC = ("ade20k", "coco_stuff", "cityscapes", "mapillary")
PANOPTIC = ("coco_panoptic", "ade20k_panoptic", "cityscapes_panoptic")
BUDGETS = {"semantic": (160, 320, 640), "panoptic": (320, 640, 960)}
METHODS = ("lmseg", "multi_head", "manual_taxonomy")
ROWS = [
    f"{task},{method},{budget}k"
    for task, cards in (("semantic", SEMANTIC), ("panoptic", PANOPTIC))
    for method in (*METHODS, *cards)
    for budget in BUDGETS[task]
]
MODELS = [
    f"{task},{method},320k"
    for task, cards in (("semantic", SEMANTIC), ("panoptic", PANOPTIC))
    for method in (*METHODS, *cards)
]
MODELS += [
    f"{task},lmseg,320k,{changes}"
    for task in BUDGETS
    for changes in (
        *("no_guidance", "no_daa", "no_guidance,no_daa", "text_visual", "rn101,no_daa"),
        "no_guidance,no_daa,imagenet",
    )
]
MODELS += [f"semantic,lmseg,160k,without_{card}" for card in ("ade20k", "coco_stuff")]
ABLATIONS = ("no_guidance", "no_daa", "no_guidance,no_daa", "text_visual", "imagenet", "rn101")


def load(row):
    config = configuration.load(f"paper:{row}")
    configuration.check(config)
    return config


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_its_datasets_and_its_share_of_the_budget(row):
    config, (task, method, budget) = load(row), row.split(",")
    cards = SEMANTIC if task == "semantic" else PANOPTIC
    joint = method in METHODS
    assert config.data.train == (cards if joint else (method,))
    share = 1 if joint else len(cards)
    assert config.optimizer.steps == int(budget[:-1]) * 1000 // share
    assert config.batching.batch == 16 and config.optimizer.rate == 1e-4


@pytest.mark.parametrize("task", BUDGETS)
@pytest.mark.parametrize("change", ABLATIONS)
def test_each_ablation_changes_what_it_names(task, change):
    plain, changed = load(f"{task},lmseg,320k"), load(f"{task},lmseg,320k,{change}")
    base, other = (configuration.flat(config) for config in (plain, changed))
    expected = {
        "no_guidance": {"model.decoder.order": "visual"},
        "text_visual": {"model.decoder.order": "text-visual"},
        "no_daa": {"data.augmentation": "fixed"},
        "imagenet": {
            "model.backbone": "resnet",
            "model.pixels": "imagenet",
            "pretrained.image": "torchvision/resnet50",
        },
        "rn101": {
            "model.resnet.depths": (3, 4, 23, 3),
            "model.text.embedding": 512,
            "pretrained.image": "openai/rn101",
            "pretrained.text": "openai/rn101",
        },
    }
    different = {key: other[key] for key in other if other[key] != base[key]}
    assert different == {k: v for name in change.split(",") for k, v in expected[name].items()}


def test_a_dataset_that_is_not_trained_on_is_asked_for():
    plain, config = load("semantic,lmseg,160k"), load("semantic,lmseg,160k,without_ade20k")
    base, other = (configuration.flat(found) for found in (plain, config))
    assert {key: other[key] for key in other if other[key] != base[key]} == {
        "data.train": ("coco_stuff", "cityscapes", "mapillary"),
        "data.evaluate": SEMANTIC,
    }
    for row in ("semantic,multi_head,160k,without_ade20k", "panoptic,lmseg,320k,without_ade20k"):
        with pytest.raises((ValueError, UserError), match="for lmseg .*without_CARD"):
            configuration.load(f"paper:{row}")


def test_imagenet_weights_are_those_of_the_asked_depth():
    config = load("semantic,multi_head,160k,rn101,imagenet")
    assert config.pretrained.image == "torchvision/resnet101" and not config.pretrained.text
    assert config.model.resnet.depths == (3, 4, 23, 3)


def test_datasets_share_updates_alike_and_keep_their_crops():
    config = load("semantic,lmseg,160k")
    names, batches = plan.batch_plan(config, assembly.load_cards(config))
    assert names == list(SEMANTIC) and batches.shares.tolist() == [0.25] * 4
    assert batches.shapes == [(512, 512), (640, 640), (512, 1024), (1280, 1280)]
    config = load("panoptic,lmseg,320k")
    names, batches = plan.batch_plan(config, assembly.load_cards(config))
    assert batches.shares[:2].sum() == pytest.approx(1 / 3, abs=1e-3)  # COCO, lying and upright
    assert batches.shapes[:2] == [(800, 1344), (1344, 800)]
    single = load("panoptic,ade20k_panoptic,320k")
    _, batches = plan.batch_plan(single, assembly.load_cards(single))
    assert batches.shares.tolist() == [1] and batches.programs() == [(16, 640, 640)]


@pytest.mark.parametrize("row", MODELS)
def test_each_model_can_be_built_and_its_updates_planned(row):
    """Budgets change neither. No array is made."""
    config = load(row)
    cards = assembly.load_cards(config)
    params, frozen = state.shapes(config.model, assembly.vocabulary_of(config, cards))
    head = row.split(",")[1]
    reads = head == "lmseg"
    assert ("prompt" in params) == ("text_encoder" in frozen) == reads
    guided = reads and "no_guidance" not in row
    assert len(params["decoder"]["layers"][0]["attentions"]) == (3 if guided else 2)
    trunk = sum(leaf.size for leaf in jax.tree.leaves(params["backbone"]))
    imagenet = row.endswith("imagenet")
    stem = 7 * 7 * 3 * 64 if imagenet else 3 * 3 * (3 * 32 + 32 * 32 + 32 * 64)
    blocks = 23_508_032 - 53_120 - 9_408  # torchvision's ResNet-50 without fc, norms and stem
    more = 17 * (1024 * 256 + 3 * 3 * 256 * 256 + 256 * 1024)  # 23 blocks in res4, not 6
    assert trunk == stem + blocks + ("rn101" in row) * more
    assert sum(leaf.size for leaf in jax.tree.leaves(params["pixel_decoder"])) == 7_540_480
    _, batches = plan.batch_plan(config, cards)
    assert batches.batch == 16
    given = np.zeros(len(batches.shapes))
    for update in range(batches.cycle):
        pieces = batches.pieces(update)
        assert sum(len(piece) for piece in pieces) == 16
        for piece in pieces:
            np.add.at(given, [source for source, _ in piece.rows], 1)
    np.testing.assert_allclose(given / given.sum(), batches.shares, rtol=1e-12)


def test_methods_begin_with_the_same_backbone_and_pixel_decoder():
    first = []
    guided = [("text", "visual-text"), ("text", "text-visual")]
    plain = [(head, "visual") for head in ("linear", "multi_head", "manual_taxonomy")]
    for head, order in guided + plain:
        config = tiny_config()
        config.model.decoder.layers = 1
        config.model.head, config.model.decoder.order = head, order
        words = vocabulary(NAMES[:1] if head == "linear" else NAMES)
        make = functools.partial(state.weights, config.model, 0, vocabulary=words)
        params, _ = jax.jit(make)()
        first.append({name: params[name] for name in ("backbone", "pixel_decoder")})
    for trunk in first[1:]:
        jax.tree.map(np.testing.assert_array_equal, trunk, first[0])


def tables(row):
    config = load(row)
    return state.class_tables(assembly.vocabulary_of(config, assembly.load_cards(config)))


def test_the_baselines_have_a_column_for_each_class_and_background():
    assert tables("semantic,multi_head,160k")["names"] == (151, 172, 20, 66)
    assert tables("panoptic,multi_head,320k")["names"] == (134, 151, 20)
    assert tables("semantic,cityscapes,160k")["names"] == (20,)
    union = ManualHead(8, **tables("semantic,manual_taxonomy,160k"), rngs=nnx.Rngs(0))
    assert union.classes.out_features == 316 + 1  # different first names, and background


@pytest.mark.parametrize(
    "row",
    [
        *("semantic", "semantic,cgd,160k", "video,lmseg,160k", "semantic,lmseg,160k,daa"),
        *("semantic,lmseg,1.5k", "semantic,lmseg,160k,no_guidance,text_visual"),
        "semantic,multi_head,160k,no_guidance",
    ],
)
def test_an_unknown_row_lists_the_known_ones(row):
    with pytest.raises((ValueError, UserError), match=re.escape("semantic | panoptic")):
        configuration.load(f"paper:{row}")
