"""Goes on from a trained model with your own cards: fine-tuning, short and at a small rate.

python -m lmseg_jax.main --config finetune:worlds,mine.toml,world_colors --workdir runs/mine \
    --config.data.root=DATA

After the colon come the model and the cards that it is trained on, by path or shipped name, with
commas. The model is whatever lmseg_jax.load takes: "worlds", the workdir of a run, an export, or
what `lmseg convert` wrote; its sizes are its own. Cards that it was trained on before are mixed in
so that it does not forget them (docs/finetuning.md).
"""

import json
from importlib import resources
from pathlib import Path

from configs import base

SHIPPED = ("worlds",)


def get_config(row: str = "worlds"):
    model, *cards = row.split(",")
    config = base.get_config()
    take(config.model, stored(model))
    config.pretrained.model = model
    config.pretrained.image = config.pretrained.text = ""
    config.data.train = tuple(card for card in cards if card)
    config.data.evaluate_limit = 100
    config.data.max_targets = min(config.data.max_targets, config.model.queries)
    config.batching.batch = 8
    config.batching.multiple = 2
    config.loss.resolution = "quarter"
    config.optimizer.steps = 400
    config.optimizer.rate = 3e-4
    config.optimizer.decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 20
    config.optimizer.clip = 1.0
    config.optimizer.average = 0.99
    config.evaluation.every = 200
    config.evaluation.batch = 4
    config.checkpoint.every = 100
    return config


def stored(model):
    """`config.model` of a stored model as it wrote it down; the run reads and checks the rest."""
    folder = Path(model).expanduser()
    if model in SHIPPED:
        folder = resources.files("lmseg_jax") / "assets" / model
    for name, keys in (("manifest.json", ["model"]), ("run.json", ["config", "model"])):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            for key in keys:
                values = values[key]
            return values
    raise ValueError(
        f"finetune:{model}: no model there (manifest.json or run.json); write"
        f" finetune:MODEL,CARD,... with {', '.join(SHIPPED)} or the folder of a model as MODEL"
    )


def take(section, values):
    """Sets the keys of a section; JSON has lists for tuples."""
    for key, value in values.items():
        if isinstance(value, dict):
            take(section[key], value)
        else:
            section[key] = tuple(value) if isinstance(value, list) else value
