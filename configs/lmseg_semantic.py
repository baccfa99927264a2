"""LMSeg, CLIP ResNet-50, four semantic datasets, 160k updates.   Paper Table 1: average mIoU 52.58.

python -m lmseg_jax.main --config configs/lmseg_semantic.py --workdir runs/semantic \
    --config.data.root=DATA --config.pretrained.image=RN50.safetensors \
    --config.pretrained.text=RN50.safetensors

Two of the four datasets make an update of 16, all six pairs in rotation. MaskFormer's rules hold:
unlabelled and padding pixels are negatives of every mask.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.train = ("ade20k", "coco_stuff", "cityscapes", "mapillary")
    config.loss.unlabelled = "negative"
    config.model.decoder.padding = "seen"
    return config
