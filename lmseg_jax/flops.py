"""Floating-point operations of a program, counted in its jaxpr."""

import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr


def count(function: Callable, *arguments) -> int:
    """Multiplications and additions of all matrix products and convolutions of a function.

    2 for each multiply-add, with the shapes of the whole mesh. A `scan` counts as often as it runs,
    a `while` once (its length is not known), recomputation (`jax.checkpoint`) as often as it is
    traced, the dearest branch of a condition once, and what no result needs not at all. Zeros that
    dilation puts into a convolution's input are not counted, zeros of padding are. Element-wise
    arithmetic, a few percent here, is left out. XLA's own `cost_analysis` counts the body of a loop
    once, which is why this exists.

    Args:
      function: to be traced; jitted or not.
      arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = jitted.trace(*arguments).jaxpr.jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return of_jaxpr(needed)


def of_jaxpr(jaxpr: Jaxpr) -> int:
    """The same for a jaxpr, of which everything is needed."""
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(of_jaxpr(branch.jaxpr) for branch in parameters["branches"])
        else:
            times = parameters["length"] if name == "scan" else 1
            if name == "shard_map":  # its shapes are those of one device
                times = math.prod(parameters["mesh"].shape.values())
            total += times * sum(of_jaxpr(inner) for inner in inside(parameters))
    return total


def inside(parameters: dict) -> Iterator[Jaxpr]:
    """Jaxprs among the parameters of an equation."""
    for value in parameters.values():
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    products = equation.outvars[0].aval.size * kernel.size // outputs
    return 2 * products // math.prod(equation.params["lhs_dilation"])
