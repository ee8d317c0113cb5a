"""Which keys the rows of an added mask see, found once for all heads and layers that share it.

    attention_limits (mask f32, limits i32, count, t, heads, rows i32, strides of the mask 4 x i64)

Row number r of `count`, (batch * heads + head) * rows + row, gets two numbers: its *end*, behind
the last key that is not hidden, and whether it is *plain*: 0 before its end. So are causal masks
and those by length, which need not be read again. A mask of -1e30 or less hides a key: beside one
that is seen, its weight is 0. A row that hides all its keys ends behind the last one, and is not
plain: its mask is read.

Grid ceil(count / 4): a warp has a row.
"""

from __future__ import annotations

from typing import Any

from abqc.codegen.builder import Value, vec
from abqc.codegen.strategy import Kernel

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel

HIDDEN = -1e30
WARPS = 4
UNROLL = 4
NAME = "attention_limits"


def limits_kernel() -> Kernel:
    """See the file's head."""
    return Kernel(NAME, (WARPS,), _emit)


def _emit(module: Any, arch: GpuArch) -> None:
    types = [POINTER, POINTER, *["i32"] * 4, *["i64"] * 4]
    with kernel(module, arch, NAME, types, threads=WARPS * WARP) as (b, block, *arguments):
        mask, limits, count, keys, heads, rows, *strides = arguments
        number = block * WARPS + b.warp
        with b.when(number < count):
            places = (number // rows // heads, number // rows % heads, number % rows)
            offset = b.wide(places[0]) * strides[0]
            for place, stride in zip(places[1:], strides[1:], strict=False):
                offset = offset + b.wide(place) * stride
            end, first = _seen(b, b.at(mask, offset * 4), strides[3] * 4, keys)
            nothing = end == 0
            plain = b.select((first >= end) & (end > 0), b.const(1, "i32"), 0)
            with b.when(b.lane == 0):
                pair = b.vector([b.select(nothing, keys, end), plain])
                b.store(pair, limits, b.wide(number) * 8)


def _seen(b: GpuBuilder, row: Value, stride: Value, keys: Value) -> tuple[Value, Value]:
    """Behind the last key that is seen, and the first one whose mask is not 0 (`keys`: none)."""
    state = [b.const(0, "i32"), keys]
    with b.loop(0, keys, UNROLL * WARP, state) as loop:
        at = [loop.i + (b.lane + u * WARP) for u in range(UNROLL)]
        values = [b.load(row, "f32", b.wide(b.min(key, keys - 1)) * stride) for key in at]
        end, first = loop.args
        for key, value in zip(at, values, strict=True):
            inside = key < keys
            # What is not a number is seen, and is not 0.
            behind = b.select(value <= HIDDEN, end, b.max(end, key + 1))
            end = b.select(inside, behind, end)
            here = b.select(value == 0.0, first, b.min(first, key))
            first = b.select(inside, here, first)
        loop.carry(end, first)
    end, first = loop.results
    return b.warp_max(end), -b.warp_max(-first)


class RowLimits:
    """The limits of the rows that a block reads; strides (i32) are those of `limits` in rows."""

    def __init__(self, b: GpuBuilder, pointer: Value, strides: list[Value]) -> None:
        self._b, self._pointer, self._strides = b, pointer, strides

    def of(self, batch: Value, head: Value, row: Value) -> tuple[Value, Value]:
        """The end of a row, and 1 where it is plain (i32)."""
        b = self._b
        places = zip((batch, head, row), self._strides, strict=True)
        terms = [place * stride for place, stride in places]
        number = terms[0] + terms[1] + terms[2]
        end, plain = b.lanes_of(b.load(self._pointer, vec(2, "i32"), b.wide(number) * 8))
        return end, plain
