"""CamVid and LabelMeFacade: real streets, two taxonomies that contradict each other, on a laptop.

python -m lmseg_jax.main --config configs/camvid_facade.py --workdir runs/camvid_facade \
    --config.data.root=DATA

Windows and doors are building in CamVid and classes of their own in LabelMeFacade; poles, fences
and people are void there. DATA holds both trees (data/README.md). `camvid_facade.py:scratch` starts
from random weights with GroupNorm instead of worlds-clip. Scores: docs/results.md.
"""

from configs import base


def get_config(start: str = "clip"):
    if start not in ("clip", "scratch"):
        raise ValueError(f"camvid_facade.py:{start}: the start is clip or scratch")
    config = base.get_config()
    config.data.train = ("camvid", "labelmefacade")
    config.data.max_targets = 12
    config.batching.batch = 8
    config.batching.multiple = 2
    config.model.queries = 32
    config.model.width = 96
    config.model.resnet.depths = (1, 2, 2, 1)
    config.model.resnet.width = 16
    config.model.pixel_decoder.width = 48
    config.model.pixel_decoder.groups = 8
    config.model.decoder.layers = 3
    config.model.decoder.heads = 4
    config.model.decoder.feedforward = 256
    config.model.decoder.dropout = 0.0
    config.model.decoder.memory = "pixel16"
    config.model.text.width = 64
    config.model.text.layers = 3
    config.model.text.heads = 4
    config.model.text.embedding = 64
    config.pretrained.text = "worlds-clip"
    if start == "clip":
        config.pretrained.image = "worlds-clip"
        config.optimizer.backbone_rate = 0.5  # streets are far from worlds
    else:
        config.pretrained.image = ""
        config.model.resnet.norm = "group"
        config.optimizer.backbone_rate = 1.0
    config.loss.resolution = "quarter"
    config.optimizer.steps = 1600
    config.optimizer.rate = 1e-3
    config.optimizer.decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 100
    config.optimizer.clip = 1.0
    config.optimizer.average = 0.99
    config.evaluation.every = 200
    config.evaluation.batch = 4
    config.evaluation.average = 3
    config.evaluation.baselines = True
    config.checkpoint.every = 200
    return config
