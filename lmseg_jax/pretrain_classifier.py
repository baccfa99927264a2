"""Pre-training of an image-only encoder: worlds-clip's image tower as a plain classifier.

A linear layer on the mean feature tells the words of each kind apart; no text is read. What it is
told of a crop is what worlds-clip's naming loss tells: shape, colour, texture, coarse group, and
the stuff where there is no object. It stands where Table 4 of the paper has an encoder that was
pre-trained on ImageNet.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lmseg_jax.models.clip import Classifier
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.norms import Constant
from lmseg_jax.pipeline import crops as crops_module
from lmseg_jax.pipeline.crops import WORDS, Crops
from lmseg_jax.pretrain_captions import CHUNK, flipped, naming_loss, prepare
from lmseg_jax.pretrained import clip

NAME = "worlds_classifier"  # of the files that a run writes


def make_model(config: ConfigDict) -> Classifier:
    """A new model, with an output for each word."""
    return Classifier(
        sum(map(len, WORDS.values())),
        depths=config.model.resnet.depths,
        width=config.model.resnet.width,
        rngs=Rngs(config.seed),
    )


def targets(crops: Crops) -> dict[str, np.ndarray]:
    """What the loss compares images with, a row a crop."""
    return {"words": crops_module.truths(crops)}


def make_loss(graphdef: nnx.GraphDef, config: ConfigDict) -> Callable:
    """The `(params, constants, batch, step) -> (loss, (running averages, measurements))`."""
    del config

    def loss_fn(params, constants, batch, step):
        del step
        model = nnx.merge(graphdef, params, constants)
        logits = model(prepare(flipped(batch["image"], batch["flip"])), train=True)
        averages = nnx.to_pure_dict(nnx.state(model, Constant))
        return naming_loss(logits, batch["words"]), (averages, {})

    return loss_fn


def make_score(graphdef: nnx.GraphDef, config: ConfigDict) -> Callable:
    """`(state, crops) -> {attribute: percent}`: how often the right word has the largest output."""
    del config

    @jax.jit
    def classify(params, constants, images):
        return nnx.merge(graphdef, params, constants)(prepare(images))

    def score(state, crops):
        params, constants, _ = state
        parts = range(0, len(crops), CHUNK)
        logits = [classify(params, constants, crops.images[i : i + CHUNK]) for i in parts]
        return crops_module.accuracy(np.concatenate(logits), crops)

    return score


def write(
    path: Path, params: dict, image: dict, *, known: dict[str, np.ndarray], config: ConfigDict
) -> None:
    """Writes the image tower, as `pretrained.image` reads it; the linear layer is left out.

    Args:
      path: of the .safetensors file.
      params, known, config: not needed.
      image: tree of the image tower, running averages included.
    """
    del params, known, config
    clip.write_image(path, image)
