"""docs/fidelity.md is true: its tests exist, its rows are complete, its defaults are ours."""

import re
from pathlib import Path

import pytest

from lmseg_jax import configuration

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "fidelity.md").read_text(encoding="utf-8")

DEFAULTS = {  # numbers of the paper, or of MaskFormer where it says nothing
    "batching.batch": 16,
    "batching.policy": "stratified",
    "batching.weights": (),
    "data.augmentation": "own",
    "data.names": "first",
    "loss.classification": 1.0,
    "loss.focal": 20.0,
    "loss.dice": 1.0,
    "loss.no_object": 0.1,
    "loss.unlabelled": "excluded",
    "matcher.classification": 1.0,
    "matcher.focal": 20.0,
    "matcher.dice": 1.0,
    "model.adapter_norm": False,
    "model.dtype": "float32",
    "model.remat": "none",
    "model.decoder.dropout": 0.1,
    "model.decoder.feedforward": 2048,
    "model.decoder.heads": 8,
    "model.decoder.layers": 6,
    "model.decoder.memory": "res5",
    "model.decoder.order": "visual-text",
    "model.decoder.padding": "hidden",
    "model.decoder.queries": "zeros",
    "model.head": "text",
    "model.pixel_decoder.name": "fpn",
    "model.queries": 100,
    "model.query_mlp": False,
    "model.resnet.norm": "frozen",
    "model.similarity": "cosine",
    "model.temperature": 0.07,
    "model.temperature_learned": False,
    "model.text.prompt": 8,
    "model.text.prompt_std": 0.02,
    "model.text.template": "{name}",
    "optimizer.backbone_rate": 0.1,
    "optimizer.clip": 0.01,
    "optimizer.decay": 1e-4,
    "optimizer.power": 0.9,
    "optimizer.rate": 1e-4,
    "optimizer.schedule": "poly",
    "optimizer.steps": 160_000,
    "optimizer.warmup": 0,
}


def test_defaults_are_those_of_the_table():
    base = configuration.flat(configuration.load("base"))
    assert {key: base[key] for key in DEFAULTS} == DEFAULTS


def test_every_test_that_the_table_names_is_there():
    named = re.findall(r"`([a-z_/]+\.py)(?:::(\w+))?`", PAGE)
    tests = [(path, name) for path, name in named if path.split("/")[-1].startswith("test_")]
    assert len(tests) > 50
    for path, name in tests:
        assert f"def {name}" in (TESTS / path).read_text(encoding="utf-8"), (path, name)


def test_every_key_that_the_page_names_exists():
    base = configuration.flat(configuration.load("base"))
    sections = "data|batching|model|pretrained|loss|matcher|optimizer|evaluation"
    keys = set(re.findall(rf"`((?:{sections})\.[a-z_.]+[a-z])`", PAGE))
    assert len(keys) > 30 and keys <= set(base)


@pytest.mark.parametrize("number", range(1, 32))
def test_every_open_question_of_the_paper_has_a_row(number):
    assert re.search(rf"^\|[^|]*\bA{number}\b[^|]*\|", PAGE, re.MULTILINE)


def test_every_row_has_all_columns():
    table = next(part for part in PAGE.split("\n\n") if part.startswith("| topic | paper"))
    rows = table.splitlines()
    cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
    assert cells == {9}  # seven columns between the outer bars
