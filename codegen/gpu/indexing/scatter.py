"""Updates of single elements at positions that come from data, as if one after the other.

    places    (indices, places i32, [owners i32]; sizes... i32, count i32)
    claim     (places, owners; count i32)
    replace   (places, owners, updates, y; count i32)            these: grid = ceil(count / block)
    combine   (places, updates, y; count i32, total i32, span i32)
                                                            grid = ceil(total / (block * span))

`indices` is count x rank (i64 or i32), `updates` has `count` elements, y has `total`, the product
of the sizes. The place of an update is its element of y, or -1 for positions outside, which are
left out.

Of several updates that replace one element the last stays: each claims its element by an atomic
maximum of its number, and the owner writes (`places` makes all owners -1). Updates that are
combined with the element reach it in their order: a warp has `span` elements of y, looks at the
places of all updates, and applies those that are its own; lanes with one element take turns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from abqc.codegen.builder import Value, bits_of, type_of
from abqc.codegen.scatter import Combining, Replacing, ScatterKernels
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir

from ..arch import WARP, GpuArch
from ..builder import FULL, POINTER, GpuBuilder, kernel

# Operations `combine(update, old)`, by their names in the arith dialect.
COMBINERS = (
    *("addf", "mulf", "maximumf", "minimumf"),
    *("addi", "muli", "maxsi", "minsi", "maxui", "minui"),
)
ELEMENTS = ("f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64")  # of what is combined
THREADS = 256
WARPS = THREADS // WARP
MAX_SPANS = 4096  # warps that fit on a large GPU at once
UNROLL = 4  # places that a lane of `combine` loads at once


def scatter_kernels(rank: int, index: str, element: str, combine: str) -> ScatterKernels:
    """`element` is a type of `ELEMENTS`, or any that is replaced; `combine` is "replace" or one of
    `COMBINERS`."""
    if combine == "replace":
        places = places_kernel(rank, index, claims=True)
        return Replacing(places, claim_kernel(), replace_kernel(bits_of(type_of(element))))
    places = places_kernel(rank, index, claims=False)
    return Combining(places, combine_kernel(combine, element), WARP, MAX_SPANS)


def places_kernel(rank: int, index: str, *, claims: bool) -> Kernel:
    """`claims`: with owners. See the file's head."""
    name = f"scatter_places_{rank}_{index}{'_claims' if claims else ''}"
    return Kernel(name, (THREADS,), partial(_emit_places, name, rank, index, claims))


def claim_kernel() -> Kernel:
    """See the file's head."""
    return Kernel("scatter_claim", (THREADS,), _emit_claim)


def replace_kernel(bits: int) -> Kernel:
    """For elements of so many bits; those of one bit are bytes."""
    item = max(1, bits // 8)
    name = f"scatter_replace_{item}"
    return Kernel(name, (THREADS,), partial(_emit_replace, name, item))


def combine_kernel(combiner: str, element: str) -> Kernel:
    """`block[0]` is a number of spans. See the file's head."""
    name = f"scatter_{combiner}_{element}"
    return Kernel(name, (WARPS,), partial(_emit_combine, name, combiner, element))


def _emit_places(
    name: str, rank: int, index: str, claims: bool, module: Any, arch: GpuArch
) -> None:
    types = [POINTER] * (2 + claims) + ["i32"] * (rank + 1)
    with kernel(module, arch, name, types, threads=THREADS) as (b, block, *arguments):
        indices, places, *rest = arguments
        *sizes, count = rest[claims:]
        update = block * THREADS + b.thread
        with b.when(update < count):
            row = b.at(indices, b.wide(update) * (rank * bits_of(type_of(index)) // 8))
            place, inside = b.const(0, "i32"), b.const(1, "i1")
            for axis, size in enumerate(sizes):
                at = b.load(row, index, axis * bits_of(type_of(index)) // 8, cache="nc")
                inside = inside & (at >= 0) & (at < b.zext(size, index))
                place = place * size + b.trunc(at, "i32")
            b.store(b.select(inside, place, -1), places, b.wide(update) * 4)
            if claims:
                with b.when(inside):
                    b.store(b.const(-1, "i32"), rest[0], b.wide(place) * 4)


def _emit_claim(module: Any, arch: GpuArch) -> None:
    types = [POINTER, POINTER, "i32"]
    with kernel(module, arch, "scatter_claim", types, threads=THREADS) as opened:
        b, block, places, owners, count = opened
        update = block * THREADS + b.thread
        with b.when(update < count):
            place = b.load(places, "i32", b.wide(update) * 4)
            with b.when(place >= 0):
                b.atomic("max", owners, update, b.wide(place) * 4)


def _emit_replace(name: str, item: int, module: Any, arch: GpuArch) -> None:
    types = [POINTER] * 4 + ["i32"]
    with kernel(module, arch, name, types, threads=THREADS) as opened:
        b, block, places, owners, updates, y, count = opened
        update = block * THREADS + b.thread
        with b.when(update < count):
            place = b.load(places, "i32", b.wide(update) * 4)
            with b.when(place >= 0), b.when(b.load(owners, "i32", b.wide(place) * 4) == update):
                value = b.load(updates, f"i{8 * item}", b.wide(update) * item)
                b.store(value, y, b.wide(place) * item)


def _emit_combine(name: str, combiner: str, element: str, module: Any, arch: GpuArch) -> None:
    types = [POINTER] * 3 + ["i32"] * 3
    item = bits_of(type_of(element)) // 8
    with kernel(module, arch, name, types, threads=THREADS) as opened:
        b, block, places, updates, y, count, total, span = opened
        first = (block * WARPS + b.warp) * span
        end = b.min(first + span, total)

        def apply(update: Value, place: Value) -> None:
            at = b.wide(place) * item
            new, old = b.load(updates, element, b.wide(update) * item), b.load(y, element, at)
            made = ir.Operation.create(
                f"arith.{combiner}", results=[old.type], operands=[new.ir, old.ir]
            )
            b.store(Value(made.results[0]), y, at)

        with b.loop(0, count, WARP * UNROLL) as loop:
            numbers = [loop.i + (b.lane + i * WARP) for i in range(UNROLL)]
            loaded = [b.load(places, "i32", b.wide(b.min(n, count - 1)) * 4) for n in numbers]
            for number, place in zip(numbers, loaded, strict=True):
                mine = (number < count) & (place >= first) & (place < end)
                with b.when(_ballot(b, mine) != 0):
                    turn = _turn(b, place, mine)
                    with b.loop(0, b.warp_max(b.select(mine, turn + 1, 0))) as turns:
                        with b.when(mine & (turn == turns.i)):
                            apply(number, place)
                        b.warp_barrier()


def _ballot(b: GpuBuilder, condition: Value) -> Value:
    """The lanes for which the condition holds, as bits."""
    every = b.const(FULL, "i32")
    return b.intrinsic("llvm.nvvm.vote.ballot.sync", "i32", every, condition)


def _turn(b: GpuBuilder, place: Value, mine: Value) -> Value:
    """The number of lanes before this one that have the same place."""
    every = b.const(FULL, "i32")
    shared = b.select(mine, place, -1)
    same = b.intrinsic("llvm.nvvm.match.any.sync.i32", "i32", every, shared)
    before = (b.const(1, "i32") << b.lane) - 1
    return b.popcount(same & before)
