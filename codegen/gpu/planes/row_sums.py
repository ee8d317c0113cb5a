"""Copies of packed rows' sums to a stage, whoever copies: `[rows][groups] i32`."""

from __future__ import annotations

from collections.abc import Iterator

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .operands import PlaneOperands


def copy_row_sums(
    operands: PlaneOperands,
    thread: Value,
    threads: int,
    first_row: Value,
    k_block: Value,
    target: Value,
) -> None:
    """Start the copies of a block of K to pointer `target`, by `threads` threads of which this is
    number `thread`. Of groups behind the last one, that one's; of rows behind the last one, zeros.
    Sums begin at a multiple of 8 bytes."""
    b, plan = operands.b, operands.plan
    groups, last = plan.block_groups, plan.groups - 1
    size = 8 if groups % 2 == 0 and plan.groups % groups == 0 else 4
    per_row = 4 * groups // size
    for piece in pieces_of(b, thread, threads, plan.schedule.block_m * per_row):
        row, inside = piece // per_row, piece % per_row
        group = b.min(k_block * groups + inside * (size // 4), last)
        source = operands.row(first_row + row)
        at = group * 4 + plan.rows.sums_offset
        valid = b.select(first_row + row < operands.m, b.const(size, "i32"), 0)
        b.copy_async(b.at(target, piece * size), b.at(source, at), size, valid)


def pieces_of(b: GpuBuilder, thread: Value, threads: int, count: int) -> Iterator[Value]:
    """A thread's pieces of `count`; each is worked on inside of what is yielded."""
    for begin in range(0, count, threads):
        piece = thread + begin
        if begin + threads <= count:
            yield piece
        else:
            with b.when(piece < count):
                yield piece
