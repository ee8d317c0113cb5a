"""The place of the first largest, or smallest, element of every row (ArgMax, ArgMin).

    arg_extreme   (x, places i64; rows i32, n i32)                    grid = ceil(rows / block)

x is rows x n. Short rows have a warp each, long ones a block. The smallest pair (key, place) is
found (order_keys.py), so that no order of comparisons matters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from abqc.codegen.builder import Value, bits_of, type_of
from abqc.codegen.strategy import Kernel, Variant

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from .order_keys import key_type, order_key

SHORT = 1024  # rows up to here have a warp
WARPS = 8  # of a block, with a row each
THREADS = 1024  # of a block that has a row
UNROLL = 4  # elements that a thread loads at once

Pair = tuple[Value, Value]  # key, place


def arg_extreme_kernels(element: str, *, largest: bool) -> tuple[Variant, ...]:
    """The kernels by n."""
    short, long = (_kernel(element, largest, by_warp) for by_warp in (True, False))
    return Variant(short, 1, SHORT), Variant(long, SHORT + 1, None)


def _kernel(element: str, largest: bool, by_warp: bool) -> Kernel:
    name = f"arg{'max' if largest else 'min'}_{element}_{'warp' if by_warp else 'block'}"
    block = (WARPS if by_warp else 1,)
    return Kernel(name, block, partial(_emit, name, element, largest, by_warp))


def _emit(
    name: str, element: str, largest: bool, by_warp: bool, module: Any, arch: GpuArch
) -> None:
    threads = WARPS * WARP if by_warp else THREADS
    key_bytes = bits_of(type_of(key_type(element))) // 8
    shared = 0 if by_warp else threads // WARP * (key_bytes + 4)
    types = [POINTER, POINTER, "i32", "i32"]
    with kernel(module, arch, name, types, threads=threads, shared=shared) as opened:
        b, block, x, places, rows, n = opened
        row = block * WARPS + b.warp if by_warp else block
        with b.when(row < rows):
            thread, step = (b.lane, WARP) if by_warp else (b.thread, threads)
            start = b.at(x, b.wide(row) * b.wide(n) * (bits_of(type_of(element)) // 8))
            best = _of_warp(b, _of_thread(b, start, element, largest, n, thread, step))
            if not by_warp:
                best = _of_block(b, best, key_bytes)
            with b.when(thread == 0):
                b.store(b.zext(best[1], "i64"), places, b.wide(row) * 8)


def _of_thread(
    b: GpuBuilder,
    row: Value,
    element: str,
    largest: bool,
    n: Value,
    thread: Value,
    step: int,
) -> Pair:
    """The first of every `step`-th element from `thread` on."""
    bits = bits_of(type_of(element))
    last = b.const((1 << (bits - 1)) - 1, key_type(element)), b.const(2**31 - 1, "i32")
    with b.loop(thread, n, step * UNROLL, last) as loop:
        best = loop.args[0], loop.args[1]
        at = [b.min(loop.i + u * step, n - 1) for u in range(UNROLL)]
        loaded = [b.load(row, element, b.wide(i) * (bits // 8), cache="nc") for i in at]
        for i, value in zip(at, loaded, strict=True):
            best = _first(b, best, (order_key(b, value, element, descending=largest), i))
        loop.carry(*best)
    return loop.results[0], loop.results[1]


def _first(b: GpuBuilder, a: Pair, c: Pair) -> Pair:
    """The pair that comes first."""
    earlier = (c[0] < a[0]) | ((c[0] == a[0]) & (c[1] < a[1]))
    return b.select(earlier, c[0], a[0]), b.select(earlier, c[1], a[1])


def _of_warp(b: GpuBuilder, pair: Pair) -> Pair:
    """The first of all lanes, in each of them."""
    distance = WARP // 2
    while distance:
        other = b.exchange(pair[0], "bfly", distance), b.exchange(pair[1], "bfly", distance)
        pair = _first(b, pair, other)
        distance //= 2
    return pair


def _of_block(b: GpuBuilder, pair: Pair, key_bytes: int) -> Pair:
    """The first of all warps (as many as a warp has lanes)."""
    keys, places = b.shared, b.at(b.shared, WARP * key_bytes)
    with b.when(b.lane == 0):
        b.store(pair[0], keys, b.warp * key_bytes)
        b.store(pair[1], places, b.warp * 4)
    b.barrier()
    key = b.load(keys, pair[0].type, b.lane * key_bytes)
    return _of_warp(b, (key, b.load(places, "i32", b.lane * 4)))
