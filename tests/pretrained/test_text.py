"""Names through the shipped text tower; the tower itself is compared in test_clip.py."""

import types

import numpy as np
import pytest

from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import text

NAMES = ("water", "striped object", "red object", "Red_Object")


@pytest.fixture(scope="module")
def vectors():
    return text.embed("worlds-clip", NAMES, template="a {name}")


def test_embeddings_have_length_one_and_equal_names_are_equal(vectors):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[3], atol=1e-6)
    assert vectors[1] @ vectors[2] > vectors[0] @ vectors[2]  # two objects, and water


def test_the_template_is_read_and_the_length_of_others_is_not(vectors):
    alone = text.embed("worlds-clip", ["a water"], template="{name}")
    np.testing.assert_allclose(alone[0], vectors[0], atol=1e-5)


def test_worlds_clip_knows_the_words_of_the_worlds_only():
    names = ("striped object", "refrigerator", "red refrigerator")
    assert text.read_in_training("worlds-clip", names).tolist() == [True, False, False]
    assert text.read_in_training("/somewhere/clip.safetensors", names).all()


def test_weights_without_a_text_tower_are_an_error(monkeypatch):
    stub = types.SimpleNamespace(text_config={}, names=types.SimpleNamespace(words="a ResNet"))
    monkeypatch.setattr(text.weights, "read", lambda source: stub)
    with pytest.raises(UserError, match="has no text tower; it is a ResNet"):
        text.embed("torchvision/resnet50", NAMES, template="{name}")
