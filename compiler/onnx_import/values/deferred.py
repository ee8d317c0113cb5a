"""Arithmetic on large constants, done when the result is asked for.

Models that train with rounding keep float weights and round them in the graph (BitNet b1.58 and its
kin): Abs, ReduceMean, Div, Round, Clip, Mul. What these make is a weight like others, and nothing
of it is left for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph.model import attribute
from .constants import Constant

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

# Their results are small where their inputs are large: these are evaluated at once.
REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL1"}


def deferred(node: NodeProto, inputs: Sequence[Constant | None]) -> Constant | None:
    """An elementwise operation on constant floats of one type, no larger than its inputs.

    None for others. The operations of a chain are done each time its end is loaded.
    """
    function = ELEMENTWISE.get(node.op_type)
    given = [constant for constant in inputs if constant is not None]
    first = given[0]
    if function is None or first.elem_type not in FLOATS:
        return None
    if any(constant.elem_type != first.elem_type for constant in given):
        return None
    try:
        shape = np.broadcast_shapes(*(constant.shape for constant in given))
    except ValueError:
        return None  # the operator's rule says what is wrong
    if prod(shape) > max(constant.size for constant in given):
        return None

    def load() -> np.ndarray:
        operands = [None if constant is None else constant.load() for constant in inputs]
        with np.errstate(all="ignore"):  # as at run time: no operation of ONNX traps
            return function(node, operands).astype(first.dtype, copy=False)

    return Constant(shape, first.elem_type, load)


Operands = Sequence[np.ndarray | None]
Function = Callable[[NodeProto, Operands], np.ndarray]


def _of(function: Callable[..., np.ndarray]) -> Function:
    return lambda node, operands: function(*operands)


def _of_any_number(function: Callable[..., np.ndarray]) -> Function:
    return lambda node, operands: reduce(function, [x for x in operands if x is not None])


def _clip(node: NodeProto, operands: Operands) -> np.ndarray:
    """The limits are inputs since opset 11, attributes before."""
    x, low, high = (*operands, None, None)[:3]
    assert x is not None
    low = attribute(node, "min") if low is None else low
    high = attribute(node, "max") if high is None else high
    result = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return result if high is None else np.minimum(result, np.asarray(high, x.dtype))


ELEMENTWISE: dict[str, Function] = {
    "Abs": _of(np.abs),
    "Add": _of(np.add),
    "Clip": _clip,
    "Div": _of(np.divide),
    "Max": _of_any_number(np.maximum),
    "Min": _of_any_number(np.minimum),
    "Mul": _of(np.multiply),
    "Neg": _of(np.negative),
    "Reciprocal": _of(np.reciprocal),
    "Round": _of(np.rint),
    "Sign": _of(np.sign),
    "Sqrt": _of(np.sqrt),
    "Sub": _of(np.subtract),
}
