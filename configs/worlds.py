"""The paper's comparisons on rendered worlds: every method at equal cost, minutes on two CPU cores.

python -m lmseg_jax.main --config worlds:METHOD[,UPDATES][,CHANGE ...] --workdir DIR --config.seed=0

METHOD   lmseg | multi_head | manual_taxonomy | CARD: MaskFormer on this world for its share of the
         updates; its one taxonomy is asked of all worlds' scenes
UPDATES  of all worlds together; 1200 if none are given
CHANGE   of lmseg
         no_guidance: decoder without category guidance    text_visual: its other order (Table 5)
         no_daa: the recipe of world_patterns for all worlds

`lmseg experiments --suite worlds` trains all of them and writes the tables. The model is the
demo's. Sizes, data order and seeds are shared, so comparisons are paired (docs/results.md).
"""

from configs import base, demo

CHANGES = ("no_guidance", "text_visual", "no_daa")


def get_config(row: str = "lmseg"):
    method, *changes = row.split(",")
    updates = int(changes.pop(0)) if changes and changes[0].isdecimal() else 1200
    possible = CHANGES if method == "lmseg" else ()
    unclear = {"no_guidance", "text_visual"} <= set(changes)
    if method not in (*base.JOINT, *demo.WORLDS) or not set(changes) <= set(possible) or unclear:
        known = f"{' | '.join([*base.JOINT, *demo.WORLDS])}; for lmseg {' | '.join(CHANGES)}"
        known += ", of the first two one at most"
        raise ValueError(f"worlds:{row} is no METHOD[,UPDATES][,CHANGE ...]; known: {known}")
    config = demo.get_config()
    config.data.evaluate_limit = 100
    config.optimizer.steps = updates
    config.evaluation.every = config.optimizer.steps
    config.evaluation.baselines = False
    config.evaluation.pictures = 1
    config.checkpoint.every = 200
    config.checkpoint.keep = 1
    base.use_method(config, method, cards=demo.WORLDS)
    if method in demo.WORLDS:  # its words are asked of the others' scenes, too
        config.evaluation.scenes = demo.WORLDS
    if "no_guidance" in changes:
        config.model.decoder.order = "visual"
    if "text_visual" in changes:
        config.model.decoder.order = "text-visual"
    if "no_daa" in changes:
        config.data.augmentation = "world_patterns"
    return config
