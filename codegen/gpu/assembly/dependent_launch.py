"""Programmatic dependent launch: a kernel starts while those before it still run, and waits for
them by itself (`griddepcontrol`, from capability 9.0 on).

`griddepcontrol.wait` returns when all grids that this one depends on have ended and what they wrote
is seen. Every thread of every kernel executes it, so that no grid ends before those that it depends
on itself: dependencies reach through the kernels between. Before it a kernel may touch weights
alone, which nothing ever writes. Kernels may say where they wait (`GpuBuilder.wait`); the others do
it first.

`griddepcontrol.launch_dependents` is the first instruction of all kernels: the next grid begins
when every block of this one has begun, in the room that is left.

Loads through the read-only path (`ld.global.nc`) may be moved to before the wait, by LLVM and by
ptxas, so they are for weights alone. LLVM makes such loads of any `noalias` parameter that is never
written; so the wait is given all pointers but those of weights, as something that may write there.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import ir, llvm

from ..builder import TENSOR_MAP, WAIT, WEIGHT
from .accesses import Access, Uses, is_pointer, parameter_uses

LAUNCH_DEPENDENTS = "griddepcontrol.launch_dependents;"


def accesses_of(function: ir.Operation) -> tuple[Access, ...]:
    """By parameter of a lowered kernel: what the kernel does with the memory there."""
    return tuple(used.access for used in parameter_uses(function))


def wait_for_others(function: ir.Operation) -> tuple[Access, ...]:
    """Make a lowered kernel ready for dependent launches; its `accesses_of`, with `EARLY` for what
    may be read before the wait."""
    entry = function.regions[0].blocks[0]
    uses, weights = parameter_uses(function), _marked(function, WEIGHT)
    maps = _marked(function, TENSOR_MAP)
    others = []
    for number, (argument, used) in enumerate(zip(entry.arguments, uses, strict=True)):
        if number in weights or not used.access:
            continue
        for load in used.invariant_loads:
            if "invariant" in load.attributes:  # else it reads one parameter or another
                del load.attributes["invariant"]
        if is_pointer(argument) and number not in maps:
            others.append(argument)
    _place_wait(function, others)
    with ir.InsertionPoint.at_block_begin(entry), function.location:
        _assembly(LAUNCH_DEPENDENTS, [])
    return tuple(_with_early(used, number in weights) for number, used in enumerate(uses))


def _marked(function: ir.Operation, name: str) -> set[int]:
    """The parameters that have an attribute."""
    if "arg_attrs" not in function.attributes:
        return set()
    attributes = ir.ArrayAttr(function.attributes["arg_attrs"])
    return {i for i, each in enumerate(attributes) if name in ir.DictAttr(each)}


def _place_wait(function: ir.Operation, pointers: Sequence[ir.Value]) -> None:
    """Where the kernel says, else at its start."""
    marks = [op for op in _operations(function) if _is_wait(op)]
    if marks:
        for mark in marks:
            with ir.InsertionPoint(mark), mark.location:
                _assembly(WAIT, pointers)
            mark.erase()
        return
    with ir.InsertionPoint.at_block_begin(function.regions[0].blocks[0]), function.location:
        _assembly(WAIT, pointers)


def _operations(function: ir.Operation) -> list[ir.Operation]:
    return [op.operation for block in function.regions[0].blocks for op in block.operations]


def _is_wait(op: ir.Operation) -> bool:
    return op.name == "llvm.inline_asm" and ir.StringAttr(op.attributes["asm_string"]).value == WAIT


def _assembly(text: str, operands: Sequence[ir.Value]) -> None:
    constraints = ",".join([*["l"] * len(operands), "~{memory}"])
    llvm.InlineAsmOp(None, operands, text, constraints, has_side_effects=True)


def _with_early(used: Uses, weight: bool) -> Access:
    return used.access | Access.EARLY if weight and used.access else used.access
