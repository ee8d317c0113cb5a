"""Rows written into a cache at places that data decides, in place where buffers allow it."""

from __future__ import annotations

from abqc.dialects.abq_order import UpdateOp
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.shaping import narrowed, widened
from ..values.element_types import I64
from ..values.symbolic import ZERO, Dim
from ..values.value import Value


def updated(
    b: Builder, past: Value | None, rows: Value, begins: Value, capacity: Dim, axis: int
) -> Value:
    """A cache of `capacity` elements along `axis`: those of `past`, then zeros, but for `rows`,
    which for sample b lie from `begins[b]` on. What of these is outside of the cache is left out.

    `past` and `rows` agree in type and in all other axes; the first is that of samples.
    """
    dims = tuple(capacity if at == axis else dim for at, dim in enumerate(rows.dims))
    if past is None:
        none = tuple(ZERO if at == axis else dim for at, dim in enumerate(rows.dims))
        past = Value(rows.dtype, none, ssa=b.empty(rows.dtype, none))
    if past.stored is not None:
        whole = updated(b, past.stored, narrowed(b, rows), begins, capacity, axis)
        return widened(b, whole, rows.dtype)
    places = begins
    if begins.dtype is not I64:
        places = b.elementwise([begins], I64, lambda begin: begin.cast(I64))
    ssa = UpdateOp(
        b.tensor(past),
        b.tensor(rows),
        b.tensor(places),
        b.index(capacity),
        ir.IntegerAttr.get(ir.IntegerType.get_signless(64), axis),
        b.type(rows.dtype, dims),
    ).result
    return Value(rows.dtype, dims, ssa=ssa)
