"""Loads and stores at positions that come from data never leave their buffer.

The front end gathers by `memref.load %t[%i]` with `%i` as a model's input has it. Positions are
compared with the sizes: outside, a float is NaN and an integer 0, and nothing is stored. Checks
inside of loops, which would abort the process, are then superfluous.
"""

from __future__ import annotations

import math

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, memref, scf
from abqc.errors import ModelError

from .infrastructure import Unit, blame, defining_op, node_name, register, walk
from .resolve_dims import index


@register
def guard_indices(module: ir.Operation, unit: Unit) -> None:
    """Keep loads and stores at data-dependent positions inside of their buffers."""
    guarded: list[ir.Operation] = []
    for load in walk(module, "memref.load"):
        axes = [axis for axis, at in enumerate(load.operands[1:]) if _is_data(at)]
        if axes:
            loops = _enclosing_generic(load)
            if loops is not None:
                guarded.append(loops)
            _guard(load, axes, loops)
    for store in walk(module, "memref.store"):
        axes = [axis for axis, at in enumerate(store.operands[2:]) if _is_data(at)]
        if axes:
            _guard_store(store, axes)
    for check in walk(module, "cf.assert"):
        loops = _enclosing_generic(check)
        if loops is not None and loops not in guarded:
            text = ir.StringAttr(check.attributes["msg"]).value
            raise ModelError(f"no kernel can check that '{text}'", node=node_name(check))
        if loops is not None:
            check.erase()


def _is_data(position: ir.Value) -> bool:
    """Whether a position depends on the elements of a buffer."""
    owner = defining_op(position)
    if owner is None:
        block = position.owner
        return isinstance(block, ir.Block) and block.owner.operation.name == "linalg.generic"
    if owner.name in ("memref.load", "tensor.extract"):
        return True
    return owner.name.startswith("arith.") and any(map(_is_data, owner.operands))


def _enclosing_generic(op: ir.Operation) -> ir.Operation | None:
    parent = op.parent
    while parent is not None and parent.operation.name != "func.func":
        if parent.operation.name == "linalg.generic":
            return parent.operation
        parent = parent.operation.parent
    return None


def _guard(load: ir.Operation, axes: list[int], loops: ir.Operation | None) -> None:
    buffer, *positions = load.operands
    before = load if loops is None else loops
    with ir.InsertionPoint(before), load.location:
        sizes = {axis: _size(buffer, axis) for axis in axes}
        _check_not_empty(load, sizes, loops)
    with ir.InsertionPoint(load), load.location:
        inside = None
        for axis in axes:
            below = arith.CmpIOp(arith.CmpIPredicate.ult, positions[axis], sizes[axis]).result
            positions[axis] = arith.SelectOp(below, positions[axis], index(0)).result
            inside = below if inside is None else arith.AndIOp(inside, below).result
        value = memref.LoadOp(buffer, positions).result
        kept = arith.SelectOp(inside, value, _nothing(value.type)).result
    load.results[0].replace_all_uses_with(kept)
    load.erase()


def _guard_store(store: ir.Operation, axes: list[int]) -> None:
    """A store (of a scatter) outside of its buffer is left out."""
    value, buffer, *positions = store.operands
    with ir.InsertionPoint(store), store.location:
        inside = None
        for axis in axes:
            size = _size(buffer, axis)
            below = arith.CmpIOp(arith.CmpIPredicate.ult, positions[axis], size).result
            inside = below if inside is None else arith.AndIOp(inside, below).result
        branch = scf.IfOp(inside)
        with ir.InsertionPoint(branch.then_block):
            memref.StoreOp(value, buffer, positions)
            scf.YieldOp([])
    store.erase()


def _size(buffer: ir.Value, axis: int) -> ir.Value:
    static = ir.MemRefType(buffer.type).shape[axis]
    return index(static) if static != abq.DYNAMIC else memref.DimOp(buffer, index(axis)).result


def _check_not_empty(
    load: ir.Operation, sizes: dict[int, ir.Value], loops: ir.Operation | None
) -> None:
    """Position 0, which stands for those outside, must exist where anything is read at all."""
    buffer = load.operands[0]
    for axis, size in sizes.items():
        if ir.MemRefType(buffer.type).shape[axis] != abq.DYNAMIC:
            continue
        allowed = arith.CmpIOp(arith.CmpIPredicate.ne, size, index(0)).result
        if loops is not None:
            output = loops.operands[len(loops.operands) - 1]
            for other in range(ir.MemRefType(output.type).rank):
                empty = arith.CmpIOp(arith.CmpIPredicate.eq, _size(output, other), index(0)).result
                allowed = arith.OrIOp(allowed, empty).result
        cf.AssertOp(allowed, f"{blame(load)}: it reads from a tensor without elements")


def _nothing(type_: ir.Type) -> ir.Value:
    if isinstance(type_, ir.FloatType):
        return arith.ConstantOp(type_, ir.FloatAttr.get(type_, math.nan)).result
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, 0)).result
