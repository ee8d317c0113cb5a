"""Formats whose codes are indices into a table of values: look-ups in registers.

A format of at most 4 bits joins the integer kernels with its table alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.codegen.builder import Value

from ..builder import GpuBuilder

_SIGNS = 0xBA98  # selector of `prmt`: the sign of every byte, in all its bits
_LOW_THREE = 0x07070707


def codebook_s8(b: GpuBuilder, codes: Value, values: Sequence[int]) -> Value:
    """Values by code for 4 codes of at most 4 bits: `codes` has one in the low bits of each byte.

    `values` are 2, 4, 8 or 16 signed bytes; a table of 8 is one `prmt`, one of 16 two and a select.
    """
    table = [_packed_bytes(values[i : i + 4]) for i in range(0, 16, 4) if i < len(values)]
    selector = _gather_nibbles(b, codes & _LOW_THREE)
    low = _look_up(b, table[:2], selector)
    if len(values) <= 8:
        return low
    high = _look_up(b, table[2:], selector)
    # 0xFF in the bytes whose code is 8 or more: the sign of code << 4, replicated by prmt.
    mask = b.permute_bytes(codes << 4, codes << 4, _SIGNS)
    return (low & (mask ^ -1)) | (high & mask)


def _look_up(b: GpuBuilder, table: Sequence[int], selector: Value) -> Value:
    words = [b.const(word, "i32") for word in (*table, 0)[:2]]
    return b.permute_bytes(words[0], words[1], selector)


def _gather_nibbles(b: GpuBuilder, codes: Value) -> Value:
    """The low nibbles of 4 bytes as the 4 low nibbles of a word: a selector of `prmt`."""
    pairs = codes | (codes >> 4)
    return (pairs & 0xFF) | ((pairs >> 8) & 0xFF00)


def _packed_bytes(values: Sequence[int]) -> int:
    return sum((value & 0xFF) << (8 * i) for i, value in enumerate(values))
