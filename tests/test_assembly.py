import jax
import numpy as np
import pytest

from lmseg_jax import assembly, sharding, state
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.errors import UserError
from lmseg_jax.pipeline.policies import DRAWN
from lmseg_jax.tokenizer import END
from tests.tiny import tiny_config
from tests.tiny_tree import CARD, write_tree


@pytest.fixture
def config():
    config = tiny_config()
    config.data.train = ("world_patterns", "world_colors")
    return config


def test_datasets_are_numbered_training_first(config):
    config.data.evaluate = ("world_coarse", "world_colors")
    cards = assembly.load_cards(config)
    assert [card.name for card in cards] == ["world_patterns", "world_colors", "world_coarse"]
    sets = assembly.evaluation_sets(config, cards)
    assert [(data.card.name, data.dataset) for data in sets] == [
        ("world_colors", 1),
        ("world_coarse", 2),
    ]


@pytest.mark.parametrize("head", ["multi_head", "manual_taxonomy"])
def test_classes_without_text_are_numbered_by_the_names_of_the_cards(config, head):
    cards = assembly.load_cards(config)
    text = assembly.vocabulary_of(config, cards)
    config.model.head, config.model.decoder.order = head, "visual"
    words = assembly.vocabulary_of(config, cards)
    assert words["tokens"].shape[0] == 0
    np.testing.assert_array_equal(words["index"], text["index"])
    np.testing.assert_array_equal(words["valid"], text["valid"])
    params, frozen = jax.eval_shape(lambda: state.weights(config.model, 0, vocabulary=words))
    tables = params["head"]["classes"]
    counts = [len(card.taxonomy) + 1 for card in cards]
    if head == "multi_head":
        assert [tables[i]["bias"].shape for i in range(2)] == [(n,) for n in counts]
    else:
        names = {name for card in cards for name in card.taxonomy.names}
        assert tables["bias"].shape == (len(names) + 1,)
    assert not {"prompt", "adapter", "text_encoder"} & {*params, *frozen}


def test_the_vocabulary_ends_each_dataset_with_background(config):
    words = assembly.vocabulary_of(config, assembly.load_cards(config))
    assert words["valid"].sum(axis=1).tolist() == [5 + 1, 9 + 1]
    last = [row[valid][-1] for row, valid in zip(words["index"], words["valid"], strict=True)]
    assert last[0] == last[1]  # one row of tokens for both


def test_a_class_is_read_by_its_first_name_or_by_all_of_them(config):
    config.data.train = ("ade20k",)
    cards = assembly.load_cards(config)
    road = [category.name for category in cards[0].taxonomy.categories].index("road")

    def ids(kind, template="{name}"):
        config.data.names, config.model.text.template = kind, template
        words = assembly.vocabulary_of(config, cards)
        row = words["tokens"][words["index"][0, road]]
        return row[: row.tolist().index(END)].tolist()

    assert ids("first") == [1759]
    assert ids("whole") == [1759, 267, 5261]  # "road, route"
    assert ids("first", "a photo of {name}") == [320, 1125, 539, 1759]


def test_a_whole_name_that_does_not_fit_names_the_class(config, tmp_path):
    synonyms = ", ".join(f'"box {i}"' for i in range(30))
    card = CARD.replace('name = "box",', f'name = "box", synonyms = [{synonyms}],')
    config.data.train = (write_tree(tmp_path, card=card),)
    cards = assembly.load_cards(config)
    assembly.vocabulary_of(config, cards)
    config.data.names = "whole"
    with pytest.raises(UserError, match="class name 'box, box 0, .* tokens; at most 67 fit"):
        assembly.vocabulary_of(config, cards)


def test_the_test_size_of_every_card_is_scaled(config):
    config.evaluation.scale = 0.75
    for data in assembly.evaluation_sets(config, assembly.load_cards(config)):
        assert data.test == data.card.test
        assert data.test.short_side == 96  # 128 on the card


def test_a_world_can_be_asked_about_the_scenes_of_others(config, monkeypatch):
    config.data.train, config.data.evaluate_limit = ("world_colors",), 2
    config.evaluation.scenes, config.evaluation.scale = ("world_patterns", "world_colors"), 0.75
    sets = assembly.evaluation_sets(config, assembly.load_cards(config))
    asked = {}

    def noted(network, worlds, sets, relabel, config):
        (words,) = sets
        for world in worlds:
            asked[world.name] = (world.test.short_side, relabel(world, words.card))
        return asked

    monkeypatch.setattr(assembly, "cross_table", noted)
    assert assembly.worlds_by_taxonomies(None, sets, config) is asked
    assert list(asked) == ["world_patterns", "world_colors"]
    for name, (side, scenes) in asked.items():
        own = open_source(load_card(name), "val", root="")[1]
        assert side == 96 and len(scenes) == 2
        np.testing.assert_array_equal(scenes[1].image, own.image)
        colors = len(load_card("world_colors").taxonomy.names)
        assert scenes[1].classes.max() < colors
        same = len(scenes[1].classes) == len(own.classes) and (scenes[1].classes == own.classes)
        assert np.all(same) == (name == "world_colors")


def test_scenes_that_nobody_knows_in_other_words_are_refused(config):
    config.evaluation.scenes = ("world_colors", "camvid")
    with pytest.raises(UserError, match="evaluation.scenes: camvid is no world"):
        assembly.worlds_by_taxonomies(None, [], config)


def test_an_image_without_truth_is_all_void(config):
    data = assembly.evaluation_sets(config, assembly.load_cards(config))[0]
    sample = assembly.without_truth(data.source[0])
    assert (sample.segments == -1).all() and len(sample.classes) == 0


def test_weights_of_another_width_are_refused_by_key(config):
    config.model.resnet.norm = "frozen"
    config.pretrained.image = "worlds-clip"
    mesh = sharding.make_mesh(1, 1, multiple=2)
    with pytest.raises(UserError, match="model.resnet"):
        assembly.initial_state(config, mesh)


def test_pretrained_text_is_taken_over_exactly():
    from configs import demo
    from lmseg_jax.pretrained.weights import read

    config = demo.get_config()
    first, _ = assembly.initial_state(config, sharding.make_mesh(1, 1, multiple=2))
    weights = read("worlds-clip")
    projection = np.asarray(weights.tensors["text_projection"], np.float32)
    leaves = jax.tree_util.tree_leaves_with_path(first.frozen["text_encoder"])
    assert any(np.array_equal(leaf, projection) for _, leaf in leaves)
    assert "text_encoder" not in first.params


def test_differences_are_named(tmp_path):
    with pytest.raises(UserError, match="optimizer.rate"):
        assembly.refuse_other({"optimizer.rate": 1.0}, {"optimizer.rate": 2.0}, tmp_path)


def test_cards_that_are_only_evaluated_do_not_change_the_fingerprint(config):
    def fingerprint():
        cards = assembly.load_cards(config)
        return assembly.fingerprint(config, cards, assembly.training_feeds(config, cards))

    before = fingerprint()
    config.data.evaluate = ("world_coarse",)
    assert fingerprint() == before


@pytest.fixture
def oriented(config, tmp_path):
    """A config that mixes a world with six lying and two upright images."""
    config.data.train = ("world_patterns", write_tree(tmp_path))
    config.data.root = str(tmp_path)
    return config


def test_a_dataset_with_whole_images_trains_from_two_feeds(oriented):
    feeds = assembly.training_feeds(oriented, assembly.load_cards(oriented))
    assert [(feed.name, feed.dataset, len(feed.source)) for feed in feeds] == [
        ("world_patterns", 0, 20_000),
        ("tiny/landscape", 1, 6),
        ("tiny/portrait", 1, 2),
    ]
    oriented.batching.batch, oriented.batching.multiple = 8, 1
    plan = assembly.training_plan(oriented, feeds)
    assert plan.shapes == [(96, 96), (64, 128), (128, 64)]
    np.testing.assert_array_equal(plan.offsets(5), [20, 15, 5])


@pytest.mark.parametrize(
    ("policy", "shapes"),
    [
        ("one_dataset", [(96, 96), (64, 128), (128, 64)]),
        ("padded", [(128, 128)] * 3),
    ],
)
def test_the_feeds_of_one_dataset_share_its_weight_under_every_policy(oriented, policy, shapes):
    oriented.batching.policy, oriented.batching.weights = policy, (1, 3)
    plan = assembly.training_plan(
        oriented, assembly.training_feeds(oriented, assembly.load_cards(oriented))
    )
    assert isinstance(plan, DRAWN[policy]) and plan.shapes == shapes
    np.testing.assert_allclose(plan.shares, [1 / 4, 3 / 4 * 6 / 8, 3 / 4 * 2 / 8])
    oriented.seed = 1
    other = assembly.training_plan(
        oriented, assembly.training_feeds(oriented, assembly.load_cards(oriented))
    )
    assert any(plan.pieces(update) != other.pieces(update) for update in range(9))


def test_without_dataset_aware_augmentation_every_dataset_is_one_feed(oriented):
    oriented.data.augmentation = "fixed"
    feeds = assembly.training_feeds(oriented, assembly.load_cards(oriented))
    assert [feed.name for feed in feeds] == ["world_patterns", "tiny"]
    for feed in feeds:
        assert feed.recipe.crop == (512, 512) and feed.recipe.detr_crop is None
        assert feed.recipe.order == ("resize", "crop", "color", "flip")
    plan = assembly.training_plan(oriented, feeds)
    assert plan.shapes == [(512, 512)] * 2 and plan.cycle == 1


def test_the_fingerprint_lists_the_files_of_both_orientations(oriented):
    cards = assembly.load_cards(oriented)
    found = assembly.fingerprint(oriented, cards, assembly.training_feeds(oriented, cards))
    assert found["files of tiny/landscape"].startswith("6 files")
    assert found["files of tiny/portrait"].startswith("2 files")
    assert found["data.train"] == ["world_patterns", "tiny"]
    assert "card tiny" in found
