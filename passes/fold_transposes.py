"""Transposes that only elementwise loops read are read where they are.

    t = linalg.transpose x
    y = linalg.generic {map m} t        reads x with m's results in x's order

The last axis stays the last, so that rows are still read one element after the other; loops may
read it in blocks (loops/axis_blocks.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .infrastructure import Unit, register, users, walk
from .loops.generics import groups, is_elementwise, maps
from .resolve_dims import expand_shape


@dataclass(frozen=True)
class _View:
    """A transposed tensor, or one whose last axis was then cut; axis i is axis order[i] of what
    was not transposed."""

    value: ir.Value
    order: list[int]
    expand: ir.Operation | None = None


@register
def fold_transposes(module: ir.Operation, unit: Unit) -> None:
    """Let loops read the operand of a transpose."""
    for op in walk(module, "linalg.transpose"):
        order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
        if order[-1] != len(order) - 1:
            continue
        views = [_View(op.results[0], order)]
        for reader in _readers(op.results[0]):
            if _cuts_last_axis(reader):
                cut = len(abq.shape(reader.results[0])) - len(order)
                longer = [*order, *(order[-1] + 1 + i for i in range(cut))]
                views.append(_View(reader.results[0], longer, reader))
        loops = {view.value: _loops(view, views) for view in views}
        if all(found is not None for found in loops.values()):
            for view in views:
                source = _source(op.operands[0], view)
                for loop in loops[view.value] or []:
                    _read_source(loop, view, source)


def _readers(value: ir.Value) -> list[ir.Operation]:
    found = dict.fromkeys(user.operation for user in users(value))
    return [op for op in found if op.name != "tensor.dim"]


def _cuts_last_axis(op: ir.Operation) -> bool:
    if op.name != "tensor.expand_shape":
        return False
    *rest, _ = groups(op)
    return all(len(group) == 1 for group in rest) and abq.shape(op.operands[0])[-1] != abq.DYNAMIC


def _loops(view: _View, views: list[_View]) -> list[ir.Operation] | None:
    """The loops that read a view; None where anything else does."""
    known = [other.expand for other in views if other.expand is not None]
    found = [op for op in _readers(view.value) if op not in known]
    return found if all(_only_reads(op, view.value) for op in found) else None


def _source(source: ir.Value, view: _View) -> ir.Value:
    """What is to be read in place of the view."""
    if view.expand is None:
        return source
    sizes = list(abq.shape(view.value))
    shape: list[int] = [0] * len(sizes)
    for axis, size in zip(view.order, sizes, strict=True):
        shape[axis] = size
    with ir.InsertionPoint(view.expand), view.expand.location:
        return expand_shape(source, groups(view.expand), shape)


def _only_reads(loop: ir.Operation, value: ir.Value) -> bool:
    return is_elementwise(loop) and loop.operands[len(loop.operands) - 1] != value


def _read_source(loop: ir.Operation, view: _View, source: ir.Value) -> None:
    new = maps(loop)
    for number, operand in enumerate(loop.operands):
        if operand != view.value:
            continue
        results: list[ir.AffineExpr | None] = [None] * len(view.order)
        for axis, result in zip(view.order, new[number].results, strict=True):
            results[axis] = result
        new[number] = ir.AffineMap.get(new[number].n_dims, 0, results)
        loop.operands[number] = source
    loop.attributes["indexing_maps"] = ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in new])
