"""A trained model ready to be asked: any image, in a trained taxonomy's words or in any others."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lmseg_jax import (
    label_space,
    loading,
    postprocess,
    scoring,
    segmentation,
    state,
    tokenizer,
)
from lmseg_jax.datasets.card import TASKS
from lmseg_jax.datasets.recipe import TestRule
from lmseg_jax.datasets.sample import PADDING, Sample
from lmseg_jax.errors import UserError
from lmseg_jax.label_space import LabelSpace
from lmseg_jax.models.lmseg import MULTIPLE
from lmseg_jax.taxonomy import Taxonomy, plain

PROGRAMS = 16  # compiled programs that are kept; each takes megabytes
WORDS = 64  # lists of names whose embeddings are kept
FEWEST_NAMES, FEWEST_TOKENS = 16, 4  # more are padded to a power of two, so programs are shared


@dataclass(frozen=True)
class Asked:
    """Names on the device.

    Attributes:
      text: `embeddings` f32 [M, K, D] and `valid` bool [M, K] of the model's call.
      dataset: row of `text`.
      columns: columns of each class, background last; several where a class has several words.
    """

    text: dict[str, jax.Array]
    dataset: int
    columns: tuple[tuple[int, ...], ...]


def load(path: str | Path) -> "Segmenter":
    """A segmenter from what training, `lmseg export` or `lmseg convert` wrote.

    Needs no config file and no data.

    Args:
      path: workdir of a training run (its newest checkpoint; the moving average of the weights
        where there is one), folder of an export or of a whole converted model, or "worlds", the
        checkpoint that is shipped.

    Raises:
      UserError: there is no such checkpoint, it is broken, or it holds no segmentation model.
    """
    return of_stored(loading.read(path))


def of_stored(found: loading.Stored) -> "Segmenter":
    """A segmenter of a model that `loading` has read."""
    return Segmenter(
        found.model,
        found.params,
        found.frozen,
        spaces=found.spaces,
        vocabulary=found.vocabulary,
        text=found.text,
    )


class Segmenter:
    """Weights on one device, and the words they were trained with.

    Programs are compiled once for each image size and number of names (padded to a power of two),
    embeddings of names computed once; the last ones are kept. Several threads may ask at once.

    Args:
      model: `config.model` of a run.
      params, frozen: weights, nested dicts of arrays.
      spaces: the label spaces of training by name, in the order of the model's datasets.
      vocabulary: tokens, index and valid of their names; see `assembly.vocabulary_of`.
      text: f32 [M, K, D], embeddings of their names, None = made when they are first asked for.
        A model of head "text" without a text tower needs them and knows no other words.
    """

    def __init__(
        self,
        model: ConfigDict,
        params: dict,
        frozen: dict,
        *,
        spaces: Mapping[str, LabelSpace],
        vocabulary: Mapping[str, np.ndarray],
        text: np.ndarray | None = None,
    ):
        self.model = model
        self.spaces = dict(spaces)
        self.vocabulary = dict(vocabulary)
        self.text = text
        self.params, self.frozen = jax.device_put((params, frozen))
        self._network = state.without_text(self.params), state.without_text(self.frozen)
        readers, network = (state.graph(model, vocabulary, text=read) for read in (True, False))

        def encode(params, frozen, tokens, index, valid):
            return state.merge(readers, params, frozen).encode_text(tokens, index, valid)

        def predict(params, frozen, text, dataset, image, valid):
            whole = state.merge(network, params, frozen)
            found = whole(image[None], text, dataset[None], valid=valid[None], last=True)
            return found["logits"][0, 0], found["masks"][0, 0]

        self._encode, self._predict = jax.jit(encode), jax.jit(predict)
        self._programs: OrderedDict[tuple, jax.stages.Compiled] = OrderedDict()
        self._words: OrderedDict[tuple, Asked] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def taxonomies(self) -> dict[str, Taxonomy]:
        """The taxonomies of training by name."""
        return {name: space.taxonomy for name, space in self.spaces.items()}

    @property
    def text_free(self) -> bool:
        """Whether it knows only words whose embeddings it has."""
        return self.model.head == "text" and "text_encoder" not in self.frozen

    def embeddings(
        self, *, taxonomy: str | None = None, classes: Sequence[str] | None = None
    ) -> np.ndarray:
        """What the network is told of the names asked for, f32 [names + 1, D], background last.

        Classes of several words have a row for each word.

        Raises:
          UserError: see `raw`; or the model reads no words.
        """
        head = self.model.head
        if head != "text":
            raise UserError(f"this model has head {head!r}: its classes are numbers, without words")
        _, words = label_space.look_up(self.spaces, taxonomy, classes, head=head)
        asked = self._asked(taxonomy, words)
        rows = np.asarray(asked.text["embeddings"][asked.dataset])
        return rows[: asked.columns[-1][-1] + 1]

    def text_of_training(self) -> np.ndarray:
        """Embeddings of the names of all taxonomies of training, f32 [M, K, D]."""
        return np.asarray(self._asked(next(iter(self.spaces)), ()).text["embeddings"])

    def raw(
        self,
        image: np.ndarray,
        *,
        taxonomy: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the network says about an image as it is: normalised, neither resized nor padded.

        Args:
          image: uint8 [H, W, 3], RGB; H and W are multiples of 32.
          taxonomy, classes: what to look for, see `segment`.

        Returns:
          Class logits f32 [Q, names + 1], background last, and mask logits f32 [Q, H/4, W/4]
          before the sigmoid, both of the last decoder layer.

        Raises:
          ValueError: the image has another type or size, there is no such taxonomy, the model
            cannot read words, or it is not said what to look for.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 [H, W, 3], RGB")
        height, width = image.shape[:2]
        if not height or not width or height % MULTIPLE or width % MULTIPLE:
            raise ValueError(
                f"image is {height} x {width}; height and width must be multiples of {MULTIPLE}:"
                " pad or resize it first"
            )
        _, words = label_space.look_up(self.spaces, taxonomy, classes, head=self.model.head)
        return self._run(image, np.ones(image.shape[:2], bool), self._asked(taxonomy, words))

    def segment(
        self,
        image: np.ndarray | Image.Image | str | Path,
        classes: Sequence[str] | None = None,
        *,
        taxonomy: str | None = None,
        task: str = "semantic",
        things: Sequence[str] | None = None,
        scores: bool = False,
    ) -> segmentation.Segmentation:
        """Finds classes in an image of any size.

        The image is resized by the test rule of the taxonomy (of the first one of a union; of
        training's first one for free words) and padded right and bottom to multiples of 32, and
        free words to a power of two from 16 on. A program is compiled at most once for each such
        canvas and number of names; the last 16 are kept.

        Args:
          image: uint8 [H, W, 3], [H, W, 4] (alpha is dropped) or [H, W]; a PIL image or a path.
          classes: any words, for heads that read text. Commas part words for one class
            ("sofa, couch"): its probability is the sum of theirs. Their order only numbers them.
          taxonomy: one of `taxonomies`, which may be left out if there is only one; for heads that
            read text also a shipped card or the path of a card that the model was not trained on,
            or a union "a+b", whose equal names count once. With `classes`, which must then be
            names of it: only these, with their ids and colours.
          task: "semantic", a class for each pixel, or "panoptic", segments that may leave pixels
            empty.
          things: which of the classes have instances. None = as the taxonomy says; free words are
            things, except those that are stuff wherever training names them.
          scores: True fills `Segmentation.scores`.

        Raises:
          UserError: the image cannot be read, or see `raw`.
        """
        if task not in TASKS:
            raise UserError(f"task={task!r}: expected one of {', '.join(TASKS)}")
        space, words = label_space.look_up(self.spaces, taxonomy, classes, head=self.model.head)
        if things is not None:
            space = replace(space, taxonomy=label_space.with_things(space.taxonomy, things))
        pixels = segmentation.pixels(image)
        height, width = pixels.shape[:2]
        none = np.zeros(0, np.int32)
        void = np.full((height, width), -1, np.int32)
        sample = Sample(pixels, void, none, none, none.astype(bool), "", "")
        item = scoring.prepare(
            sample, space.test or TestRule(min(height, width), max(height, width))
        )
        asked = self._asked(taxonomy, words)
        logits, masks = self._run(item.image, item.segments != PADDING, asked)
        found = space.taxonomy
        if task == "panoptic":
            segments, info = postprocess.panoptic(
                logits,
                masks,
                padded=item.image.shape[:2],
                network=item.network,
                size=(height, width),
                things=found.things,
                object_mask=space.object_mask,
                overlap=space.overlap,
            )
            labels = void if not info else postprocess.instances_to_semantic(segments, info)
            shares = np.array([0.0] + [segment["score"] for segment in info], np.float32)[segments]
        else:
            view = postprocess.View(logits, masks, item.image.shape[:2], item.network)
            resize = "masks" if space.task == "panoptic" else "scores"
            labels, shares = postprocess.semantic_scored(view, size=(height, width), resize=resize)
            segments = labels + 1
            info = [
                {
                    "id": int(k) + 1,
                    "category": int(k),
                    "thing": bool(found.things[k]),
                    "score": float(shares[labels == k].mean()),
                }
                for k in np.unique(labels)
            ]
        return segmentation.Segmentation(
            labels,
            segments,
            segmentation.described(segments, info),
            found,
            shares if scores else None,
        )

    def _run(
        self, image: np.ndarray, valid: np.ndarray, asked: Asked
    ) -> tuple[np.ndarray, np.ndarray]:
        """`raw` of checked arguments; valid bool [H, W] is False where the image is padding."""
        operands = (*self._network, asked.text, np.int32(asked.dataset), image, valid)
        key = (image.shape, asked.text["valid"].shape)
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self._predict.lower(*operands).compile()
                if len(self._programs) > PROGRAMS:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
            program = self._programs[key]
        logits, masks = jax.device_get(program(*operands))
        return _by_class(logits, asked.columns), masks

    def _asked(self, taxonomy: str | None, words: tuple[tuple[str, ...], ...]) -> Asked:
        """The words of a call, embedded."""
        if taxonomy is None and not words:
            (taxonomy,) = self.spaces
        key = words or taxonomy
        with self._lock:
            if key not in self._words:
                self._words[key] = self._read(words) if words else self._trained(taxonomy)
                if len(self._words) > WORDS:
                    self._words.popitem(last=False)
            self._words.move_to_end(key)
            return self._words[key]

    def _read(self, words: Sequence[Sequence[str]]) -> Asked:
        """Any words and background, as the only row of the text, padded."""
        names = [plain(word) for texts in words for word in texts]
        count = len(names) + 1
        k = _at_least(count, FEWEST_NAMES)
        valid = np.arange(k)[None] < count
        if self.text_free:
            rows = np.zeros((1, k, self.text.shape[-1]), np.float32)
            rows[0, :count] = self._recalled(names)
            text = {"embeddings": rows, "valid": valid}
        else:
            of_text = self.model.text
            rows = tokenizer.vocabulary([names], prompt=of_text.prompt, template=of_text.template)
            s = _at_least(rows.tokens.shape[1], FEWEST_TOKENS)
            s = min(s, tokenizer.LENGTH - 1 - of_text.prompt)
            tokens = np.full((k, s), tokenizer.END, np.int32)
            tokens[:count, : rows.tokens.shape[1]] = rows.tokens[rows.index[0]]
            index = np.arange(k, dtype=np.int32)[None]
            text = self._encode(self.params, self.frozen, tokens, index, valid)
        ends = np.cumsum([len(texts) for texts in words])
        columns = [tuple(range(e - len(texts), e)) for e, texts in zip(ends, words, strict=True)]
        return Asked(jax.device_put(text), 0, (*columns, (count - 1,)))

    def _recalled(self, names: Sequence[str]) -> np.ndarray:
        """Rows of names and background, from those that came with the weights."""
        known = {}
        for rows, space in zip(self.text, self.spaces.values(), strict=True):
            named = (*space.taxonomy.names, tokenizer.BACKGROUND)
            for name, row in zip(named, rows, strict=False):
                known.setdefault(plain(name), row)
        missing = [name for name in names if name not in known]
        if missing:
            listed = ", ".join(name for name in known if name != tokenizer.BACKGROUND)
            raise UserError(
                f"this model has no text tower (it was exported with --text-free), so it cannot"
                f" read {missing[0]!r}; the words it knows: {listed}"
            )
        return np.stack([known[name] for name in (*names, tokenizer.BACKGROUND)])

    def _trained(self, taxonomy: str) -> Asked:
        """A taxonomy of training, in the words of training."""
        if self.text is None:
            text = self._encode(self.params, self.frozen, **self.vocabulary)
        else:
            text = jax.device_put({"embeddings": self.text, "valid": self.vocabulary["valid"]})
        dataset = list(self.spaces).index(taxonomy)
        count = len(self.spaces[taxonomy].taxonomy) + 1
        return Asked(text, dataset, tuple((i,) for i in range(count)))


def _at_least(count: int, least: int) -> int:
    """The smallest power of two times `least` that holds `count`."""
    while least < count:
        least *= 2
    return least


def _by_class(logits: np.ndarray, columns: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [Q, classes + 1]: log-sum-exp over the columns of a class, so probabilities add up."""
    if all(len(places) == 1 for places in columns):
        return logits[:, [places[0] for places in columns]]
    classes = [np.logaddexp.reduce(logits[:, list(places)], axis=1) for places in columns]
    return np.stack(classes, axis=1)
