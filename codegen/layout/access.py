"""What follows from a layout of registers and a layout of memory: how data may move between them.

Offsets of memory are counted in elements; `bytes` of one element are given where they matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .algebra import coalesce
from .layout import Layout, LayoutError
from .swizzle import Swizzled
from .thread_value import ThreadValue

WARP = 32
BANKS = 32
BANK_BYTES = 4
MATRIX_ROWS = 8  # of one ldmatrix matrix, 16 bytes each

Memory = Layout | Swizzled


def vector_width(registers: ThreadValue, memory: Memory) -> int:
    """The most elements (a power of two) that every thread moves at once, aligned, in order.

    1 where values that follow each other in a thread do not follow each other in memory.
    """
    plain = memory.layout if isinstance(memory, Swizzled) else memory
    try:
        offsets = registers.offsets(plain)
    except LayoutError:
        return 1
    values = coalesce(offsets[1]).leaves()
    if values[0][1] != 1:
        return 1
    width = values[0][0]
    for size, stride in [*values[1:], *offsets[0].leaves()]:
        if size > 1:
            width = math.gcd(width, stride)
    if isinstance(memory, Swizzled):
        width = math.gcd(width, 1 << memory.swizzle.base)
    return width & -width


def wavefronts(addresses: Sequence[int], width: int) -> int:
    """How many passes over shared memory one warp's access takes: `width` bytes at each address.

    Wide accesses go in parts of a half (8 bytes) or a quarter (16 bytes) of a warp; in one part, a
    bank serves one 4-byte word a pass, to any number of lanes.
    """
    lanes = WARP * BANK_BYTES // max(width, BANK_BYTES)
    passes = 0
    for begin in range(0, len(addresses), lanes):
        words: dict[int, set[int]] = {}
        for address in addresses[begin : begin + lanes]:
            for word in range(address // BANK_BYTES, (address + width - 1) // BANK_BYTES + 1):
                words.setdefault(word % BANKS, set()).add(word)
        passes += max(len(distinct) for distinct in words.values())
    return passes


def ldmatrix_rows(
    fragment: ThreadValue,
    memory: Callable[..., int],
    element_bytes: int,
    *,
    transposed: bool = False,
) -> list[list[int]] | None:
    """The row addresses (bytes) with which `ldmatrix` loads a fragment; None if it cannot.

    One list of 8 rows for each matrix, that is for each 4-byte register of a thread. PTX ISA,
    "ldmatrix": thread t gets bytes 4 (t % 4) .. + 3 of row t / 4, or with `.trans` the 16-bit
    elements t / 4 of rows 2 (t % 4) and 2 (t % 4) + 1.
    """
    if fragment.threads != WARP or (transposed and element_bytes != 2):
        return None
    per_register = 4 // element_bytes
    if fragment.values % per_register:
        return None
    matrices = []
    for register in range(fragment.values // per_register):
        rows: list[int | None] = [None] * MATRIX_ROWS
        for thread in range(WARP):
            for i in range(per_register):
                row, byte = thread // 4, thread % 4 * 4 + i * element_bytes
                if transposed:
                    row, byte = thread % 4 * 2 + i, thread // 4 * 2
                at = memory(fragment(thread, register * per_register + i)) * element_bytes - byte
                if at % 16 or rows[row] not in (None, at):
                    return None
                rows[row] = at
        matrices.append([row for row in rows if row is not None])
    return matrices
