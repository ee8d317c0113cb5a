"""Decodes trellis codes to bytes in vectors: 16 channels of 4 columns, a quad of strategy `int8`.

Of a column, the symbols of 16 channels and those behind them are at most 14 bytes. A shuffle gives
every channel's lane the 4 bytes that its window begins in, a shift by lanes the window, and windows
of two columns share a multiplication of 16 bits. The byte above the product's low one is an index
into the table of 128 (its top bit does not count): VPERMI2B with AVX-512, VPSHUFB with AVX2,
else loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec
from abqc.dialects import trellis

from ..int8.layout import QUAD
from ..panels.layout import PANEL
from .layout import StreamPlace, TrellisLayout

WINDOW_BYTES = 16  # of a column, in a register
_PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"
_SHUFFLE = "llvm.x86.avx2.pshuf.b"
_SATURATE = "llvm.uadd.sat.v32i8"
_FACTOR = 8 * trellis.MULTIPLIER % (1 << 16)


@dataclass(frozen=True)
class Decoder:
    """Decodes columns of the 16 channels at `place` of the blob `w`.

    `table` is a buffer of the 128 values (`table_on_stack`), None where registers hold them.
    """

    b: Builder
    layout: TrellisLayout
    w: Value
    place: StreamPlace
    table: Value | None

    def quad(self, first: Value, end: Value | None) -> Value:
        """The values of columns `first` .. + 4, vector<16xi32>, byte t of a lane from column t.

        Columns from `end` on, where it is given, are not read: their values are 0.
        """
        b = self.b
        columns = [first + t for t in range(QUAD)]
        if end is not None:
            columns = [b.min(column, end - 1) for column in columns]
        values = self._values(columns)
        if end is None:
            return values
        known = b.from_index(b.max(b.min(end - first, QUAD), 0), "i64")
        mask = b.trunc((b.const(1, "i64") << (known * 8)) - 1, "i32")
        return values & b.splat(mask, PANEL)

    def _values(self, columns: Sequence[Value]) -> Value:
        b = self.b
        windows = [self._windows(column) for column in columns]
        hashes = [self._hash(windows[t], windows[t + 2]) for t in (0, 1)]
        indices = (hashes[0] >> 8) | (hashes[1] & 0xFF00)  # bytes 0, 2 and 1, 3
        return self._look_up(b.bitcast(indices, vec(QUAD * PANEL, "i8")))

    def _windows(self, column: Value) -> Value:
        """16 bits or more from each channel's symbol on, in the low bits of i32 lanes."""
        b, rate = self.b, self.layout.rate
        own = self.layout.row_group_bytes
        offset = column * self.place.pitch
        type_ = vec(WINDOW_BYTES, "i8")
        symbols = b.load_as(self.w, self.place.first + offset, type_)
        # Loaded so that the bytes behind the channels' own ones are where they are wanted.
        behind = b.load_as(self.w, self.place.following + offset - own, type_)
        places = [byte if byte < own else WINDOW_BYTES + byte for byte in range(WINDOW_BYTES)]
        loaded = b.shuffle(symbols, behind, places)
        begins = [rate * channel for channel in range(PANEL)]
        lanes = [min(bit // 8 + byte, WINDOW_BYTES - 1) for bit in begins for byte in range(4)]
        spread = b.bitcast(b.shuffle(loaded, loaded, lanes), vec(PANEL, "i32"))
        return spread >> b.consts([bit % 8 for bit in begins], "i32")

    def _hash(self, even: Value, odd: Value) -> Value:
        """The products of the windows of two columns, i16 lanes, theirs in turn."""
        b = self.b
        both = b.bitcast((even & 0xFFFF) | (odd << 16), vec(2 * PANEL, "i16"))
        return both * _FACTOR

    def _look_up(self, indices: Value) -> Value:
        b = self.b
        if b.isa.vector_bits == 512:
            low, high = (
                b.consts(trellis.table()[half : half + 64].tolist(), "i8") for half in (0, 64)
            )
            values = b.intrinsic(_PERMUTE, low.type, low, indices, high)
            return b.bitcast(values, vec(PANEL, "i32"))
        if b.isa.vector_bits == 256:
            halves = [self._look_up_half(b.slice(indices, at, 32)) for at in (0, 32)]
            return b.bitcast(b.join(*halves), vec(PANEL, "i32"))
        assert self.table is not None
        b.store(indices & 0x7F, self.table, trellis.TABLE_SIZE)
        with b.loop(trellis.TABLE_SIZE, trellis.TABLE_SIZE + QUAD * PANEL) as loop:
            index = b.to_index(b.zext(b.load(self.table, loop.i), "i32"))
            b.store(b.load(self.table, index), self.table, loop.i)
        return b.load_as(self.table, trellis.TABLE_SIZE, vec(PANEL, "i32"))

    def _look_up_half(self, indices: Value) -> Value:
        """32 values by VPSHUFB, which takes 4 bits of an index, and gives 0 where the top bit is
        set: that of indices, saturated, of other quarters of the table's upper half. The lower
        half is the upper one's negative, backwards."""
        b, type_ = self.b, indices.type
        upper = trellis.table()[trellis.TABLE_SIZE // 2 :]
        negative = b.select((indices & 0x40) == 0, b.const(-1, type_), 0)
        place = (indices ^ negative) & 0x3F
        magnitude = b.const(0, type_)
        for quarter in range(0, len(upper), 16):
            values = b.consts(upper[quarter : quarter + 16].tolist() * 2, "i8")
            own = b.intrinsic(_SATURATE, type_, place ^ quarter, b.const(0x70, type_))
            magnitude = magnitude | b.intrinsic(_SHUFFLE, type_, values, own)
        return (magnitude ^ negative) - negative


def table_on_stack(b: Builder) -> Value | None:
    """The table for `Decoder`, and behind it room for a quad, where no registers hold it; call it
    outside of loops."""
    if b.isa.vector_bits > 128:
        return None
    values = trellis.table()
    table = b.alloca(len(values) + QUAD * PANEL, "i8")
    for begin in range(0, len(values), PANEL):
        b.store(b.consts(values[begin : begin + PANEL].tolist(), "i8"), table, begin)
    return table
