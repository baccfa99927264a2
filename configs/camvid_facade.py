"""CamVid and LabelMeFacade: real streets, two taxonomies that contradict each other, on a laptop.

python -m lmseg_jax.main --config configs/camvid_facade.py --workdir runs/camvid_facade \
    --config.data.root=DATA

Windows and doors are building in CamVid and classes of their own in LabelMeFacade; poles, fences
and people are void there. DATA holds both trees (data/README.md). The model is the demo's;
`camvid_facade:scratch` starts from random weights with GroupNorm instead of worlds-clip;
`camvid_facade:multi_head`, `:manual_taxonomy`, `:camvid` and `:labelmefacade` are the baselines.
Scores: docs/results.md.
"""

from configs import base, demo

CARDS = ("camvid", "labelmefacade")


def get_config(method: str = "lmseg"):
    start, method = ("scratch", "lmseg") if method == "scratch" else ("clip", method)
    if method not in (*base.JOINT, *CARDS):
        known = ", ".join(["scratch", *base.JOINT, *CARDS])
        raise ValueError(f"camvid_facade:{method} is none of {known}")
    config = demo.get_config()
    config.data.evaluate_limit = 0
    config.batching.batch = 8
    config.model.queries = 32
    config.model.decoder.memory = "pixel16"
    if start == "clip":
        config.optimizer.backbone_rate = 0.5  # streets are far from worlds
    else:
        config.pretrained.image = ""
        config.model.resnet.norm = "group"
        config.optimizer.backbone_rate = 1.0
    config.optimizer.steps = 1600
    config.evaluation.every = 200
    config.evaluation.average = 3
    config.evaluation.cross = False
    config.checkpoint.every = 200
    base.use_method(config, method, cards=CARDS)
    return config
