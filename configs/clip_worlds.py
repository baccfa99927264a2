"""worlds-clip: a tiny CLIP of rendered worlds, the initialisation of the demo.

python -m lmseg_jax.main --config configs/clip_worlds.py --workdir runs/clip_worlds

Writes worlds_clip.safetensors and worlds_clip.json; copied to lmseg_jax/assets/ they are what
`pretrained.image = "worlds-clip"` reads. Zero-shot accuracy on 2,000 unseen crops (one seed, about
half an hour on two busy cores): shape 87, colour 93, texture 96, coarse 95, stuff 100 percent.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    config = base.get_config()
    config.mode = "pretrain"
    config.pretrain = ConfigDict()
    config.pretrain.size = 64  # side of a crop in pixels
    config.pretrain.crops = 60_000  # rendered once, flipped at random
    config.pretrain.unseen = 2_000  # crops of zero-shot evaluation
    config.pretrain.unseen_first = 10_000_000  # index of the first of them
    config.pretrain.processes = 2  # that render; 0 = none but this one
    config.pretrain.prompted = 0.5  # share of captions behind a prompt of random vectors
    config.pretrain.naming = 1.0  # weight of the loss that asks for one word of a kind
    config.batching.batch = 128
    config.batching.multiple = 2
    config.model.resnet.depths = (1, 2, 2, 1)
    config.model.resnet.width = 16
    config.model.resnet.norm = "batch"
    config.model.text.width = 64
    config.model.text.layers = 3
    config.model.text.heads = 4
    config.model.text.embedding = 64
    config.optimizer.steps = 3_000
    config.optimizer.rate = 3e-3
    config.optimizer.decay = 0.05
    config.optimizer.schedule = "cosine"
    config.optimizer.backbone_rate = 1.0
    config.optimizer.warmup = 100
    config.optimizer.clip = 1.0
    config.evaluation.every = 250
    return config
