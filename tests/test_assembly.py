import jax
import numpy as np
import pytest

from lmseg_jax import assembly, sharding
from lmseg_jax.errors import UserError
from tests.tiny import tiny_config
from tests.tiny_tree import write_tree


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


def test_the_vocabulary_ends_each_dataset_with_background(config):
    words = assembly.vocabulary_of(config, assembly.load_cards(config))
    assert words["valid"].sum(axis=1).tolist() == [5 + 1, 9 + 1]
    last = [row[valid][-1] for row, valid in zip(words["index"], words["valid"], strict=True)]
    assert last[0] == last[1]  # one row of tokens for both


def test_an_image_without_truth_is_all_void(config):
    data = assembly.evaluation_sets(config, assembly.load_cards(config))[0]
    sample = assembly.without_truth(data.source[0])
    assert (sample.segments == -1).all() and len(sample.classes) == 0


def test_leaves_are_dealt_out_to_where_they_live():
    trees = ({"a": {"w": 1}, "b": 2}, {"a": {"mean": 3}})
    values = {"a": {"w": 10, "mean": 30}, "b": 20}
    assert assembly.split_like(trees, values) == ({"a": {"w": 10}, "b": 20}, {"a": {"mean": 30}})


def test_weights_of_another_width_are_refused_by_key(config):
    config.model.resnet.norm = "frozen"
    config.pretrained.image = "worlds-clip"
    mesh = sharding.make_mesh(1, 1, multiple=2)
    with pytest.raises(UserError, match="model.resnet"):
        assembly.initial_state(config, mesh)


def test_pretrained_text_is_taken_over_exactly():
    from configs import demo
    from lmseg_jax.pretrained import clip

    config = demo.get_config()
    first, _ = assembly.initial_state(config, sharding.make_mesh(1, 1, multiple=2))
    weights = clip.read_clip("worlds-clip")
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
