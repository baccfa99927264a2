"""A run of seconds: two worlds of one image size, a model of a few thousand values."""

from configs import base


def get_config():
    config = base.get_config()
    config.data.train = ("world_patterns", "world_shapes")
    config.data.evaluate_limit = 2
    config.data.max_targets = 6
    config.batching.batch, config.batching.multiple = 4, 2
    config.model.queries, config.model.width = 8, 16
    config.model.resnet.depths, config.model.resnet.width = (1, 1, 1, 1), 8
    config.model.resnet.norm = "group"
    config.model.pixel_decoder.width, config.model.pixel_decoder.groups = 16, 4
    config.model.decoder.layers, config.model.decoder.heads = 2, 2
    config.model.decoder.feedforward = 24
    config.model.text.width, config.model.text.layers = 16, 1
    config.model.text.heads, config.model.text.embedding = 2, 16
    config.pretrained.image = config.pretrained.text = ""
    config.loss.resolution = "quarter"
    config.matcher.where = "device"  # programs with a callback never reach the compilation cache
    config.optimizer.steps = 8
    config.optimizer.rate = 1e-3
    config.optimizer.backbone_rate = 1.0
    config.optimizer.average = 0.9
    config.evaluation.every = 4
    config.evaluation.average = 2
    config.evaluation.pictures = 0
    config.checkpoint.every = 3
    config.log.every = 1
    return config
