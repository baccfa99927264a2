"""Pre-training of worlds-clip: captioned crops, an image tower and a text tower.

Two losses: captions against images, and each crop against all words of one kind ("a disc", "a
ring", ...), half of the texts behind a random prompt such as LMSeg starts from.

Source: Radford et al., 2021; LMSeg Sec. 3.2 for what the towers are used for.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from lmseg_jax import tokenizer
from lmseg_jax.models.clip import Clip
from lmseg_jax.models.keys import Rngs
from lmseg_jax.models.norms import Constant
from lmseg_jax.pipeline import crops as crops_module
from lmseg_jax.pipeline.crops import Crops
from lmseg_jax.pretrained import clip

NAME = "worlds_clip"  # of the files that a run writes
LARGEST_SCALE = 100.0  # of cosine similarities, as in CLIP
CHUNK = 250  # images encoded at a time in evaluation
SHORT = 12  # tokens that a phrase fits in


def make_model(config: ConfigDict) -> Clip:
    """A new model."""
    text = {key: config.model.text[key] for key in ("width", "layers", "heads", "embedding")}
    resnet = config.model.resnet
    return Clip(
        config.pretrain.size,
        depths=resnet.depths,
        width=resnet.width,
        text=text,
        rngs=Rngs(config.seed),
    )


def targets(crops: Crops) -> dict[str, np.ndarray]:
    """What the losses compare images with, a row a crop."""
    return {
        "tokens": caption_tokens(crops.captions),
        "stated": crops_module.statements(crops.captions),
        "true": crops_module.facts(crops),
        "words": crops_module.truths(crops),
    }


def caption_tokens(captions: np.ndarray) -> np.ndarray:
    """i32 [N, S] with SOT and EOT, S as short as fits."""
    texts, where = np.unique(captions, return_inverse=True)
    full = tokenizer.tokenize_full(texts.tolist())
    longest = int((full != tokenizer.END).sum(axis=1).max()) + 1
    return full[where, :longest]


def phrase_tokens() -> np.ndarray:
    """Tokens of `crops.phrases` with each opening, i32 [openings, T, S]."""
    openings = [crops_module.phrases(opening) for opening in crops_module.OPENINGS]
    return np.stack([tokenizer.tokenize_full(texts, length=SHORT) for texts in openings])


def prepare(images: Array) -> Array:
    """uint8 -> f32 with CLIP's mean and standard deviation."""
    shape = (1, 1, 1, 3)
    mean, std = jnp.array(clip.MEAN).reshape(shape), jnp.array(clip.STD).reshape(shape)
    return (images.astype(jnp.float32) / 255 - mean) / std


def flipped(images: Array, flip: Array) -> Array:
    """Mirrors images [B, H, W, 3] left-right and upside-down where bool [B, 2] says so."""
    for axis in (2, 1):
        chosen = flip[:, 2 - axis].reshape(-1, 1, 1, 1)
        images = jnp.where(chosen, jnp.flip(images, axis), images)
    return images


def contrastive_loss(logits: Array, stated: Array, true: Array) -> Array:
    """Symmetric cross entropy of images and captions.

    loss = (CE(rows) + CE(columns)) / 2. Every caption that is true of an image is a positive of it,
    its own or another's: "red object" fits each red one. With its own caption alone as positive
    most "negatives" of such short captions are true, and shape is hardly learned. The target of a
    row or column is uniform over its positives.

    Args:
      logits: f32 [B, B], images by captions.
      stated: i32 [B, A], what each caption says of A attributes, -1 = nothing.
      true: i32 [B, A], the attributes of each image.

    Source: CLIP (Radford et al., 2021); several positives as in supervised contrastive learning
    (Khosla et al., 2020).
    """
    fits = (stated[None, :, :] == -1) | (stated[None, :, :] == true[:, None, :])
    positive = jnp.all(fits, axis=-1) | jnp.eye(len(logits), dtype=bool)

    def cross_entropy(logits, positive):
        target = positive / jnp.sum(positive, axis=1, keepdims=True)
        return jnp.mean(optax.softmax_cross_entropy(logits, target))

    return (cross_entropy(logits, positive) + cross_entropy(logits.T, positive.T)) / 2


def naming_loss(logits: Array, words: Array) -> Array:
    """Cross entropy of each crop against all words of one kind, mean over kinds and crops.

    Captions that differ in one word only are the negatives that teach shape and texture; among
    the captions of a batch they are rare.

    Args:
      logits: f32 [B, T], images by `crops.phrases`.
      words: i32 [B, kinds], see `crops.truths`; -1 = not asked.
    """
    losses, first = [], 0
    for kind, names in enumerate(crops_module.WORDS.values()):
        asked = (words[:, kind] >= 0).astype(jnp.float32)
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, first : first + len(names)], jnp.maximum(words[:, kind], 0)
        )
        losses.append(jnp.sum(entropy * asked) / jnp.maximum(jnp.sum(asked), 1.0))
        first += len(names)
    return jnp.mean(jnp.stack(losses))


def make_loss(graphdef: nnx.GraphDef, config: ConfigDict) -> Callable:
    """The `(params, constants, batch, step) -> (loss, (running averages, measurements))`."""
    count = config.batching.batch
    prompted = round(config.pretrain.prompted * count)
    width, length = config.model.text.width, config.model.text.prompt
    bank = phrase_tokens()

    def loss_fn(params, constants, batch, step):
        model = nnx.merge(graphdef, params, constants)
        images = model.encode_image(prepare(flipped(batch["image"], batch["flip"])), train=True)
        # Behind vectors like LMSeg's untrained prompt, so that the frozen tower knows such places.
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        prompt = config.model.text.prompt_std * jax.random.normal(key, (length, width))
        tokens = batch["tokens"]
        texts = [
            model.encode_text(tokens[:prompted], prompt=prompt),
            model.encode_text(tokens[prompted:]),
        ]
        phrases = jnp.asarray(bank)[step % len(bank)]
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(LARGEST_SCALE)))
        contrast = contrastive_loss(
            scale * images @ jnp.concatenate(texts).T, batch["stated"], batch["true"]
        )
        naming = [
            naming_loss(scale * images @ model.encode_text(phrases, prompt=p).T, batch["words"])
            for p in (None, prompt)
        ]
        naming = (naming[0] + naming[1]) / 2
        averages = nnx.to_pure_dict(nnx.state(model, Constant))
        measured = {"contrast": contrast, "naming": naming, "scale": scale}
        return contrast + config.pretrain.naming * naming, (averages, measured)

    return loss_fn


def make_score(graphdef: nnx.GraphDef, config: ConfigDict):
    """`(state, crops) -> {attribute: percent}`: zero-shot accuracy, plain and behind a prompt."""

    @jax.jit
    def encode_images(params, constants, images):
        return nnx.merge(graphdef, params, constants).encode_image(prepare(images))

    @jax.jit
    def encode_texts(params, constants, tokens, prompt):
        model = nnx.merge(graphdef, params, constants)
        return model.encode_text(tokens), model.encode_text(tokens, prompt=prompt)

    shape = (config.model.text.prompt, config.model.text.width)
    prompt = config.model.text.prompt_std * np.random.default_rng(0).standard_normal(shape)

    def score(state, crops):
        params, constants, _ = state
        parts = range(0, len(crops), CHUNK)
        images = [encode_images(params, constants, crops.images[i : i + CHUNK]) for i in parts]
        images = np.concatenate([np.asarray(part) for part in images])
        tokens = tokenizer.tokenize_full(crops_module.phrases("a"), length=SHORT)
        plain, behind = encode_texts(params, constants, tokens, prompt.astype(np.float32))
        behind = crops_module.zero_shot(images, np.asarray(behind), crops)
        return crops_module.zero_shot(images, np.asarray(plain), crops) | {
            f"{name}_prompted": value for name, value in behind.items()
        }

    return score


def write(
    path: Path, params: dict, image: dict, *, known: dict[str, np.ndarray], config: ConfigDict
) -> None:
    """Writes a worlds-clip file.

    Args:
      path: of the .safetensors file.
      params: of the whole model.
      image: tree of the image tower, running averages included.
      known: `targets` of training; the rows of the token table that they use are stored.
      config: of the run.
    """
    clip.write_clip(
        path,
        image=image,
        pool=params["pool"],
        text=params["text"],
        logit_scale=params["logit_scale"],
        rows=np.union1d(known["tokens"], phrase_tokens()),
        seed=config.seed,
        heads=config.model.text.heads,
    )
