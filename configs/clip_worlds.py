"""worlds-clip: a tiny CLIP of rendered worlds, the initialisation of the demo.

python -m lmseg_jax.main --config configs/clip_worlds.py --workdir runs/clip_worlds

Writes worlds_clip.safetensors and worlds_clip.json; copied to lmseg_jax/assets/ they are what
`pretrained.image = "worlds-clip"` reads. Zero-shot accuracy on 2,000 unseen crops (one seed, about
half an hour on two busy cores): shape 87, colour 93, texture 96, coarse 95, stuff 100 percent.

Variants for experiments on the initialisation (Table 4 of the paper), everything else being equal:

  configs/clip_worlds.py:classifier  the image tower as a plain classifier, without text; writes
                                     worlds_classifier.safetensors, for `pretrained.image`
  configs/clip_worlds.py:shuffled    captions and labels of another crop, one fixed permutation:
                                     towers that were trained and know nothing of images
  configs/clip_worlds.py:unnamed     no caption says one of the names of `UNNAMED`, which are those
                                     that the card world_words leaves out

python -m lmseg_jax.main --config configs/clip_worlds.py:classifier --workdir runs/classifier

A weights file is used by its path: `--config.pretrained.image=runs/classifier/NAME.safetensors`.
"""

from ml_collections import ConfigDict

from configs import base

UNNAMED = (
    "red disc",
    "green ring",
    "blue square",
    "yellow triangle",
    "purple star",
    "red cross",
)

VARIANTS = {
    "classifier": {"objective": "classifier"},
    "shuffled": {"shuffled": True},
    "unnamed": {"unnamed": UNNAMED},
}


def get_config(variant=""):
    if variant and variant not in VARIANTS:
        raise ValueError(f"clip_worlds:{variant} is none of {', '.join(VARIANTS)}")
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
    config.pretrain.objective = "captions"  # or classifier: the image tower alone, no text
    config.pretrain.shuffled = False  # True: each crop is told what is true of another one
    config.pretrain.unnamed = ()  # pairs such as "red disc" that no caption says
    config.pretrain.update(VARIANTS.get(variant, {}))
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
