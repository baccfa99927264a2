"""The paper's experiments: each method and each ablation, at the paper's sizes and budgets.

python -m lmseg_jax.main --config paper:TASK,METHOD,UPDATES[,CHANGE ...] --workdir DIR \
    --config.data.root=DATA

TASK     semantic: ADE20K, COCO-Stuff, Cityscapes, Mapillary | panoptic: COCO, ADE20K, Cityscapes
METHOD   lmseg | multi_head | manual_taxonomy | CARD: MaskFormer on this one of the task's datasets
UPDATES  160k, 320k, 640k (semantic) or 320k, 640k, 960k (panoptic), of all datasets together, so
         a model of one dataset makes its share of them; or any number
CHANGE   no_guidance: decoder without category guidance    text_visual: its other order (Table 5)
         no_daa: one augmentation for all datasets         imagenet: encoder from ImageNet weights
         rn101: CLIP's ResNet-101                          without_CARD: this dataset is asked for
                                                           by its names, but not trained on

Which row is which, with the paper's numbers where they are known to us (averages are cut after two
decimals there). Of Tables 2, 3 and 7 we know no numbers beside the panoptic ones here:

semantic, all methods, three budgets            Table 1, mIoU; at 640k a model for each dataset and
                                                multi-head are above LMSeg on ADE20K
  semantic,lmseg,160k                           average 52.58
  semantic,lmseg,320k                           ADE20K 44.89, Cityscapes 79.81, COCO-Stuff 39.21,
                                                Mapillary 52.27, average 54.04
  lmseg over the better baseline                +0.59, +0.28, +0.22 at 160k, 320k, 640k
panoptic, all methods, three budgets            the same comparison, PQ
  panoptic,lmseg,320k                           ADE20K 30.84, Cityscapes 51.75, COCO 34.16,
                                                average 38.91
  lmseg over the better baseline                +2.70, +3.87, +2.47 at 320k, 640k, 960k
  panoptic,coco_panoptic,960k                   MaskFormer on COCO alone, 320k updates
weights of the encoder                          Table 4, without guidance and DAA; its CLIP row is
                                                the first of Table 6
  semantic,lmseg,320k,no_guidance,no_daa        CLIP's; Mapillary 49.11 (49.76 in Table 6)
  semantic,lmseg,320k,no_guidance,no_daa,imagenet
guidance and its order                          Table 5; its budget is not known to us
  semantic,lmseg,320k[,no_guidance]             guidance gives +0.50 mIoU
  semantic,lmseg,320k,text_visual
  panoptic,lmseg,320k[,no_guidance]             +3.50 PQ
guidance and DAA                                Table 6
  semantic,lmseg,320k,no_guidance,no_daa        neither
  semantic,lmseg,320k,no_daa                    COCO-Stuff 40.53
  semantic,lmseg,320k,no_guidance
  semantic,lmseg,320k                           both; COCO-Stuff 39.21
of the authors' release, in no table we know
  TASK,lmseg,UPDATES,rn101[,no_daa]             both tasks with and without DAA
  semantic,lmseg,160k,without_ade20k            and without_coco_stuff

The manual taxonomy is segmented by the asked dataset's names; with
`--config.model.manual.restrict=False` all names of the union compete. All methods share data order,
seed and the first weights of backbone and pixel decoder, so comparisons are paired. MaskFormer's
rules hold for unlabelled and padding pixels, as in lmseg_semantic.py.
"""

import re

from configs import base, lmseg_semantic

CARDS = {
    "semantic": ("ade20k", "coco_stuff", "cityscapes", "mapillary"),
    "panoptic": ("coco_panoptic", "ade20k_panoptic", "cityscapes_panoptic"),
}
CHANGES = ("no_daa", "imagenet", "rn101")  # of any method
GUIDANCE = ("no_guidance", "text_visual")  # of lmseg, one at most
UNSEEN = "without_"  # before a dataset's name, of lmseg


def get_config(row: str = "semantic,lmseg,160k"):
    task, method, updates, *changes = row.split(",") + [""] * (2 - row.count(","))
    cards = CARDS.get(task, ())
    possible = set(CHANGES)
    if method == "lmseg":
        possible |= {*GUIDANCE, *(UNSEEN + card for card in cards)}
    known = cards and method in (*base.JOINT, *cards) and re.fullmatch(r"\d+k?", updates)
    if not known or not set(changes) <= possible or set(GUIDANCE) <= set(changes):
        methods = " | ".join([*base.JOINT, *(cards or ["CARD"])])
        ablations = f"{' | '.join(CHANGES)}, for lmseg {' or '.join(GUIDANCE)} | {UNSEEN}CARD"
        raise ValueError(
            f"paper:{row} is no TASK,METHOD,UPDATES[,CHANGE ...];"
            f" known: {' | '.join(CARDS)}; {methods}; 160k or any number; {ablations}"
        )
    steps = int(updates.removesuffix("k")) * (1000 if updates.endswith("k") else 1)

    config = lmseg_semantic.get_config()
    config.optimizer.steps = steps
    base.use_method(config, method, cards=cards)
    if "no_guidance" in changes:
        config.model.decoder.order = "visual"
    if "text_visual" in changes:
        config.model.decoder.order = "text-visual"
    if "no_daa" in changes:
        config.data.augmentation = "fixed"
    if "rn101" in changes:
        config.model.resnet.depths, config.model.text.embedding = (3, 4, 23, 3), 512
        config.pretrained.image = "openai/rn101"
        config.pretrained.text = "openai/rn101" if config.model.head == "text" else ""
    if "imagenet" in changes:
        config.model.backbone, config.model.pixels = "resnet", "imagenet"
        config.pretrained.image = f"torchvision/resnet{101 if 'rn101' in changes else 50}"
    if any(change.startswith(UNSEEN) for change in changes):
        config.data.train = tuple(card for card in cards if UNSEEN + card not in changes)
        config.data.evaluate = cards
    return config
