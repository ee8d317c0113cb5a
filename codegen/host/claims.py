"""Outputs are made in their own memory: the host function claims it for the buffer it returns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...dialects.mlir import arith, func, ir
from ...passes.infrastructure import defining_op
from ...passes.resolve_dims import index
from .entry import element_bytes
from .launches import Host

_MOST = 1 << 62
_VIEWS = ("memref.cast", "memref.collapse_shape", "memref.expand_shape")  # of all of a buffer


def claim_outputs(host: Host, numbers: Sequence[int]) -> None:
    """Before each allocation of the function's block that is returned, all of it, a call of
    `abqc_rt_claim`. `numbers` are the model's outputs that the function returns; a buffer that is
    returned twice is the first one's memory. After `host.rewrite()`."""
    block = host.main.regions[0].blocks[0]
    claimed: list[ir.Operation] = []
    with ir.InsertionPoint.at_block_begin(host.module.body):
        type_ = ir.FunctionType.get([host.i64, host.i32, host.i64], [])
        func.FuncOp("abqc_rt_claim", type_, visibility="private")
    returned = block.operations[len(block.operations) - 1]
    for number, value in zip(numbers, returned.operands, strict=True):
        made = _allocation(value)
        if made is None or made.block != block or made in claimed:
            continue
        if _fixed_bytes(made) > _MOST:
            continue  # the allocation will be refused
        claimed.append(made)
        with ir.InsertionPoint(made), made.location:
            operands = [host.context, host.constant(number), host.integer(_bytes(made))]
            func.CallOp([], ir.FlatSymbolRefAttr.get("abqc_rt_claim"), operands)


def _allocation(value: ir.Value) -> ir.Operation | None:
    """The memref.alloc of whose whole buffer `value` is a row-major view."""
    made = defining_op(value)
    while made is not None and made.name in _VIEWS:
        made = defining_op(made.operands[0])
    if made is None or made.name != "memref.alloc" or not _is_identity(made.results[0].type):
        return None
    return made


def _is_identity(type_: ir.Type) -> bool:
    return ir.MemRefType(type_).affine_map == ir.AffineMap.get_identity(ir.MemRefType(type_).rank)


def _fixed_bytes(made: ir.Operation) -> int:
    """Of an element, times the sizes that are known."""
    type_ = ir.MemRefType(made.results[0].type)
    sizes = [type_.get_dim_size(d) for d in range(type_.rank) if not type_.is_dynamic_dim(d)]
    return element_bytes(type_.element_type) * prod(sizes)


def _bytes(made: ir.Operation) -> ir.Value:
    """Of an allocation's elements, as an index."""
    size = index(_fixed_bytes(made))
    for dynamic in made.operands:
        size = arith.MulIOp(size, dynamic).result
    return size
