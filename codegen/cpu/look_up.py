"""Values of indexed formats (`NumberFormat.indexed`), several codes at a time."""

from __future__ import annotations

from ...dialects.number_formats import NumberFormat
from ..builder import Builder, Value
from ..stored_values import indexed_value

LANES = 16
_PERMUTE = "llvm.x86.avx512.permvar.sf.512"  # VPERMPS: 16 floats by 16 indices


def indexed_values(b: Builder, codes: Value, format: NumberFormat) -> Value:
    """The values, in units of the scale, of a vector of codes (i32): f32."""
    by_permute = b.isa.vector_bits == 512 and codes.lanes == LANES
    if format.table is not None and len(format.table) == LANES and by_permute:
        values = b.consts(format.table, "f32")
        return b.intrinsic(_PERMUTE, values.type, values, codes)
    return indexed_value(b, codes, format)
