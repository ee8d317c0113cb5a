"""A gather from a float table is a loop over rows; quantized tables have a kernel of their own.

An index outside of the table is an error of the run.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, linalg, tensor

from .infrastructure import Unit, blame, register, walk
from .loops.row_loops import widened
from .resolve_dims import dimension_or_query, index


@register
def decompose_gather(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.gather of a float table as linalg.generic."""
    for op in walk(module, "abq.gather"):
        if op.opview.scale is None and not abq.is_packed(op.opview.table):
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(_rows(op))
            op.erase()


def _rows(op: ir.Operation) -> ir.Value:
    table, indices = op.opview.table, op.opview.indices
    type_ = ir.RankedTensorType(op.results[0].type)
    sizes = [
        s if s != abq.DYNAMIC else dimension_or_query(indices, i) for i, s in enumerate(type_.shape)
    ]
    empty = tensor.EmptyOp(sizes, type_.element_type).result
    identity = ir.AffineMap.get_identity(type_.rank)
    lead = ir.AffineMap.get(type_.rank, 0, list(identity.results)[:-1])
    generic = linalg.GenericOp(
        [type_],
        [indices],
        [empty],
        ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in (lead, identity)]),
        linalg.iterator_types(["parallel"] * type_.rank),
    )
    block = generic.operation.regions[0].blocks.append(
        abq.element(indices), type_.element_type, arg_locs=[op.location] * 2
    )
    with ir.InsertionPoint(block):
        row = arith.IndexCastOp(ir.IndexType.get(), block.arguments[0]).result
        rows = abq.shape(table)[0]
        inside = arith.CmpIOp(arith.CmpIPredicate.ult, row, index(rows)).result
        cf.AssertOp(inside, f"{blame(op)}: an index is outside of the table, which has {rows} rows")
        column = linalg.IndexOp(type_.rank - 1).result
        linalg.YieldOp([widened(tensor.ExtractOp(table, [row, column]).result)])
    return generic.operation.results[0]
