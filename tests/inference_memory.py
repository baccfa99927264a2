"""Memory of inference at original resolution: `python -m tests.inference_memory [--check]`.

A JPEG of 4000x3000 pixels goes the whole way on the host: decoded, resized as Mapillary is tested
(short side 2048), its masks of 100 queries and 65 classes at a quarter of that as the network's
output, then the label map and the segments at 4000x3000. Random numbers stand for the network.
Prints the peak of the process, which has to stay below 3 GB; `--check` computes the label map and
the segments once more, over whole arrays, and compares (a few minutes).
"""

import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image

from lmseg_jax import postprocess, scoring
from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.images import read_image
from lmseg_jax.datasets.sample import Sample

HEIGHT, WIDTH, QUERIES, CLASSES, LIMIT = 3000, 4000, 100, 65, 3e9


class RandomNetwork:
    """Blobs instead of a model: a query is high in a few places, and sure of one class."""

    local = SimpleNamespace(size=1)

    def __call__(self, batch):
        _, h, w, _ = batch["image"].shape
        rng = np.random.default_rng(0)
        coarse = rng.normal(size=(16, 24, QUERIES)).astype(np.float32) * 6 - 4
        masks = np.empty((1, QUERIES, h // 4, w // 4), np.float32)
        for query in range(QUERIES):
            masks[0, query] = cv2.resize(
                coarse[..., query], (w // 4, h // 4), interpolation=cv2.INTER_CUBIC
            )
        logits = 6 * rng.normal(size=(1, QUERIES, CLASSES + 1)).astype(np.float32)
        self.answer = logits[0], masks[0], (h, w)
        return {"logits": logits, "masks": masks}


class OnePhotograph:
    """A source of one image, whose truth is void."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image, nothing = read_image(self.path), np.zeros(0, np.int32)
        void = np.full(image.shape[:2], -1, np.int32)
        return Sample(image, void, nothing, nothing, nothing > 0, "photograph", "0")


def peak():
    """Largest resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def direct(logits, masks, *, padded, network):
    """The label map of scores that exist as a whole: [65, h, w] at the network's size."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (shares / shares.sum(axis=1, keepdims=True))[:, :-1]
    scores = np.zeros((CLASSES, *network), np.float32)
    for query in range(QUERIES):
        full = cv2.resize(masks[query], padded[::-1], interpolation=cv2.INTER_LINEAR)
        inside = 1 / (1 + np.exp(-full[: network[0], : network[1]]))
        for label in range(CLASSES):
            scores[label] += shares[query, label] * inside
    best, labels = np.full((HEIGHT, WIDTH), -np.inf, np.float32), np.zeros((HEIGHT, WIDTH), int)
    for label in range(CLASSES):
        score = cv2.resize(scores[label], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        labels[score > best] = label
        np.maximum(best, score, out=best)
    return labels


def direct_segments(logits, masks, *, padded, network, things):
    """The segments when nothing is below a threshold: whole masks, one query after the other."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    best, owner = np.zeros((HEIGHT, WIDTH), np.float32), np.full((HEIGHT, WIDTH), -1)
    areas = {}
    for query, (label, score) in enumerate(zip(shares.argmax(1), shares.max(1), strict=True)):
        if label == CLASSES:
            continue
        full = cv2.resize(masks[query], padded[::-1], interpolation=cv2.INTER_LINEAR)
        part = full[: network[0], : network[1]]
        part = cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        areas[query] = np.count_nonzero(part >= 0)
        inside = score / (1 + np.exp(-part))
        owner[inside > best] = query
        np.maximum(best, inside, out=best)
    ids, stuff, count = np.zeros(QUERIES + 1, np.int32), {}, 0  # the last row: nobody's
    for query in areas:
        label = int(shares[query].argmax())
        if areas[query] == 0 or not np.any(owner == query):
            continue
        if not things[label] and label in stuff:
            ids[query] = stuff[label]
            continue
        count += 1
        ids[query] = stuff[label] = count
    return ids[owner]


def run(argv):
    """Measures, prints, and says by its exit status whether the limit holds."""
    card = load_card("mapillary")
    start = peak()
    network = RandomNetwork()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photograph.jpg")
        noise = np.random.default_rng(1).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(path)
        for task in ("semantic", "panoptic"):
            # thresholds that keep nearly every query: the most work
            chosen = replace(card, task=task, object_mask=0.0, overlap=0.0)
            data, began = scoring.EvaluationSet(OnePhotograph(path), chosen, 0), time.monotonic()
            scoring.evaluate_set(network, data, batch=1, threads=2)
            seconds = time.monotonic() - began
            print(f"{task}: peak {peak() / 1e9:.2f} GB, {seconds:.1f} s", flush=True)
    print(f"the process had {start / 1e9:.2f} GB before; masks {network.answer[1].shape}")
    below = peak() < LIMIT
    if "--check" in argv:
        logits, masks, padded = network.answer
        sizes = {"padded": padded, "network": network_size(card)}
        labels = postprocess.semantic(logits, masks, **sizes, size=(HEIGHT, WIDTH))
        differ = np.mean(labels != direct(logits, masks, **sizes))
        print(f"{100 * differ:.5f} % of the labels differ from the direct computation")
        things = np.arange(CLASSES) % 2 == 0
        segments, info = postprocess.panoptic(
            logits,
            masks,
            **sizes,
            size=(HEIGHT, WIDTH),
            things=things,
            object_mask=0.0,
            overlap=0.0,
        )
        differ = np.mean(segments != direct_segments(logits, masks, **sizes, things=things))
        print(f"{100 * differ:.5f} % of the pixels of {len(info)} segments differ")
    return 0 if below else 1


def network_size(card):
    """Height and width that the test rule gives the photograph."""
    void = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    nothing = np.zeros(0, np.int32)
    sample = Sample(void, void[..., 0], nothing, nothing, nothing > 0, "", "")
    return scoring.prepare(sample, card.test).network


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
