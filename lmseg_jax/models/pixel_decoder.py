"""Pixel decoders: backbone levels to one feature map at stride 4."""

from flax import nnx
from jax import Array

from lmseg_jax.models.layers import Conv, Linear, caffe_xavier, nearest_upsample
from lmseg_jax.models.norms import GroupNorm

LEVELS = ("res2", "res3", "res4", "res5")


class FPN(nnx.Module):
    """Feature pyramid: top-down sums of lateral 1x1 projections, a 3x3 convolution at each level.

    y5 = relu(norm(conv3(res5))); y_l = relu(norm(conv3(norm(conv1(res_l)) + up(y_{l+1})))).

    Source: Lin et al., 2017, with MaskFormer's norms (GroupNorm, no bias beside a norm).
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        width: int,
        groups: int,
        mask_width: int = 0,
        rngs: nnx.Rngs,
    ):
        self.lateral = nnx.List(
            [
                Linear(channels[level], width, use_bias=False, kernel_init=caffe_xavier, rngs=rngs)
                for level in LEVELS[:-1]
            ]
        )
        self.lateral_norm = nnx.List(
            [GroupNorm(width, groups=groups, rngs=rngs) for _ in LEVELS[:-1]]
        )
        inputs = [width, width, width, channels["res5"]]
        self.output = nnx.List(
            [Conv(c, width, 3, use_bias=False, kernel_init=caffe_xavier, rngs=rngs) for c in inputs]
        )
        self.output_norm = nnx.List([GroupNorm(width, groups=groups, rngs=rngs) for _ in LEVELS])
        mask_width = mask_width or width
        self.mask_features = Conv(width, mask_width, 3, kernel_init=caffe_xavier, rngs=rngs)
        self.width = width

    def __call__(self, features: dict[str, Array]) -> dict[str, Array]:
        """res2..res5 [B, h, w, C] -> mask features `pixel4`, and levels `pixel8`, `pixel16`."""
        x = nnx.relu(self.output_norm[3](self.output[3](features["res5"])))
        levels = {}
        for index, stride in ((2, 16), (1, 8), (0, 4)):
            lateral = self.lateral_norm[index](self.lateral[index](features[LEVELS[index]]))
            x = lateral + nearest_upsample(x, *lateral.shape[1:3])
            x = nnx.relu(self.output_norm[index](self.output[index](x)))
            levels[f"pixel{stride}"] = x
        levels["pixel4"] = self.mask_features(x)
        return levels


PIXEL_DECODERS = {"fpn": FPN}
