"""What a config stands for: its datasets, their words, the model and its first weights."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmseg_jax import configuration, report, sharding, state, tokenizer
from lmseg_jax.datasets.card import DatasetCard, load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import VOID, Sample
from lmseg_jax.datasets.source import first
from lmseg_jax.datasets.world import WorldSource
from lmseg_jax.errors import UserError
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.pipeline.augmentation import choose_recipe
from lmseg_jax.pipeline.batches import Feed
from lmseg_jax.pipeline.buckets import Plan, split_shares, split_weights
from lmseg_jax.pipeline.orientation import by_orientation
from lmseg_jax.pipeline.policies import DRAWN, AnyPlan
from lmseg_jax.pretrained import weights as pretrained_weights
from lmseg_jax.scoring import EvaluationSet, Network, cross_table

CHECKPOINTS = "checkpoints"  # folder of a workdir


def dataset_names(config: ConfigDict) -> list[str]:
    """Cards of training, then those that are only evaluated; the order numbers the datasets."""
    train = list(config.data.train)
    return train + [name for name in config.data.evaluate if name not in train]


def load_cards(config: ConfigDict) -> list[DatasetCard]:
    """The cards of `dataset_names`, in that order."""
    return [load_card(name) for name in dataset_names(config)]


def vocabulary_of(config: ConfigDict, cards: list[DatasetCard]) -> dict[str, np.ndarray]:
    """tokens i32 [N, S], index i32 [M, K], valid bool [M, K] of the cards' names."""
    whole = config.data.names == "whole"
    names = [card.taxonomy.whole_names if whole else card.taxonomy.names for card in cards]
    return vocabulary_of_names(config.model, names)


def vocabulary_of_names(
    model: ConfigDict, taxonomies: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """The same of the names of each dataset; heads other than "text" read no tokens: N = 0."""
    if model.head != "text":
        _, index, valid = tokenizer.number_names(taxonomies)
        return {"tokens": np.zeros((0, 1), np.int32), "index": index, "valid": valid}
    text = model.text
    words = tokenizer.vocabulary(taxonomies, prompt=text.prompt, template=text.template)
    return {"tokens": words.tokens, "index": words.index, "valid": words.valid}


def training_feeds(config: ConfigDict, cards: list[DatasetCard]) -> list[Feed]:
    """The feeds of each training card, with its own or the fixed augmentation.

    One for a card, or one for each orientation of its images; see `pipeline.orientation`.
    """
    feeds = []
    for dataset, card in enumerate(cards[: len(config.data.train)]):
        source = open_source(card, config.data.train_split, root=config.data.root)
        recipe = choose_recipe(card, config.data.augmentation)
        feed = Feed(card.name, source, recipe, dataset)
        feeds += by_orientation(feed, on_error=config.data.on_error)
    return feeds


def training_plan(config: ConfigDict, feeds: Sequence[Feed]) -> AnyPlan:
    """Which feed gives which images to which update; the feeds of one card share its weight."""
    parts = [[] for _ in config.data.train]
    for feed in feeds:
        parts[feed.dataset].append(len(feed.source))
    return plan_of(config, [feed.recipe.crop for feed in feeds], parts)


def plan_of(
    config: ConfigDict, shapes: Sequence[tuple[int, int]], parts: Sequence[Sequence[int]]
) -> AnyPlan:
    """The plan of a config for sources of these crops.

    Args:
      config: of the run.
      shapes: (height, width) of each source's crops, dataset by dataset.
      parts: images of each source of each training card, one or two numbers a card.
    """
    batching = config.batching
    weights = list(batching.weights)
    sizes = {"batch": batching.batch, "multiple": batching.multiple}
    if batching.policy == "stratified":
        return Plan(shapes, split_weights(weights, parts), **sizes)
    shares = split_shares(weights, parts)
    return DRAWN[batching.policy](shapes, shares, **sizes, seed=config.seed)


def evaluation_sets(config: ConfigDict, cards: list[DatasetCard]) -> list[EvaluationSet]:
    """One set for each card that is scored: `data.evaluate`, or all of training."""
    scored = config.data.evaluate or config.data.train
    split, limit = config.data.evaluate_split, config.data.evaluate_limit
    sets = []
    for dataset, (name, card) in enumerate(zip(dataset_names(config), cards, strict=True)):
        if name in scored:
            source = open_source(card, split, root=config.data.root, limit=limit)
            test = card.test.times(config.evaluation.scale)
            sets.append(EvaluationSet(source, replace(card, test=test), dataset))
    return sets


def without_truth(sample: Sample) -> Sample:
    """The same image with every pixel void, so that it can be asked in any words."""
    nothing = np.zeros(0, np.int32)
    return replace(
        sample,
        segments=np.full_like(sample.segments, VOID),
        classes=nothing,
        area=nothing,
        crowd=nothing.astype(bool),
    )


def worlds_by_taxonomies(
    network: Network, sets: Sequence[EvaluationSet], config: ConfigDict
) -> dict:
    """The worlds x taxonomies table, see `scoring.cross_table`; empty with the scenes of one world.

    Raises:
      UserError: `evaluation.scenes` names a card whose scenes are not rendered, and so not known in
        every taxonomy.
    """
    words = [data for data in sets if data.card.format == "world"]
    scenes = [data.card for data in words]
    if config.evaluation.scenes:
        scenes = [load_card(name) for name in config.evaluation.scenes]
        for card in scenes:
            if card.format != "world":
                raise UserError(
                    f"config.evaluation.scenes: {card.name} is no world, so nobody knows its images"
                    " in other words"
                )
        scale = config.evaluation.scale
        scenes = [replace(card, test=card.test.times(scale)) for card in scenes]
    if len(scenes) < 2:
        return {}

    def relabel(scenes: DatasetCard, words: DatasetCard):
        source = WorldSource(scenes, config.data.evaluate_split, labels=words)
        return first(source, config.data.evaluate_limit)

    return cross_table(network, scenes, words, relabel, config)


def initial_state(
    config: ConfigDict,
    mesh: Mesh,
    *,
    vocabulary: state.Vocabulary | None = None,
    begun: tuple[dict, dict] = ({}, {}),
) -> tuple[state.TrainState, state.TrainState]:
    """The state before the first update, sharded, with pretrained weights where asked for.

    Args:
      config: of the run.
      mesh: over which the state is split.
      vocabulary: of all datasets; heads other than "text" need it.
      begun: weights that `params` and `frozen` begin with, any branches of them; those of
        `pretrained.model`, from `finetuning.begin`.

    Returns:
      The state and its shardings.

    Raises:
      UserError: the weights do not fit the model; the message names the config key.
    """
    optimizer = make_optimizer(config.optimizer)
    average = config.optimizer.average > 0

    def begin(params, frozen):
        return state.start(params, frozen, optimizer, average=average)

    def create():
        return state.weights(config.model, config.seed, vocabulary=vocabulary)

    params, frozen = state.shapes(config.model, vocabulary)
    shardings = sharding.state_shardings(jax.eval_shape(begin, params, frozen), mesh)
    known = tuple(dict(half) for half in begun)
    for part, halves in pretrained(config, params, frozen).items():
        for half, tree in zip(known, halves, strict=True):
            half |= {part: tree} if tree else {}

    def random():
        # what is known is never drawn: nothing of it is left in the compiled program
        return tuple(map(state.remaining, create(), known))

    params, frozen = map(state.join, jax.jit(random)(), known)
    placed = jax.device_put((params, frozen), (shardings.params, shardings.frozen))
    return jax.jit(begin, out_shardings=shardings)(*placed), shardings


def abstract_state(
    config: ConfigDict, mesh: Mesh, *, vocabulary: dict[str, np.ndarray]
) -> tuple[state.TrainState, state.TrainState]:
    """The state before the first update as `jax.ShapeDtypeStruct`s, and its shardings."""
    optimizer = make_optimizer(config.optimizer)
    params, frozen = state.shapes(config.model, vocabulary)
    average = config.optimizer.average > 0
    begun = jax.eval_shape(
        lambda params, frozen: state.start(params, frozen, optimizer, average=average),
        params,
        frozen,
    )
    shardings = sharding.state_shardings(begun, mesh)
    return abstract(begun, shardings), shardings


def pretrained(config: ConfigDict, params: dict, frozen: dict) -> dict[str, tuple[dict, dict]]:
    """The parts of the model that start from weights: {part: (params, frozen)}.

    Args:
      config: of the run.
      params, frozen: shapes of the whole model's.

    Raises:
      UserError: weights do not fit; the message names the config key.
    """
    loaded = {}
    if config.pretrained.image:
        weights = pretrained_weights.read(config.pretrained.image)
        resnet = config.model.resnet
        pretrained_weights.check_image(
            weights, backbone=config.model.backbone, depths=resnet.depths, width=resnet.width
        )
        trees = params["backbone"], frozen.get("backbone", {})
        filled = pretrained_weights.fill_image(weights, state.join(*trees))
        loaded["backbone"] = state.split_like(trees, filled)
    if config.pretrained.text:
        weights = pretrained_weights.read(config.pretrained.text)
        text = config.model.text
        pretrained_weights.check_text(
            weights,
            width=text.width,
            layers=text.layers,
            heads=text.heads,
            embedding=text.embedding,
        )
        tree = frozen["text_encoder"]
        loaded["text_encoder"] = ({}, pretrained_weights.fill_text(weights, tree))
    return loaded


def abstract(tree, shardings):
    """ShapeDtypeStructs of a tree of arrays, with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def evaluated_weights(train_state: state.TrainState) -> tuple[dict, dict]:
    """(params, frozen) that are evaluated and exported: the moving average where there is one."""
    return train_state.average or train_state.params, train_state.frozen


def fingerprint(config: ConfigDict, cards: list[DatasetCard], feeds: list[Feed]) -> dict:
    """What must agree for a workdir to be gone on with; see `configuration.fingerprint`."""
    files = {}
    for feed in feeds:
        if cards[feed.dataset].format == "world":
            files[feed.name] = [(feed.name, config.data.train_split, str(len(feed.source)))]
        else:
            files[feed.name] = [feed.source.files(i) for i in range(len(feed.source))]
    return configuration.fingerprint(config, cards[: len(config.data.train)], files)


def refuse_other(found: dict, asked: dict, workdir: Path) -> None:
    """Raises UserError with every difference if a workdir was made with another config."""
    differences = configuration.differences(found, asked)
    if differences:
        raise UserError(
            f"{workdir} was made with another config ({'; '.join(differences)}): "
            "go on with that config, or name a new --workdir"
        )


def write_run(workdir: Path, config: ConfigDict, cards: Sequence[DatasetCard]) -> None:
    """Writes what a workdir was made of: resolved config, cards and versions, as run.json."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")
    report.write_json(
        workdir / "run.json",
        {
            "config": config.to_dict(),
            "cards": {card.name: Path(card.path).read_text() for card in cards},
            "versions": {name: importlib.metadata.version(name) for name in packages},
        },
    )
