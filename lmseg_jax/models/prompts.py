"""Learnable prompt: context vectors shared by every class name of every dataset."""

from flax import nnx
from jax.nn import initializers


class Prompt(nnx.Module):
    """[v]_1 .. [v]_P, spliced between the start token and the tokens of a name.

    Attributes:
      context: f32 [P, width of the text tower], normal with standard deviation `std`.

    Source: LMSeg Sec. 3.2; CoOp (Zhou et al., 2022), unified context.
    """

    def __init__(self, length: int, width: int, *, std: float, rngs: nnx.Rngs):
        self.context = nnx.Param(initializers.normal(std)(rngs.params(), (length, width)))
