"""The paper's experiments: each method and each ablation, at the paper's sizes and budgets.

python -m lmseg_jax.main --config paper:TASK,METHOD,UPDATES[,CHANGE ...] --workdir DIR \
    --config.data.root=DATA

TASK     semantic: ADE20K, COCO-Stuff, Cityscapes, Mapillary | panoptic: COCO, ADE20K, Cityscapes
METHOD   lmseg | multi_head | manual_taxonomy | CARD: MaskFormer on this one of the task's datasets
UPDATES  160k, 320k, 640k (semantic) or 320k, 640k, 960k (panoptic), of all datasets together, so
         a model of one dataset makes its share of them; or any number
CHANGE   no_guidance: decoder without category guidance    text_visual: its other order (Table 5)
         no_daa: one augmentation for all datasets         imagenet: encoder from ImageNet weights

paper:semantic,lmseg,160k                       Table 1, average mIoU 52.58
paper:semantic,lmseg,160k,no_guidance,no_daa    Table 4's CLIP row, Table 6's first row
paper:semantic,multi_head,320k                  a baseline
paper:panoptic,coco_panoptic,960k               MaskFormer on COCO alone, 320k updates

LMSeg's margins over the better baseline are +0.59, +0.28, +0.22 mIoU at the three semantic budgets
and +2.70, +3.87, +2.47 PQ at the panoptic ones; guidance alone gives +0.50 mIoU and +3.50 PQ. All
methods share trunk, data order and seed, so comparisons are paired. MaskFormer's rules hold for
unlabelled and padding pixels, as in lmseg_semantic.py.
"""

from configs import base, lmseg_semantic

CARDS = {
    "semantic": ("ade20k", "coco_stuff", "cityscapes", "mapillary"),
    "panoptic": ("coco_panoptic", "ade20k_panoptic", "cityscapes_panoptic"),
}
CHANGES = ("no_guidance", "text_visual", "no_daa", "imagenet")


def get_config(row: str = "semantic,lmseg,160k"):
    task, method, updates, *changes = row.split(",") + [""] * (2 - row.count(","))
    cards = CARDS.get(task, ())
    unknown = [change for change in changes if change not in CHANGES]
    if not cards or method not in (*base.JOINT, *cards) or unknown:
        known = f"{' | '.join(CARDS)}; {' | '.join([*base.JOINT, *cards])}; {' | '.join(CHANGES)}"
        raise ValueError(f"paper:{row} is no TASK,METHOD,UPDATES[,CHANGE ...]; known: {known}")
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
    if "imagenet" in changes:
        config.model.backbone, config.model.pixels = "resnet", "imagenet"
        config.pretrained.image = "torchvision/resnet50"
    return config
