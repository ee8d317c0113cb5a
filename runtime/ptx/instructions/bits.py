"""Logic, shifts and bit fields (PTX ISA, "Logic and Shift Instructions", "Integer Arithmetic")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..decode import Decoder, Lanewise, Operation, instruction
from ..types import TYPES

_U32 = TYPES["u32"]
_LOGIC = {
    "and": (np.bitwise_and, np.logical_and),
    "or": (np.bitwise_or, np.logical_or),
    "xor": (np.bitwise_xor, np.logical_xor),
}


@instruction("and", "or", "xor")
def logic(i: Decoder) -> Operation:
    type = i.type()
    i.arity(3)
    of_bits, of_predicates = _LOGIC[i.opcode]
    function = of_predicates if type.kind == "p" else of_bits
    return Lanewise(function, i.result(0, type), i.source(1, type), i.source(2, type))


@instruction("not")
def invert(i: Decoder) -> Operation:
    type = i.type()
    i.arity(2)
    function = np.logical_not if type.kind == "p" else np.invert
    return Lanewise(function, i.result(0, type), i.source(1, type))


@instruction("cnot")
def logical_not(i: Decoder) -> Operation:
    """1 where the source is 0, else 0."""
    type = i.type()
    i.arity(2)
    return Lanewise(lambda a: a == 0, i.result(0, type), i.source(1, type))


@instruction("shl", "shr")
def shift(i: Decoder) -> Operation:
    """Amounts beyond the width give 0, or the sign: so do numpy's shifts."""
    type = i.type()
    i.arity(3)
    function = np.left_shift if i.opcode == "shl" else np.right_shift
    if type.bits == 32:
        # The amount as the same type: a large one turns negative, which numpy takes for too large.
        return Lanewise(function, i.result(0, type), i.source(1, type), i.source(2, type))
    dtype, most = type.dtype, type.bits

    def shifted(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
        return function(a, np.minimum(amount, most).astype(dtype))

    return Lanewise(shifted, i.result(0, type), i.source(1, type), i.source(2, _U32))


@instruction("shf")
def funnel_shift(i: Decoder) -> Operation:
    """The upper (.l) or lower (.r) word of the 64 bits b:a, shifted by c."""
    left = i.need("l", "r") == "l"
    wrap = i.need("wrap", "clamp") == "wrap"
    type = i.type()
    i.arity(4)

    def funnel(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        amount = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        return both << amount >> np.uint64(32) if left else both >> amount

    return Lanewise(funnel, i.result(0, type), *(i.source(k, _U32) for k in (1, 2, 3)))


@instruction("lop3")
def logic_of_three(i: Decoder) -> Operation:
    """Any function of three bits, by its truth table (0xF0 for a, 0xCC for b, 0xAA for c)."""
    if i.flag("or", "and"):
        raise i.error("lop3 with a predicate is not supported")
    type = i.type()
    i.arity(5)
    table = int(i.source(4, _U32).value)  # type: ignore[attr-defined]
    sources = (i.source(k, type) for k in (1, 2, 3))
    return Lanewise(_truth_table(table), i.result(0, type), *sources)


def _truth_table(table: int) -> Callable:
    """The sum of the products for which the table has a 1."""
    common = {
        0xC0: lambda a, b, c: a & b,
        0x96: lambda a, b, c: a ^ b ^ c,
        0x80: lambda a, b, c: a & b & c,
        0xFE: lambda a, b, c: a | b | c,
        0xE8: lambda a, b, c: (a & b) | (c & (a | b)),
        0xCA: lambda a, b, c: (a & b) | (~a & c),
        0xEA: lambda a, b, c: (a & b) | c,
        0xF8: lambda a, b, c: a | (b & c),
    }

    def by_products(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        total = (a & b & c) ^ (a & b & c)
        for index in range(8):
            if table >> index & 1:
                x = a if index & 4 else ~a
                y = b if index & 2 else ~b
                total = total | (x & y & (c if index & 1 else ~c))
        return total

    return common.get(table, by_products)


@instruction("popc")
def population_count(i: Decoder) -> Operation:
    type = i.type()
    i.arity(2)
    return Lanewise(np.bitwise_count, i.result(0, _U32), i.source(1, type))


def leading_zeros(a: np.ndarray, bits: int) -> np.ndarray:
    """Of unsigned numbers of up to 64 bits."""
    if bits > 32:
        high = (a >> np.uint64(32)).astype(np.uint32)
        low = a.astype(np.uint32)
        return np.where(high != 0, leading_zeros(high, 32), 32 + leading_zeros(low, 32))
    # The exponent of a double tells the highest bit of what it holds exactly.
    exponent = (a.astype(np.float64).view(np.int64) >> np.int64(52)) - 1023
    return np.where(a == 0, bits, bits - 1 - exponent)


@instruction("clz")
def count_leading_zeros(i: Decoder) -> Operation:
    type = i.type()
    i.arity(2)
    bits = type.bits
    return Lanewise(lambda a: leading_zeros(a, bits), i.result(0, _U32), i.source(1, type))


@instruction("brev")
def reverse(i: Decoder) -> Operation:
    type = i.type()
    i.arity(2)
    return Lanewise(_reversed, i.result(0, type), i.source(1, type))


_BYTE_REVERSED = np.array([int(f"{k:08b}"[::-1], 2) for k in range(256)], np.uint8)


def _reversed(a: np.ndarray) -> np.ndarray:
    bytes_of = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.dtype.itemsize)
    return np.ascontiguousarray(_BYTE_REVERSED[bytes_of][:, ::-1]).view(a.dtype).reshape(a.shape)


@instruction("bfind")
def find_leading(i: Decoder) -> Operation:
    """The highest bit that is set (that differs from the sign, for .s); all ones if none."""
    shift_amount = i.flag("shiftamt")
    type = i.type()
    i.arity(2)
    unsigned = TYPES[f"u{type.bits}"].dtype

    def find(a: np.ndarray) -> np.ndarray:
        magnitude = np.where(a < 0, ~a, a).astype(unsigned)
        zeros = leading_zeros(magnitude, type.bits)
        place = zeros if shift_amount else type.bits - 1 - zeros
        return np.where(magnitude == 0, -1, place)

    return Lanewise(find, i.result(0, _U32), i.source(1, type))


@instruction("fns")
def find_nth_set(i: Decoder) -> Operation:
    """The offset-th set bit at or above base (offset > 0), at or below it (< 0), or base itself."""
    i.type()
    i.arity(4)

    def find(mask: np.ndarray, base: np.ndarray, offset: np.ndarray) -> np.ndarray:
        mask, base, offset = np.broadcast_arrays(mask, base, offset)
        result = np.full(mask.shape, 0xFFFF_FFFF, np.uint32)
        left = np.abs(offset.astype(np.int64))
        for step in range(32):
            place = base + np.where(offset < 0, -step, step)
            inside = (place >= 0) & (place < 32)
            is_set = inside & (mask.astype(np.int64) >> np.where(inside, place, 0) & 1 != 0)
            if step == 0:
                result = np.where((offset == 0) & is_set, place, result)
            left = left - is_set
            result = np.where((offset != 0) & is_set & (left == 0), place, result)
        return result

    return Lanewise(
        find,
        i.result(0, _U32),
        i.source(1, _U32),
        i.source(2, TYPES["s32"]),
        i.source(3, TYPES["s32"]),
    )


def _field(position: np.ndarray, length: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Position and length of a bit field: the low 8 bits of either."""
    low = np.uint32(0xFF)
    return (position & low).astype(np.int64), np.minimum(length & low, bits).astype(np.int64)


@instruction("bfe")
def extract_field(i: Decoder) -> Operation:
    """Bits that lie beyond the word are its sign (.s) or 0 (.u)."""
    type = i.type()
    i.arity(4)
    bits, dtype = type.bits, type.dtype
    unsigned = TYPES[f"u{bits}"].dtype

    def extract(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, count = _field(position, length, bits)
        shifted = np.right_shift(a, np.minimum(start, bits).astype(dtype))
        unused = (bits - count).astype(unsigned)
        if type.kind == "u":
            return np.where(count == 0, 0, (shifted << unused) >> unused)
        # The sign is that of the field's last bit, or of the word's where the field goes beyond.
        raised = np.left_shift(shifted.astype(unsigned), unused).astype(dtype)
        return np.where(count == 0, 0, raised >> unused.astype(dtype))

    return Lanewise(
        extract, i.result(0, type), i.source(1, type), i.source(2, _U32), i.source(3, _U32)
    )


@instruction("bfi")
def insert_field(i: Decoder) -> Operation:
    """The low bits of a, put into b."""
    type = i.type()
    i.arity(5)
    bits, dtype = type.bits, type.dtype

    def insert(
        a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray
    ) -> np.ndarray:
        start, count = _field(position, length, bits)
        ones = np.where(count == 0, 0, ~dtype.type(0) >> (bits - count).astype(dtype)).astype(dtype)
        at = np.minimum(start, bits).astype(dtype)
        mask = np.left_shift(ones, at)
        return (b & ~mask) | (np.left_shift(a, at) & mask)

    return Lanewise(
        insert,
        i.result(0, type),
        i.source(1, type),
        i.source(2, type),
        i.source(3, _U32),
        i.source(4, _U32),
    )


@instruction("bmsk")
def bit_mask(i: Decoder) -> Operation:
    """`length` ones from `position` on; out of range is clamped or wrapped."""
    wrap = i.need("wrap", "clamp") == "wrap"
    i.type()
    i.arity(3)

    def mask(position: np.ndarray, length: np.ndarray) -> np.ndarray:
        if wrap:
            position, length = position & np.uint32(31), length & np.uint32(31)
        count = np.minimum(length, np.uint32(32)).astype(np.uint64)
        at = np.minimum(position, np.uint32(32)).astype(np.uint64)
        return ((np.uint64(1) << count) - np.uint64(1)) << at

    return Lanewise(mask, i.result(0, _U32), i.source(1, _U32), i.source(2, _U32))


_PERMUTE_MODES = ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")


@instruction("prmt")
def permute(i: Decoder) -> Operation:
    """Four bytes chosen from the eight of b:a; a selector's top bit replicates the sign."""
    mode_operand_type = i.type()
    mode = i.choose(*_PERMUTE_MODES)
    i.arity(4)
    selectors = _default_selectors if mode is None else _mode_selectors(mode)

    def chosen(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        result = np.zeros((), np.uint64)
        for k, selector in enumerate(selectors(c)):
            byte = both >> ((selector & np.uint64(7)) << np.uint64(3)) & np.uint64(0xFF)
            sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            byte = np.where(selector & np.uint64(8), sign, byte)
            result = result | byte << np.uint64(8 * k)
        return result

    constant = i.source(3, _U32)
    fast = _constant_permutation(constant) if mode is None else None
    return Lanewise(
        fast or chosen,
        i.result(0, mode_operand_type),
        i.source(1, _U32),
        i.source(2, _U32),
        constant,
    )


def _constant_permutation(source: object) -> Callable | None:
    """The usual case: selectors known, no sign replicated: shifts and masks of 64 bits."""
    value = getattr(source, "value", None)
    if value is None or int(value) & 0x8888:
        return None
    picks = [(int(value) >> 4 * k) & 7 for k in range(4)]

    def permuted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        words = (a, b)
        result = np.zeros((), np.uint32)
        for k, pick in enumerate(picks):
            word, byte = words[pick >> 2], pick & 3
            moved = np.right_shift(word, np.uint32(8 * byte)) & np.uint32(0xFF)
            result = result | moved << np.uint32(8 * k)
        return result

    return permuted


def _default_selectors(c: np.ndarray) -> list[np.ndarray]:
    return [c.astype(np.uint64) >> np.uint64(4 * k) & np.uint64(0xF) for k in range(4)]


def _mode_selectors(mode: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    tables = {
        "f4e": [(n, n + 1, n + 2, n + 3) for n in range(4)],
        "b4e": [(n, (n + 7) % 8, (n + 6) % 8, (n + 5) % 8) for n in range(4)],
        "rc8": [(n, n, n, n) for n in range(4)],
        "ecl": [(0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)],
        "ecr": [(0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)],
        "rc16": [(0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)],
    }
    table = np.array(tables[mode], np.uint64)
    return lambda c: [table[c & np.uint32(3), k] for k in range(4)]
