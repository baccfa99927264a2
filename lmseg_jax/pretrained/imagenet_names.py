"""torchvision's names of an ImageNet ResNet with bottlenecks, as a table to our paths.

timm's files of the same weights use the same names. Source: reference sections 1.3 and 1.5.
"""

from lmseg_jax.pretrained import clip_names, mapping
from lmseg_jax.pretrained.mapping import Rule


def _rules() -> list[Rule]:
    rules = [Rule(r"conv1\.weight", "stem/conv/kernel", mapping.convolution)]
    rules += clip_names.norm("bn1", "stem/norm")
    for s in range(4):
        rules += clip_names.torch_block(rf"layer{s + 1}\.(\d+)", rf"stages/{s}/\1")
    return rules


IMAGE = _rules()
NOT_READ = clip_names.COUNTERS | {r"fc\..*": "the classifier of ImageNet's 1000 classes"}
