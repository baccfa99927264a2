"""Writes tests/fixtures/metrics.json: random maps and what the official evaluations say of them.

    PYTHONPATH=PANOPTICAPI python tests/goldens/metrics.py

Needs, beside this project, cityscapesscripts 2.3.0 (`pip install cityscapesscripts`) and a checkout
of https://github.com/cocodataset/panopticapi at 1ad5afa, whose folder is PANOPTICAPI. Tests need
neither: they read the file.
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as cityscapes_panoptic
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes_semantic
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from panopticapi import evaluation as panopticapi
from PIL import Image

TARGET = Path(__file__).resolve().parents[1] / "fixtures" / "metrics.json"
CATEGORIES = {3: 0, 7: 1, 8: 0, 12: 1, 200: 0, 201: 1}  # id -> isthing; no gap-free numbers
IMAGES, SIZE = 8, (9, 12)


def segments_of(rng, ids, known):
    return {int(i): int(rng.choice(known)) for i in ids if i}


def truth_of(rng, known, *, blocks=(3, 4), crowds=0.25, void=0.15):
    """Ids [H, W] in blocks, and COCO's list of segments; areas are the visible ones."""
    scale = (SIZE[0] // blocks[0], SIZE[1] // blocks[1])
    ids = np.kron(rng.integers(1, 8, blocks), np.ones(scale, int)) * 301
    ids[rng.random(SIZE) < void] = 0
    classes = segments_of(rng, np.unique(ids), known)
    listed = [
        {
            "id": i,
            "category_id": category,
            "area": int(np.sum(ids == i)),
            "iscrowd": int(CATEGORIES[category] and rng.random() < crowds),
        }
        for i, category in classes.items()
    ]
    return ids, listed


def prediction_of(rng, truth, listed, known, *, noise=0.25, void=0.05):
    """Ids and list that often agree with the truth."""
    ids = np.where(truth == 0, rng.choice([0, 301, 602], SIZE), truth) + 5
    stray = rng.random(SIZE) < noise
    ids[stray] = rng.choice(np.append(np.unique(ids), 70_000), stray.sum())
    ids[rng.random(SIZE) < void] = 0
    right = {row["id"] + 5: row["category_id"] for row in listed}
    drawn = segments_of(rng, np.unique(ids), known)
    chosen = {i: right.get(i, c) if rng.random() < 0.75 else c for i, c in drawn.items()}
    return ids, [{"id": i, "category_id": c} for i, c in chosen.items()]


def suites():
    """Name -> images, each (truth ids, its list, predicted ids, its list)."""
    known, found = list(CATEGORIES), {}
    rng = np.random.default_rng(0)

    def add(name, make):
        found[name] = [make(i) for i in range(IMAGES)]

    def plain(i):
        truth, listed = truth_of(rng, known)
        return truth, listed, *prediction_of(rng, truth, listed, known)

    def recorded(i):
        """Areas of the list are larger than what is seen, and a segment is not seen at all."""
        truth, listed = truth_of(rng, known)
        for row in listed:
            row["area"] += int(rng.integers(0, 4))
        listed.append({"id": 9000, "category_id": int(rng.choice(known)), "area": 5, "iscrowd": 0})
        return truth, listed, *prediction_of(rng, truth, listed, known)

    def crowded(i):
        """Most things are crowds, several of a class, and the truth has much void."""
        truth, listed = truth_of(rng, [7, 7, 12, 3], crowds=0.8, void=0.4)
        return truth, listed, *prediction_of(rng, truth, listed, known, noise=0.4)

    def empty(i):
        """No prediction, no truth, or neither."""
        truth, listed = truth_of(rng, known)
        predicted, chosen = prediction_of(rng, truth, listed, known)
        if i % 4 in (1, 3):
            truth, listed = np.zeros(SIZE, int), []
        if i % 4 in (2, 3):
            predicted, chosen = np.zeros(SIZE, int), []
        return truth, listed, predicted, chosen

    def ties(i):
        """Segments of few cells: IoUs and void shares of exactly one half."""
        truth, listed = truth_of(rng, [3, 7], blocks=(9, 12), void=0.3)
        return truth, listed, *prediction_of(rng, truth, listed, [3, 7], noise=0.2)

    def absent(i):
        """Only one stuff class is there; things are neither there nor predicted."""
        truth, listed = truth_of(rng, [3])
        return truth, listed, *prediction_of(rng, truth, listed, [3, 8])

    add("plain", plain)
    add("recorded areas", recorded)
    add("crowds", crowded)
    add("empty images", empty)
    add("ties", ties)
    add("absent classes", absent)
    return found


def save(path, ids):
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)


def panoptic_scores(module, images):
    """What panopticapi or cityscapesscripts says, as {group: {pq, sq, rq, n}} and of each class."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for i, (truth, listed, predicted, chosen) in enumerate(images):
            save(Path(folder, f"t{i}.png"), truth)
            save(Path(folder, f"p{i}.png"), predicted)
            pairs.append(
                (
                    {"image_id": i, "file_name": f"t{i}.png", "segments_info": listed},
                    {
                        "image_id": i,
                        "file_name": f"p{i}.png",
                        "segments_info": [dict(row) for row in chosen],
                    },
                )
            )
        categories = {key: {"isthing": thing} for key, thing in CATEGORIES.items()}
        with contextlib.redirect_stdout(io.StringIO()):
            found = module.pq_compute_single_core(0, pairs, folder, folder, categories)
    scores = {}
    for name, thing in (("all", None), ("things", True), ("stuff", False)):
        try:
            scores[name] = found.pq_average(categories, thing)[0]
        except ZeroDivisionError:  # no class of this kind was there
            scores[name] = None
    scores["classes"] = {
        key: {
            "iou": float(found[key].iou),
            "tp": found[key].tp,
            "fp": found[key].fp,
            "fn": found[key].fn,
        }
        for key in CATEGORIES
    }
    return scores


def semantic_suites():
    """Name -> (truth, prediction) pairs of Cityscapes' label ids, uint8."""
    rng = np.random.default_rng(1)
    valid = [label.id for label in cityscapes_labels if not label.ignoreInEval]
    void = [label.id for label in cityscapes_labels if label.ignoreInEval and label.id >= 0]

    def maps(truth_ids, predicted_ids, right=0.6):
        pairs = []
        for _ in range(IMAGES):
            truth = np.kron(rng.choice(truth_ids, (3, 4)), np.ones((3, 3), int))
            other = rng.choice(predicted_ids, SIZE)
            pairs.append((truth, np.where(rng.random(SIZE) < right, truth, other)))
        return pairs

    return {
        "all classes": maps(valid * 3, valid),
        "void in the truth": maps(valid + void, valid),
        "void in the prediction": maps(valid + void, valid + void),
        "few classes in the truth": maps([7, 11, 24, 3], [7, 8, 11, 24, 26]),
        "nothing but void": maps(void, valid, right=0),
    }


def semantic_scores(pairs):
    """cityscapesscripts' IoU of each evaluated class and their average; None instead of NaN."""
    arguments = cityscapes_semantic.args
    arguments.quiet, arguments.JSONOutput, arguments.evalInstLevelScore = True, False, False
    with tempfile.TemporaryDirectory() as folder:
        truths, predictions = [], []
        for i, (truth, predicted) in enumerate(pairs):
            for name, array, files in (("t", truth, truths), ("p", predicted, predictions)):
                files.append(str(Path(folder, f"{name}{i}.png")))
                Image.fromarray(array.astype(np.uint8)).save(files[-1])
        found = cityscapes_semantic.evaluateImgLists(predictions, truths, arguments)
    ids = {label.name: label.id for label in cityscapes_labels if not label.ignoreInEval}

    def known(value):
        return None if np.isnan(value) else value

    return {
        "average": known(found["averageScoreClasses"]),
        "iou": {ids[name]: known(found["classScores"][name]) for name in ids},
    }


def main():
    panoptic, semantic = [], []
    for name, images in suites().items():
        scores = panoptic_scores(panopticapi, images)
        assert scores == panoptic_scores(cityscapes_panoptic, images), "the two references differ"
        rows = [
            {
                "truth": truth.tolist(),
                "truth_segments": listed,
                "prediction": predicted.tolist(),
                "prediction_segments": chosen,
            }
            for truth, listed, predicted, chosen in images
        ]
        panoptic.append({"name": name, "images": rows, "scores": scores})
    for name, pairs in semantic_suites().items():
        rows = [{"truth": t.tolist(), "prediction": p.tolist()} for t, p in pairs]
        semantic.append({"name": name, "images": rows, "scores": semantic_scores(pairs)})
    whole = {"categories": CATEGORIES, "panoptic": panoptic, "semantic": semantic}
    TARGET.write_text(json.dumps(whole, separators=(",", ":")) + "\n")
    print(TARGET, TARGET.stat().st_size)
    for suite in panoptic:
        print(suite["name"], suite["scores"]["all"], suite["scores"]["things"])
    for suite in semantic:
        print(suite["name"], suite["scores"])


if __name__ == "__main__":
    main()
