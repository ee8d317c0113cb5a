"""Rows that several blocks make and pack together: `fused pack` of a few long rows.

    shared fused pack (x f32, inputs f32..., q, counters i32 (pointer), number of the first i32)
                      grid = rows * parts, at most MAX_ROWS rows

A block makes a part of a row, keeps it in registers and tells the others the part's range: in one
word of 64 bits, which also says that it is there. All blocks wait for the words of their row, so
all must run at once. They do: they are few and small, some eight multiprocessors have room for all,
nothing before them waits for them, and the kernels after them begin when all of these have begun
(assembly/dependent_launch.py). The last block that has read a row's words makes them 0 again. A
maximum does not depend on scheduling: the bytes are those of `pack`.

What it saves: one block reads from L2 some 41 bytes a cycle (H200, measured of packs to f16), and
issues all of a row's instructions on one multiprocessor. What it costs: a store and a load of L2
one after the other, some 1100 cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel, SharedPack
from abqc.dialects.epilogue import Epilogue, name_with

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from ..rows.reduction import over_warp
from ..rows.threads import CHUNK, Place, Row, RowThreads
from .layout import FloatRows
from .pack import PackKernel, pack_sweep
from .quantize_row import MAGNITUDE_BITS
from .row import PackRow, RowPacking

MAX_ROWS = 2
MIN_CHUNKS = 32  # of a row: shorter ones are packed sooner than others could be asked
MAX_PARTS = WARP  # a lane reads the word of each
WARPS = 4  # of a block
MAX_HELD = 4  # chunks of a warp, 16 registers of a thread; 16 would take 22 multiprocessors
ROW_WORDS = 2 + 2 * MAX_PARTS  # of counters: blocks that are done, nothing, the parts' words
THERE = -(1 << 31)  # of a part's first word, whose range is not negative


def shared_pack(pack: PackKernel, prologue: Epilogue) -> SharedPack | None:
    """What does to a few rows that the prologue makes what `pack` does; None where one block is as
    fast, or a part of a row cannot be packed without the others' codes."""
    if not _divides(pack.packing):
        return None
    chunks = -(-pack.packing.writer.positions // CHUNK)
    held = -(-chunks // (WARPS * MAX_PARTS))
    parts = -(-chunks // (WARPS * held))
    packing = replace(pack.packing, threads=RowThreads(WARPS, 1, held, 1))
    name = name_with(f"shared_{pack.name}", prologue)
    emit = partial(_emit, packing, parts, name, prologue)
    return SharedPack(Kernel(name, (1,), emit), parts, MAX_ROWS)


def _divides(packing: RowPacking) -> bool:
    chunks, layout, format = packing.writer.positions / CHUNK, packing.layout, packing.format
    if packing.hadamard_block or packing.stored or not packing.shape.dense:
        return False
    if format is None or format.kind == "binary" or isinstance(layout, FloatRows):
        return False
    if not MIN_CHUNKS <= chunks <= WARPS * MAX_PARTS * MAX_HELD:
        return False
    groups = layout.grouped
    return not layout.has_sums or (groups.groups > 1 and CHUNK % groups.padded_group == 0)


def _emit(
    packing: RowPacking, parts: int, name: str, prologue: Epilogue, module: Any, arch: GpuArch
) -> None:
    types = [POINTER, *(POINTER for _ in prologue.reads), POINTER, POINTER, "i32"]
    threads, shared = packing.threads.threads, packing.scratch_bytes
    with kernel(module, arch, name, types, threads=threads, shared=shared) as opened:
        b, block, x, *inputs, q, counters, number = opened
        row, part = Row(block // parts, b.const(1, "i1")), block % parts
        words = b.at(counters, b.wide(number + row.index * ROW_WORDS) * 4)
        exchange = _Exchange(b, words, parts, part)
        place = Place.of(b, packing.threads)
        place = replace(place, first=place.first + part * packing.threads.span)
        target = row.at(b, q, packing.layout.row_bytes)
        body = PackRow(packing, b, place, row, target, 0, of_row=exchange.of_row, leads=part == 0)
        sweep = pack_sweep(body, None, x, prologue, inputs)
        body.run(sweep, body.measure(sweep))
        exchange.leave()


@dataclass(frozen=True)
class _Exchange:
    """The words of a row's parts at `words`, of which the block has number `part`."""

    b: GpuBuilder
    words: Value
    parts: int
    part: Value

    def of_row(self, ranges: Sequence[Value], combine: Sequence[Any]) -> list[Value]:
        """The ranges (one or two words, the first not negative) of all parts, from those of the
        block's; every thread has them, and so gets them."""
        b = self.b
        first, second = (*ranges, b.const(0, "i32"))[:2]
        word = b.to_bits(b.vector([first | THERE, second]))
        with b.when(b.thread == 0):
            text = "st.relaxed.gpu.global.b64 [$0], $1;"
            b.asm(text, "l,l,~{memory}", [], self._slot(self.part), word, effects=True)
        zero = b.const(0, "i64")
        (word,) = b.either(
            b.lane < self.parts, ["i64"], lambda: [self._awaited(b.lane)], lambda: [zero]
        )
        first, second = b.lanes_of(b.from_bits(word, "vector<2xi32>"))
        mine = [first & MAGNITUDE_BITS, second][: len(ranges)]
        return [over_warp(b, value, how) for value, how in zip(mine, combine, strict=True)]

    def leave(self) -> None:
        """The block has read all words; the last one to say so makes them 0."""
        b = self.b
        b.barrier()
        with b.when(b.thread == 0):
            b.fence()
            before = b.atomic("add", self.words, b.const(1, "i32"))
            with b.when(before == self.parts - 1):
                b.fence()
                b.store(b.const(0, "i32"), self.words)
                with b.loop(0, self.parts) as loop:
                    b.store(b.const(0, "i64"), self._slot(loop.i))

    def _slot(self, part: Value) -> Value:
        return self.b.at(self.words, part * 8 + 8)

    def _awaited(self, part: Value) -> Value:
        """The word of a part, once it is there."""
        text = """{
            .reg .pred there;
            .reg .b32 first, second;
            again_${:uid}:
            ld.relaxed.gpu.global.b64 $0, [$1];
            mov.b64 {first, second}, $0;
            setp.lt.s32 there, first, 0;
            @there bra done_${:uid};
            bra again_${:uid};
            done_${:uid}:
            }"""
        return self.b.asm(text, "=&l,l,~{memory}", ["i64"], self._slot(part), effects=True)[0]
