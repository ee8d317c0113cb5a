"""Sums over what comes before a thread: in its warp, and over the warps of its block."""

from __future__ import annotations

from abqc.codegen.builder import Value, bits_of

from ..arch import WARP
from ..builder import GpuBuilder


def warp_scan(b: GpuBuilder, value: Value) -> Value:
    """The sum of the values of all lanes up to this one (Kogge and Stone's tree)."""
    distance = 1
    while distance < WARP:
        below = b.exchange(value, "up", distance)
        value = b.select(b.lane >= distance, below + value, value)
        distance *= 2
    return value


def across_warps(
    b: GpuBuilder, scratch: Value, total: Value, first: Value, warps: int, *, by_lane: bool = False
) -> tuple[Value, Value]:
    """`first` and the totals of the warps before this one; `first` and those of all, in order.

    A warp has one total, or one for each lane (`by_lane`). Totals of the first `warps` warps count.
    `scratch` in shared memory has room for those of all; the call may be repeated at once."""
    item = bits_of(total.type) // 8
    b.store(total, scratch, (b.thread if by_lane else b.warp) * item)
    b.barrier()
    before = sum_ = first
    for warp in range(warps):
        before = b.select(b.warp == warp, sum_, before)
        slot = b.lane + warp * WARP if by_lane else b.const(warp, "i32")
        sum_ = sum_ + b.load(scratch, total.type, slot * item)
    b.barrier()
    return before, sum_
