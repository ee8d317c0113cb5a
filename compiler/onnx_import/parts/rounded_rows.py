"""Products of rows that the model itself rounds (graph/rounded_rows.py): integers, as it means."""

from __future__ import annotations

from collections.abc import Mapping

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..values.constants import Constant
from ..values.element_types import F32
from ..values.value import Value


def rounded_operand(
    b: Builder, x: Value, weight: Constant
) -> tuple[ir.Value, Mapping[str, ir.Value]] | None:
    """The codes of the rows of `x`, made when it runs, and their scales, as the first operand of
    an `abq.matmul` with a `weight` of codes; None where `x` is not rounded so."""
    if x.rounded is None or weight.quantized is None:
        return None
    source = b.tensor(x.rounded.source)
    sizes = abq.shape(source)
    code = abq.CodeType.get(ir.StringAttr.get(f"a{x.rounded.bits}:token:sym"))
    quantized = abq.QuantizeOp(
        source,
        ir.RankedTensorType.get(sizes, code),
        ir.RankedTensorType.get(sizes[:-1], F32.inside()),
        ir.RankedTensorType.get(sizes[:-1], ir.IntegerType.get_signless(32)),
    )
    return quantized.codes, {"x_scale": quantized.scale, "x_zero": quantized.zero}
