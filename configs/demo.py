"""One model for three worlds whose labels disagree, in minutes on two CPU cores.

python -m lmseg_jax.main --config configs/demo.py --workdir runs/demo
"""

from configs import base

WORLDS = ("world_patterns", "world_colors", "world_coarse")


def get_config():
    config = base.get_config()
    config.data.train = WORLDS
    config.data.evaluate_limit = 60
    config.data.max_targets = 12
    config.batching.batch = 12
    config.batching.multiple = 2
    config.model.queries = 24
    config.model.width = 96
    config.model.resnet.depths = (1, 2, 2, 1)
    config.model.resnet.width = 16
    config.model.pixel_decoder.width = 48
    config.model.pixel_decoder.groups = 8
    config.model.decoder.layers = 3
    config.model.decoder.heads = 4
    config.model.decoder.feedforward = 256
    config.model.decoder.dropout = 0.0
    config.model.decoder.memory = "pixel8"
    config.model.text.width = 64
    config.model.text.layers = 3
    config.model.text.heads = 4
    config.model.text.embedding = 64
    config.pretrained.image = "worlds-clip"
    config.pretrained.text = "worlds-clip"
    config.loss.resolution = "quarter"
    config.optimizer.steps = 1600
    config.optimizer.rate = 1e-3
    config.optimizer.decay = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 100
    config.optimizer.clip = 1.0
    config.optimizer.average = 0.99
    config.evaluation.every = 800
    config.evaluation.batch = 4
    config.evaluation.cross = True
    config.evaluation.baselines = True
    config.checkpoint.every = 500
    return config
