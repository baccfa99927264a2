"""Words that training never named: six pairs of colour and shape, asked for afterwards.

python -m lmseg_jax.main --config configs/worlds_words.py --workdir runs/words
python -m lmseg_jax.main --config configs/worlds_words.py --workdir runs/words \
    --config.mode=words --config.data.evaluate_limit=0

The second command prints and writes (words.json) the mean IoU on the unseen names, on the seen
pairs, and chance; see lmseg_jax/words.py. It takes all 400 validation scenes.

The card world_words names 24 of the 30 pairs, world_words_unseen all. What is unseen is the name
of a pair, not the pair: a red disc is a "red object" in world_colors and a "round thing" in
world_coarse, "red" and "disc" occur in other pairs of world_words, and there it is void. Crosses
and stars have no word in world_coarse.

The text tower has read the six names: worlds-clip was pre-trained on captions with all pairs, as
CLIP has read nearly everything. The stricter test starts from towers whose captions had none:

python -m lmseg_jax.main --config configs/clip_worlds.py:unnamed --workdir runs/clip_unnamed
python -m lmseg_jax.main --config configs/worlds_words.py --workdir runs/words_strict \
    --config.pretrained.image=runs/clip_unnamed/worlds_clip.safetensors \
    --config.pretrained.text=runs/clip_unnamed/worlds_clip.safetensors
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.data.train = ("world_words", *demo.WORLDS)
    config.data.evaluate = (*config.data.train, "world_words_unseen")
    config.batching.batch = 16  # 4 of each world, as in the demo
    config.evaluation.cross = False
    config.evaluation.baselines = False
    return config
