"""Constant tensors of floats: what they hold, and others that are made of them.

A constant is an `abq.weight` whose array the weight store has, or a small `arith.constant`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import defining_op

_FLOATS = (ir.F32Type, ir.F16Type, ir.BF16Type)


def is_constant(value: ir.Value) -> bool:
    """Whether it is a tensor of floats that is known at compile time."""
    op = defining_op(value)
    if op is None or op.name not in ("abq.weight", "arith.constant"):
        return False
    return isinstance(value.type, ir.RankedTensorType) and isinstance(abq.element(value), _FLOATS)


def symbol_of(value: ir.Value) -> str | None:
    """The symbol of an `abq.weight`, None for other values."""
    op = defining_op(value)
    if op is None or op.name != "abq.weight":
        return None
    return ir.StringAttr(op.attributes["sym"]).value


def read(value: ir.Value, store: Any) -> np.ndarray:
    """What a constant holds, as the weight store has it or in f32."""
    symbol = symbol_of(value)
    if symbol is not None:
        return store.get(symbol)
    op = defining_op(value)
    assert op is not None
    attribute = ir.DenseFPElementsAttr(op.attributes["value"])
    shape = abq.shape(value)
    if attribute.is_splat:
        number = ir.FloatAttr(attribute.get_splat_value()).value
        return np.full(shape, number, np.float32)
    return np.array(list(attribute), np.float32).reshape(shape)


def zeros_symbol(n: int, store: Any) -> str:
    """The symbol of `n` zeros, f32, which all who ask for as many share."""
    symbol = f"abqc.zeros.{n}"
    if symbol not in store:
        store.add(symbol, np.zeros(n, np.float32))
    return symbol


def derived(
    value: ir.Value,
    tag: str,
    compute: Callable[[np.ndarray], np.ndarray],
    store: Any,
    shape: list[int] | None = None,
) -> ir.Value:
    """`compute(value)` in f32, a new `abq.weight` at the insertion point.

    It has the shape of `value` where none is given. The array is made when it is asked for, each
    time; its symbol is that of `value` and `tag`, so that the same of the same is one weight.
    """
    shape = abq.shape(value) if shape is None else shape
    source = symbol_of(value)
    if source is None:
        array = read(value, store)
        source = f"constant {array.shape} {array.tobytes().hex()}"
        if source not in store:
            store.add(source, array)
    symbol = f"{source}|{tag}"
    if symbol not in store:
        name = source
        store.add_lazy(symbol, tuple(shape), np.float32, lambda: compute(store.get(name)))
    return weight(symbol, shape)


def weight(symbol: str, shape: list[int]) -> ir.Value:
    """An `abq.weight` in f32 at the insertion point."""
    type_ = ir.RankedTensorType.get(shape, ir.F32Type.get())
    return abq.WeightOp(ir.StringAttr.get(symbol), type_).result
