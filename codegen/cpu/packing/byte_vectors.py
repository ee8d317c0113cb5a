"""Vectors of i32 become bytes of the nearest values 0..255, four vectors at a time."""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Builder, Value, vec

PARTS = 4  # vectors that fill a vector of bytes
GROUP = 16  # bytes of which packing instructions take a quarter from each operand


def joined_bytes(b: Builder, parts: Sequence[Value]) -> Value:
    """The bytes of four vectors of equal length, one vector after another."""
    registers = [register for part in parts for register in _registers(b, part)]
    packed = []
    for at in range(0, len(registers), PARTS):
        words = _packed(b, registers[at : at + PARTS])
        quads = b.bitcast(words, vec(words.lanes // PARTS, "i32"))
        groups = quads.lanes // PARTS
        order = [group * PARTS + part for part in range(PARTS) for group in range(groups)]
        packed.append(b.bitcast(b.shuffle(quads, quads, order), words.type))
    return b.join(*packed)


def interleaved_bytes(b: Builder, parts: Sequence[Value]) -> Value:
    """Of four vectors of equal length the bytes of all first lanes, then of all second ones, ..."""
    packed = []
    for registers in zip(*(_registers(b, part) for part in parts), strict=True):
        words = _packed(b, registers)
        order = [
            group + part * PARTS + lane
            for group in range(0, words.lanes, GROUP)
            for lane in range(PARTS)
            for part in range(PARTS)
        ]
        packed.append(b.shuffle(words, words, order))
    return b.join(*packed)


def _registers(b: Builder, value: Value) -> list[Value]:
    lanes = b.isa.lanes(32)
    if value.lanes == lanes:
        return [value]
    return [b.slice(value, at, lanes) for at in range(0, value.lanes, lanes)]


def _packed(b: Builder, registers: Sequence[Value]) -> Value:
    """The bytes of four registers; every GROUP of them holds four of each, in this order."""
    lanes, isa = registers[0].lanes, b.isa
    low, high = (
        b.intrinsic(isa.pack_i32, vec(2 * lanes, "i16"), *registers[at : at + 2]) for at in (0, 2)
    )
    return b.intrinsic(isa.pack_i16, vec(4 * lanes, "i8"), low, high)
