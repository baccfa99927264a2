"""The paper's comparisons on rendered worlds: every method at equal cost, minutes on two CPU cores.

python -m lmseg_jax.main --config worlds:METHOD[,CHANGE ...] --workdir DIR --config.seed=0

METHOD   lmseg | multi_head | manual_taxonomy | CARD: MaskFormer on this world for its share of the
         updates
CHANGE   no_guidance: decoder without category guidance    text_visual: its other order (Table 5)
         no_daa: the recipe of world_patterns for all worlds

`lmseg experiments --suite worlds` trains all of them and writes the tables. The model is the
demo's. Sizes and seeds are shared, so comparisons are paired; all of docs/results.md.
"""

from configs import base, demo

CHANGES = ("no_guidance", "text_visual", "no_daa")


def get_config(row: str = "lmseg"):
    method, *changes = row.split(",")
    if method not in (*base.JOINT, *demo.WORLDS) or not set(changes) <= set(CHANGES):
        known = f"{' | '.join([*base.JOINT, *demo.WORLDS])}; {' | '.join(CHANGES)}"
        raise ValueError(f"worlds:{row} is no METHOD[,CHANGE ...]; known: {known}")
    config = demo.get_config()
    config.data.evaluate_limit = 100
    config.optimizer.steps = 1200
    config.evaluation.every = config.optimizer.steps
    config.evaluation.baselines = False
    config.evaluation.pictures = 1
    config.checkpoint.every = 200
    config.checkpoint.keep = 1
    base.use_method(config, method, cards=demo.WORLDS)
    if "no_guidance" in changes:
        config.model.decoder.order = "visual"
    if "text_visual" in changes:
        config.model.decoder.order = "text-visual"
    if "no_daa" in changes:
        config.data.augmentation = "world_patterns"
    return config
