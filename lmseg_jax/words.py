"""`mode = words`: how well names are found that training never used, beside seen ones and chance.

python -m lmseg_jax.main --config configs/worlds_words.py --workdir DIR --config.mode=words

Scores the newest checkpoint on each evaluation set that has such names among its things, prints a
table and writes words.json to the workdir.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import assembly, report
from lmseg_jax.errors import UserError
from lmseg_jax.evaluate import trained
from lmseg_jax.metrics import SemanticMetric
from lmseg_jax.scoring import EvaluationSet, Network, averaging, evaluate_set
from lmseg_jax.taxonomy import plain

FILE = "words.json"


@dataclass(frozen=True)
class Names:
    """The names of a taxonomy's things, taken apart.

    Attributes:
      attributes: what each word of a name says, such as ("color", "shape").
      columns: class number of each name.
      words: of each name, one for each attribute.
      unseen: of each name, True if training had no class of that name.
    """

    attributes: tuple[str, ...]
    columns: tuple[int, ...]
    words: tuple[tuple[str, ...], ...]
    unseen: tuple[bool, ...]


def run(config: ConfigDict, workdir: Path) -> int:
    """Scores the newest checkpoint of a workdir on all names that its training had not.

    Raises:
      UserError: there is no checkpoint, or no evaluation set has unseen names of the right form.
    """
    network, sets, step = trained(config, workdir)
    seen = {
        plain(name)
        for card in assembly.load_cards(config)[: len(config.data.train)]
        for name in card.taxonomy.names
    }
    asked = {data.card.name: (data, names_of(data, seen)) for data in sets}
    asked = {name: (data, names) for name, (data, names) in asked.items() if any(names.unseen)}
    if not asked:
        raise UserError(
            f"config.data.evaluate = {config.data.evaluate}: none of these worlds names a thing"
            " that data.train does not; add one such as world_words_unseen"
        )
    found = {name: measure(network, data, names, config) for name, (data, names) in asked.items()}
    report.write_json(workdir / FILE, {"step": step} | found)
    for name, scores in found.items():
        print(table(name, scores))
    print(f"all names are in {workdir / FILE}", flush=True)
    return 0


def names_of(data: EvaluationSet, seen: set[str]) -> Names:
    """The things of a set's card; none if its names are not one word for each attribute.

    Args:
      data: of a world card, whose `options.by` lists the attributes.
      seen: names of training, as `taxonomy.plain` writes them.
    """
    attributes = tuple(str(data.card.options.get("by", "")).split())
    names = [
        (column, category.name)
        for column, category in enumerate(data.card.taxonomy.categories)
        if category.thing
    ]
    if not attributes or any(len(name.split()) != len(attributes) for _, name in names):
        return Names(attributes, (), (), ())
    return Names(
        attributes,
        columns=tuple(column for column, _ in names),
        words=tuple(tuple(name.split()) for _, name in names),
        unseen=tuple(plain(name) not in seen for _, name in names),
    )


def measure(network: Network, data: EvaluationSet, names: Names, config: ConfigDict) -> dict:
    """`compare` of a network's semantic answers, with the PQ of each name and group."""
    scores, pictures = evaluate_set(
        network,
        data,
        batch=config.evaluation.batch,
        threads=config.data.threads,
        pictures=len(data.source),
        **averaging(config),
    )
    counts = SemanticMetric(data.card.taxonomy.names)
    for picture in pictures:
        counts.update(picture.prediction, picture.truth)
    found = compare(counts.state["matrix"], names)
    quality = scores.get("classes", {})
    for name, entry in found["names"].items():
        entry["pq"] = quality.get(name, {}).get("pq")
    for group in ("seen", "unseen"):
        members = [e["pq"] for e in found["names"].values() if e["unseen"] == (group == "unseen")]
        found[group]["pq"] = _mean(members)
    return {"images": len(pictures), "miou": scores["miou"]} | found


def compare(matrix: np.ndarray, names: Names) -> dict:
    """IoU of seen and unseen names beside what names given at random would get.

    Let IoU(a, k) be that of all pixels answered a and all pixels that are k. The score of k is
    IoU(k, k). Chance keeps the answered regions and exchanges their names by a random permutation
    of the things: k gets the region of any name alike, so that its expected IoU is the mean of
    IoU(a, k) over the things a, k itself among them. Knowing one attribute and guessing the others
    is the mean over those a that share that word with k. Both depend on the regions: the chance of
    perfect answers for 30 pairs is 100 / 30.

    Args:
      matrix: int [K + 1, K], pixels by answer (row K = nothing) and truth.
      names: of the things.

    Returns:
      "seen", "unseen": {"miou", "chance", "known": {attribute: mIoU}, "answers"}, in percent;
      names without a true pixel have no part in a mean. "answers" shares out the pixels of the
      group's things: "right", "only ATTRIBUTE" (the other words wrong), "other" (a thing of other
      words), "no thing". With three attributes or more, "partly" stands for several right words.
      "names": {name: {"unseen", "iou", "chance", "known"}}, None where no pixel is true.
    """
    truth, answered = matrix.sum(axis=0), matrix[:-1].sum(axis=1)
    union = truth[None, :] + answered[:, None] - matrix[:-1]
    iou = 100 * matrix[:-1] / np.maximum(union, 1)
    things = np.array(names.columns)
    iou = iou[np.ix_(things, things)]  # [answers, truths]
    words = np.array(names.words)
    same = words[:, None, :] == words[None, :, :]  # [answers, truths, attributes]

    entries = {}
    for k, (name, unseen) in enumerate(zip(names.words, names.unseen, strict=True)):
        entry = {"unseen": unseen, "iou": None, "chance": None, "known": {}}
        if truth[things[k]]:
            entry["iou"], entry["chance"] = float(iou[k, k]), float(iou[:, k].mean())
            entry["known"] = {
                attribute: float(iou[same[:, k, i], k].mean())
                for i, attribute in enumerate(names.attributes)
            }
        entries[" ".join(name)] = entry
    found = {}
    for group in ("seen", "unseen"):
        chosen = np.array(names.unseen) == (group == "unseen")
        members = [entry for entry, one in zip(entries.values(), chosen, strict=True) if one]
        found[group] = {
            "miou": _mean([entry["iou"] for entry in members]),
            "chance": _mean([entry["chance"] for entry in members]),
            "known": {
                attribute: _mean([entry["known"].get(attribute) for entry in members])
                for attribute in names.attributes
            },
            "answers": _answers(matrix[:, things[chosen]], same[:, chosen], names),
        }
    return found | {"names": entries}


def _answers(matrix: np.ndarray, same: np.ndarray, names: Names) -> dict[str, float]:
    """Percent of the pixels of some names by what was answered.

    Args:
      matrix: int [K + 1, N], pixels by answer and those N names.
      same: bool [things, N, attributes], whether an answer shares a word with a name.
      names: of the things.
    """
    pixels = matrix[list(names.columns)]  # [things, N]
    right = same.sum(axis=-1)
    count = len(names.attributes)
    parts = {"right": pixels[right == count].sum()}
    if count > 1:
        for i, attribute in enumerate(names.attributes):
            parts[f"only {attribute}"] = pixels[(right == 1) & same[..., i]].sum()
    if count > 2:
        parts["partly"] = pixels[(right > 1) & (right < count)].sum()
    parts["other"] = pixels[right == 0].sum()
    parts["no thing"] = matrix.sum() - pixels.sum()
    return {key: float(100 * part / max(1, matrix.sum())) for key, part in parts.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def table(title: str, found: dict) -> str:
    """What `measure` found, as text: seen and unseen names, then each unseen one."""
    attributes = list(found["unseen"]["known"])
    heads = ["IoU", "chance", *(f"{attribute} known" for attribute in attributes), "PQ"]
    width = max(18, *map(len, found["names"]))
    rows = [f"{title}, {found['images']} images: mean IoU over names, and by name"]
    rows.append(f"{'':{width}}" + "".join(f"{head:>14}" for head in heads))

    def row(name: str, values: Sequence[float | None]) -> str:
        cells = ["-" if value is None else f"{value:.1f}" for value in values]
        return f"{name:{width}}" + "".join(f"{cell:>14}" for cell in cells)

    new = sum(entry["unseen"] for entry in found["names"].values())
    counts = {"seen": len(found["names"]) - new, "unseen": new}
    groups = [group for group, count in counts.items() if count]
    for group in groups:
        means = found[group]
        known = [means["known"][attribute] for attribute in attributes]
        values = [means["miou"], means["chance"], *known, means["pq"]]
        rows.append(row(f"{counts[group]} {group}", values))
    for name, entry in found["names"].items():
        if entry["unseen"]:
            known = [entry["known"].get(attribute) for attribute in attributes]
            rows.append(row(f"  {name}", [entry["iou"], entry["chance"], *known, entry["pq"]]))
    for group in groups:
        shares = ", ".join(f"{key} {value:.1f}" for key, value in found[group]["answers"].items())
        rows.append(f"percent of the pixels of {group} names by answer: {shares}")
    return "\n".join(rows)
