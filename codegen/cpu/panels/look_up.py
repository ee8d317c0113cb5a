"""Values of indexed formats (`NumberFormat.indexed`), several codes at a time."""

from __future__ import annotations

import numpy as np
from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.stored_values import indexed_value, integer_bytes
from abqc.dialects.number_formats import NumberFormat

LANES = 16
_PERMUTE = "llvm.x86.avx512.permvar.sf.512"  # VPERMPS: 16 floats by 16 indices
_PERMUTE_BYTES = "llvm.x86.avx512.permvar.qi.512"  # VPERMB: 64 bytes by 64 indices
# VPSHUFB: in each 16 bytes of a register, those of a table by the low four bits of indices.
SHUFFLE_BYTES = {512: "llvm.x86.avx512.pshuf.b.512", 256: "llvm.x86.avx2.pshuf.b"}


def integer_values(b: Builder, codes: Value, format: NumberFormat) -> Value:
    """The integers (signed bytes) of the 64 codes that are the bytes of a vector<16xi32>."""
    table = format.integers(np.arange(1 << format.bits, dtype=np.uint8)).tolist()
    width = b.isa.vector_bits
    if len(table) <= LANES and width in SHUFFLE_BYTES:
        values = b.consts(table * (width // 8 // LANES), "i8")
        return _by_register(b, codes, values, SHUFFLE_BYTES[width])
    if width == 512:
        return _by_register(b, codes, b.consts(table, "i8"), _PERMUTE_BYTES)
    assert format.minifloat is not None, f"{format.name} has no integers"
    return integer_bytes(codes, format.minifloat)


def _by_register(b: Builder, codes: Value, table: Value, intrinsic: str) -> Value:
    """`table` looked up by each register of codes."""
    indices = b.bitcast(codes, vec(4 * LANES, "i8"))
    size = table.lanes
    parts = []
    for first in range(0, indices.lanes, size):
        part = indices if size == indices.lanes else b.slice(indices, first, size)
        parts.append(b.intrinsic(intrinsic, table.type, table, part))
    return b.bitcast(b.join(*parts), codes.type)


def indexed_values(b: Builder, codes: Value, format: NumberFormat) -> Value:
    """The values, in units of the scale, of a vector of codes (i32): f32."""
    by_permute = b.isa.vector_bits == 512 and codes.lanes == LANES
    if format.table is not None and len(format.table) == LANES and by_permute:
        values = b.consts(format.table, "f32")
        return b.intrinsic(_PERMUTE, values.type, values, codes)
    return indexed_value(b, codes, format)
