"""Loads and stores at positions that come from data never leave their buffer.

The front end gathers by `memref.load %t[%i]` with `%i` as a model's input has it. Positions are
compared with the sizes: outside, a float is NaN and an integer 0, and nothing is stored. Whether
such a position is an error says the `cf.assert` before the load (kernels/checks.py); kernels go on
after a failed one, which is why loads are guarded either way.
"""

from __future__ import annotations

import math

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, memref, scf

from .infrastructure import Unit, blame, defining_op, register, walk
from .resolve_dims import index


@register
def guard_indices(module: ir.Operation, unit: Unit) -> None:
    """Keep loads and stores at data-dependent positions inside of their buffers."""
    known: dict[ir.Value, bool] = {}
    for load in walk(module, "memref.load"):
        axes = [axis for axis, at in enumerate(load.operands[1:]) if _is_data(at, known)]
        if axes:
            _guard(load, axes, _enclosing_generic(load))
    for store in walk(module, "memref.store"):
        axes = [axis for axis, at in enumerate(store.operands[2:]) if _is_data(at, known)]
        if axes:
            _guard_store(store, axes)


# Operations whose results are as harmless as what they are computed from.
_ARITHMETIC = ("arith.", "affine.")
_POSITIONS = frozenset(("arith.constant", "linalg.index", "memref.dim"))


def _is_data(position: ir.Value, known: dict[ir.Value, bool]) -> bool:
    """Whether a position may depend on the elements of a buffer; `known` has earlier answers.

    It does not where it is arithmetic on positions of loops, sizes and constants alone.
    """
    if position not in known:
        owner = defining_op(position)
        if owner is None:
            known[position] = not _is_position_of_a_loop(ir.BlockArgument(position))
        elif owner.name in _POSITIONS:
            known[position] = False
        else:
            known[position] = not owner.name.startswith(_ARITHMETIC) or any(
                _is_data(operand, known) for operand in owner.operands
            )
    return known[position]


def _is_position_of_a_loop(argument: ir.BlockArgument) -> bool:
    return argument.owner.owner.operation.name == "scf.for" and argument.arg_number == 0


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
        kept = arith.SelectOp(inside, value, _out_of_bounds_value(value.type)).result
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


def _out_of_bounds_value(type_: ir.Type) -> ir.Value:
    if isinstance(type_, ir.FloatType):
        return arith.ConstantOp(type_, ir.FloatAttr.get(type_, math.nan)).result
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, 0)).result
