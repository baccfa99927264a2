"""Your own data, alone or together with other cards, on a laptop: the demo's model for photographs.

python -m lmseg_jax.main --config own_data:CARD.toml,world_colors --workdir runs/mine \
    --config.data.root=DATA

After the colon come cards, by path or shipped name, with commas; `lmseg data new` writes a first
one (docs/datasets.md). DATA holds the datasets' folders. Weights start from worlds-clip.
"""

from configs import camvid_facade


def get_config(cards: str = ""):
    config = camvid_facade.get_config()
    config.data.train = tuple(card for card in cards.split(",") if card)
    config.data.evaluate_limit = 100
    config.data.max_targets = 32  # as many as there are queries
    config.evaluation.every = 400
    config.evaluation.average = 1
    return config
