"""Predictions in files, to be scored: perfect ones, official ones, and one of a tiny dataset."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lmseg_jax.datasets.card import load_card
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.datasets.sample import semantic_map
from lmseg_jax.score import main
from tests.roads import plant

GOLDEN = Path(__file__).parent / "fixtures/metrics.json"


def save(path, array, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, kind)).save(path)


def colors(ids):
    ids = np.asarray(ids)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)


def write_semantic(card, split, *, root, folder, limit=0):
    """The truth as the prediction of a perfect model; void becomes the id 0."""
    source = open_source(card, split, root=root, limit=limit)
    for index in range(len(source)):
        labels = semantic_map(source[index])
        ids = np.where(labels < 0, 0, card.taxonomy.ids[labels])
        save(folder / f"{Path(source.files(index)[0]).stem}.png", ids)


def write_panoptic(card, split, *, root, folder, limit=0):
    """Likewise; ids of segments need all three channels, segments without pixels are left out."""
    source, annotations = open_source(card, split, root=root, limit=limit), []
    for index in range(len(source)):
        sample, name = source[index], f"{Path(source.files(index)[0]).stem}.png"
        ids = np.where(sample.segments < 0, 0, 70_000 * (sample.segments + 1))
        save(folder / name, colors(ids))
        rows = [
            {"id": 70_000 * (i + 1), "category_id": int(card.taxonomy.ids[k])}
            for i, k in enumerate(sample.classes)
            if np.any(sample.segments == i)
        ]
        annotations.append({"image_id": index, "file_name": name, "segments_info": rows})
    write_list(folder, annotations)


def write_list(folder, annotations):
    (folder / "predictions.json").write_text(json.dumps({"annotations": annotations}))


def run(card, split, *, root, folder, more=()):
    """The scores that the command writes."""
    out = Path(folder, "scores.out")
    main(
        ["--card", str(card), "--split", split, "--root", str(root), "--predictions", str(folder)]
        + ["--json", str(out), *more]
    )
    return json.loads(out.read_text())


def official_tree(root, name):
    """COCO's tree of a golden suite; returns its card, the predictions and official scores."""
    whole = json.loads(GOLDEN.read_text())
    suite = next(suite for suite in whole["panoptic"] if suite["name"] == name)
    lines = [
        f'{{ id = {i}, name = "{i}", thing = {str(bool(thing)).lower()}, color = [{k}, 0, 0] }}'
        for k, (i, thing) in enumerate(whole["categories"].items())
    ]
    text = Path(load_card("coco_panoptic").path).read_text(encoding="utf-8")
    head, rest = text.split("classes = [")
    tail = rest.split("\n]\n", 1)[1]
    (root / "card.toml").write_text(f"{head}classes = [{', '.join(lines)}]\n{tail}")
    truth, found = [], []
    for i, image in enumerate(suite["images"]):
        file = f"{i:012d}.png"
        save(root / f"coco/val2017/{i:012d}.jpg", np.zeros((9, 12, 3)))
        save(root / "coco/panoptic_val2017" / file, colors(image["truth"]))
        save(root / "found" / file, colors(image["prediction"]))
        truth.append({"file_name": file, "segments_info": image["truth_segments"]})
        found.append({"file_name": file, "segments_info": image["prediction_segments"]})
    (root / "coco/annotations").mkdir()
    path = root / "coco/annotations/panoptic_val2017.json"
    path.write_text(json.dumps({"annotations": truth}))
    write_list(root / "found", found)
    return root / "card.toml", root / "found", suite["scores"]


def plant_prediction(root):
    """The tree of `roads` and a folder for the prediction of its image of 3x2; returns the root."""
    plant(root)
    (root / "found").mkdir()
    return root


def score_road(tree, ids=None, kind=np.uint8, **more):
    """Scores of one prediction; truth is [[road, person, void], [road, road, person]]."""
    if ids is not None:
        save(tree / "found/a.png", ids, kind)
    return run(tree / "roads.toml", "train", root=tree, folder=tree / "found", **more)
