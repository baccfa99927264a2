"""Times one image through LMSeg with cached names and through MaskFormer with a linear head."""

import statistics
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from lmseg_jax import assembly, configuration, state
from lmseg_jax.segmenter import LabelSpace, Segmenter

SIDES = ("lmseg", "maskformer")


def paper_configs(overrides: tuple[str, ...] = ()) -> dict[str, ConfigDict]:
    """LMSeg on ADE20K's 150 classes, and the same without text: no guidance, a linear head.

    Both have the same backbone, so that the ratio is that of decoder and head.

    Raises:
      UserError: an override names no key, or values do not fit each other.
    """
    configs = {side: configuration.load("lmseg_semantic", overrides) for side in SIDES}
    plain = configs["maskformer"]
    plain.model.head, plain.model.decoder.order, plain.pretrained.text = "linear", "visual", ""
    for config in configs.values():
        config.data.train = ("ade20k",)
        configuration.check(config)
    return configs


def random_segmenter(config: ConfigDict) -> Segmenter:
    """A model with random weights; its frozen norms are the identity, as no weights are read."""
    cards = assembly.load_cards(config)
    vocabulary = assembly.vocabulary_of(config, cards)

    def begin():
        return state.weights(config.model, config.seed, vocabulary=vocabulary)

    params, frozen = jax.jit(begin)()
    spaces = {card.name: LabelSpace(card.taxonomy, card.test) for card in cards}
    return Segmenter(config.model, params, frozen, spaces=spaces, vocabulary=vocabulary)


def measure(configs: dict[str, ConfigDict], *, size: int, runs: int) -> dict:
    """Everything that `table` prints, as JSON.

    A run is `Segmenter.raw` of one image by one side and then by the other, which begins every
    second time. Names are embedded and programs compiled before, in a call that is not timed.

    Args:
      configs: by side, each of one dataset.
      size: of the square image, a multiple of 32.
      runs: how many.
    """
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    segmenters = {side: random_segmenter(configs[side]) for side in SIDES}
    classes = {}
    for side, segmenter in segmenters.items():
        logits, _ = segmenter.raw(image)
        classes[side] = logits.shape[1] - 1
    times = {side: [] for side in SIDES}
    for run in range(runs):
        for side in SIDES if run % 2 == 0 else reversed(SIDES):
            began = time.perf_counter()
            segmenters[side].raw(image)
            times[side].append(time.perf_counter() - began)
    ratios = [lmseg / plain for lmseg, plain in zip(*times.values(), strict=True)]
    return {
        "device": jax.devices()[0].device_kind,
        "size": size,
        "runs": runs,
        "classes": classes["lmseg"],
        "backbone": configs["lmseg"].model.backbone,
        "times_s": times,
        "median_s": {side: statistics.median(found) for side, found in times.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def table(found: dict) -> str:
    """What was measured, for a person."""
    lines = [
        f"one image of {found['size']}x{found['size']}, {found['classes']} classes, "
        f"{found['backbone']}, f32, random weights, on {found['device']}; "
        f"medians of {found['runs']} alternating runs",
    ]
    for side, name in zip(SIDES, ("LMSeg, names cached", "MaskFormer, linear head"), strict=True):
        times = found["times_s"][side]
        lines.append(
            f"  {name:24} {1000 * found['median_s'][side]:8.1f} ms, "
            f"{1000 * min(times):.1f} to {1000 * max(times):.1f}"
        )
    lines.append(f"  {'ratio':24} {found['ratio']:8.3f}, median of the runs' ratios")
    return "\n".join(lines)
