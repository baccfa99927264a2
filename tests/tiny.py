"""The smallest LMSeg that has every part, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from lmseg_jax import assembly, checkpoint, state, tokenizer
from lmseg_jax.optimizer import make_optimizer
from lmseg_jax.step import make_step

NAMES = (("red disc", "sky", "dog"), ("dog", "water"))


def tiny_config():
    """A few thousand trainable values, images of 64x64, two datasets."""
    config = base.get_config()
    config.batching.batch, config.batching.multiple = 4, 2
    config.data.max_targets = 4
    config.model.queries, config.model.width = 6, 16
    config.model.resnet.depths, config.model.resnet.width = (1, 1, 1, 1), 8
    config.model.resnet.norm = "group"
    config.model.pixel_decoder.width, config.model.pixel_decoder.groups = 16, 4
    config.model.decoder.layers, config.model.decoder.heads = 2, 2
    config.model.decoder.feedforward, config.model.decoder.dropout = 24, 0.0
    config.model.text.width, config.model.text.layers = 16, 1
    config.model.text.heads, config.model.text.embedding = 2, 16
    config.pretrained.image = config.pretrained.text = ""
    config.matcher.where = "device"  # programs with a callback never reach the compilation cache
    config.optimizer.steps = 4
    config.optimizer.backbone_rate = 1.0
    return config


def begin(config, mesh):
    """The programs of an update of a tiny model, and the state before the first one."""
    first, shardings = assembly.initial_state(config, mesh)
    step = make_step(
        config,
        state.graph(config.model),
        make_optimizer(config.optimizer),
        vocabulary=vocabulary(),
        mesh=mesh,
        shardings=shardings,
    )
    return step, first


def vocabulary(names=NAMES):
    """tokens, index and valid of two datasets with a name in common."""
    words = tokenizer.vocabulary(names)
    return {"tokens": words.tokens, "index": words.index, "valid": words.valid}


def batch(seed: int, *, dataset: int, images: int = 2, size=(64, 64), targets: int = 4):
    """Random images of square segments; two unused targets, void and padding pixels."""
    rng = np.random.default_rng(seed)
    height, width = size
    segments = np.full((images, height, width), -1, np.int16)
    segments[:, :24, :40] = 0
    segments[:, 24:56, 8:48] = 1
    segments[:, -4:] = -2
    classes = np.full((images, targets), -1, np.int32)
    classes[:, :2] = rng.integers(0, len(NAMES[dataset]), (images, 2))
    return {
        "image": rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8),
        "segments": segments,
        "classes": classes,
        "dataset": np.full(images, dataset, np.int32),
    }


def text(names: int = 4, *, width: int = 16, seed: int = 0):
    """Text of one dataset with random embeddings."""
    rng = np.random.default_rng(seed)
    return {
        "embeddings": jnp.asarray(rng.normal(size=(1, names, width)), jnp.float32),
        "valid": jnp.ones((1, names), bool),
    }


def weights_of(config, *, vocabulary=None):
    """(params, frozen) of which nothing is drawn by JAX, so nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = state.shapes(config.model, vocabulary)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def write_workdir(folder, config, weights):
    """A workdir as training leaves it: the evaluated weights are the newest moving average."""
    params, frozen = weights
    checkpoints = checkpoint.Checkpoints(folder / assembly.CHECKPOINTS, keep=2, every=1)
    for step in (4, 8):
        saved = {
            "step": np.int32(step),
            "params": jax.tree.map(lambda leaf: leaf + 1, params),
            "frozen": frozen,
            "optimizer": {},
            "average": params if step == 8 else jax.tree.map(np.zeros_like, params),
        }
        checkpoints.save(step, saved, {})
    checkpoints.close()
    assembly.write_run(folder, config, assembly.load_cards(config))
