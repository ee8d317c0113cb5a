"""Updates at positions that come from data become `abq.scatter`, for targets that have kernels.

The front end makes of ScatterElements and ScatterND, as of assignments to slices, a
`tm_tensor.scatter` of single elements, whose body says how an update meets the element.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_order import ScatterOp
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, walk

# What codegen/gpu/scatter.py has kernels for.
COMBINERS = (
    *("addf", "mulf", "maximumf", "minimumf"),
    *("addi", "muli", "maxsi", "minsi", "maxui", "minui"),
)
ELEMENTS = ("f16", "bf16", "f32", "f64", "i8", "i16", "i32", "i64")
REPLACED = (*ELEMENTS, "i1")


@register
def convert_scatter(module: ir.Operation, unit: Unit) -> None:
    """Turn tm_tensor.scatter of single elements into abq.scatter."""
    for op in walk(module, "tm_tensor.scatter"):
        combine = _combine(op) if _is_of_elements(op) else None
        if combine is None:
            continue
        updates, indices, x = op.operands
        with ir.InsertionPoint(op), op.location:
            y = ScatterOp(x, indices, updates, ir.StringAttr.get(combine), x.type).result
        op.results[0].replace_all_uses_with(y)
        op.erase()


def _is_of_elements(op: ir.Operation) -> bool:
    """Whether a row of the indices is a whole position, its columns in order."""
    updates, indices, x = op.operands
    rank = len(abq.shape(x))
    axes = list(ir.DenseI64ArrayAttr(op.attributes["dimension_map"]))
    return (
        len(abq.shape(updates)) == 1
        and axes == list(range(rank))
        and abq.shape(indices)[1:] == [rank]
        and str(abq.element(indices)) in ("i32", "i64")
    )


def _combine(op: ir.Operation) -> str | None:
    """How an update meets the element; None where there is no kernel for it."""
    element = str(abq.element(op.operands[2]))
    update, old = op.regions[0].blocks[0].arguments
    result = list(op.regions[0].blocks[0].operations)[-1].operation.operands[0]
    if result == update:
        return "replace" if element in REPLACED else None
    combined = defining_op(result)
    if combined is None or list(combined.operands) not in ([update, old], [old, update]):
        return None
    dialect, _, name = combined.name.partition(".")
    known = dialect == "arith" and name in COMBINERS and element in ELEMENTS
    return name if known else None
