"""Regions of scf operations: values that enter them, and how they get out again.

A buffer that leaves a region has one owner. What a branch or an iteration returns is therefore a
copy made for it (`owned`), which passes/insert_frees.py can give back: the memory of a loop stays
bounded. Copies of what nothing else reads vanish in passes/forward_copies.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects.mlir import bufferization, ir, scf

from ..values.symbolic import Dim, Opaque, all_atoms
from ..values.value import Value
from .emit import Builder
from .scalars import Scalar


def owned(b: Builder, value: Value, type_: ir.Type) -> ir.Value:
    """A copy of a tensor that whoever gets it may overwrite and free, as `type_`."""
    source = b.as_type(b.tensor(value), type_)
    return bufferization.AllocTensorOp(type_, [], copy=source).result


def made_after(dim: Dim, mark: int) -> bool:
    """Whether a run-time integer in `dim` was bound after `Builder.mark` was `mark`."""
    return any(isinstance(atom, Opaque) and atom.number > mark for atom in all_atoms(dim))


def detached(b: Builder, build: Callable[[], None]) -> ir.Block:
    """A block without arguments that holds what `build` emits.

    It stands in an operation of no results, which the caller erases with `place`: only the values
    in a branch tell the types of the operation that it becomes a part of.
    """
    carrier = scf.ExecuteRegionOp([])
    block = carrier.region.blocks.append()
    with b.block(block):
        build()
    return block


def place(block: ir.Block, region: ir.Region) -> None:
    """Move a block of `detached` to its region; what carried it is gone."""
    carrier = block.owner.operation
    block.append_to(region)
    carrier.erase()


def if_else(
    b: Builder,
    condition: Scalar,
    types: Sequence[ir.Type],
    then: ir.Block,
    otherwise: ir.Block,
) -> list[ir.Value]:
    """An scf.if of two finished blocks of `detached`, which end in scf.yield of `types`."""
    operation = ir.Operation.create(
        "scf.if", results=list(types), operands=[condition.ssa], regions=2
    )
    for block, region in zip((then, otherwise), operation.regions, strict=True):
        place(block, region)
    return list(operation.results)
