"""Reductions over axes that lie behind each other in memory are one loop.

    sum over h, w of x[b, c, h, w]        sum over i of x[b, c, i]

A loop over a row of an image is short: most of it would not be in whole vectors.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg

from .infrastructure import Unit, register, walk
from .loops.axis_blocks import clone_body, last_joined, reads_last
from .loops.generics import asks_for_indices, inputs, iterators, loops_read, maps


@register
def collapse_reductions(module: ir.Operation, unit: Unit) -> None:
    """Make two innermost reductions one where all that is read has their axes last."""
    for op in walk(module, "linalg.generic"):
        while (made := _collapsed(op)) is not None:
            op = made


def _collapsed(op: ir.Operation) -> ir.Operation | None:
    """The loop with one reduction less; None where it has to stay."""
    kinds = iterators(op)
    if kinds[-2:] != ["reduction"] * 2 or len(op.results) != 1 or asks_for_indices(op):
        return None
    outer, inner = len(kinds) - 2, len(kinds) - 1
    *of_inputs, of_output = maps(op)
    reads = [bool(loops_read(map_.results) & {outer, inner}) for map_ in of_inputs]
    writes = bool(loops_read(of_output.results) & {outer, inner})
    if (
        writes
        or not any(reads)
        or not all(
            reads_last(map_, outer) for map_, read in zip(of_inputs, reads, strict=True) if read
        )
    ):
        return None
    with ir.InsertionPoint(op), op.location:
        values = [
            last_joined(value) if read else value
            for value, read in zip(inputs(op), reads, strict=True)
        ]
        operands = [*values, op.operands[len(values)]]
        new_maps = [
            ir.AffineMap.get(inner, 0, list(map_.results)[:-1] if read else list(map_.results))
            for map_, read in zip([*of_inputs, of_output], [*reads, False], strict=True)
        ]
        made = linalg.GenericOp(
            [op.results[0].type],
            values,
            operands[-1:],
            ir.ArrayAttr.get([ir.AffineMapAttr.get(map_) for map_ in new_maps]),
            linalg.iterator_types(kinds[:-1]),
        ).operation
        elements = [abq.element(value) for value in operands]
        block = made.regions[0].blocks.append(*elements, arg_locs=[op.location] * len(elements))
        with ir.InsertionPoint(block):
            linalg.YieldOp([clone_body(op, list(block.arguments))])
    op.results[0].replace_all_uses_with(made.results[0])
    op.erase()
    return made
