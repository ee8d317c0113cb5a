"""Sizes that went through a product and a division are themselves again.

Collapsing [B, H] to B * H and expanding it back leaves `(b * h) / h` behind; folded, sizes that are
equal are the same value, and broadcasts and checks between them disappear. Sizes do not wrap;
elements of tensors may, so that the bodies of linalg operations are left alone.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import Unit, constant_index, defining_op, register, walk

DIVISIONS = frozenset(("arith.divsi", "arith.divui", "arith.floordivsi"))


@register
def fold_sizes(module: ir.Operation, unit: Unit) -> None:
    """Fold `(a * b) / b` of sizes."""
    for op in walk(module):
        if op.name in DIVISIONS and not _is_elementwise(op):
            _fold_division(op)


def _is_elementwise(op: ir.Operation) -> bool:
    return op.parent is not None and op.parent.operation.name.startswith("linalg.")


def _fold_division(op: ir.Operation) -> None:
    product, divisor = defining_op(op.operands[0]), op.operands[1]
    if product is None or product.name != "arith.muli":
        return
    for factor, other in (product.operands, reversed(list(product.operands))):
        constant = constant_index(divisor)
        same = other == divisor or (constant is not None and constant == constant_index(other))
        # By zero the division is undefined anyway.
        if same and constant != 0:
            op.results[0].replace_all_uses_with(factor)
            return
