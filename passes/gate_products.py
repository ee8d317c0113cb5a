"""Packs that make their rows of products are launched with these.

    fused_pack(silu(gate) * up), gate = x Wg, up = x Wu       one launch, of three operations

That is for rows of 16-bit floats, whose elements do not depend on each other: a block that has made
its part of the products packs it (codegen/gpu/matmul/gated.py). The products are all that one
launch has (`merge-products`), and nothing else reads them. They get the attribute `abq.with_next`,
and the pack stands behind the last one.
"""

from __future__ import annotations

from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, register, users, walk
from .kernels.launch import WITH_NEXT
from .lowering.matmul import gated_product


@register
def gate_products(module: ir.Operation, unit: Unit) -> None:
    """Have products packed where they are made, if the target can."""
    for pack in walk(module, "abq.fused_pack"):
        products = _products(pack)
        if products is not None and _has_kernels(products, pack, unit):
            pack.move_after(products[-1])
            products[-1].attributes[WITH_NEXT] = ir.UnitAttr.get()


def _products(pack: ir.Operation) -> list[ir.Operation] | None:
    """The products that are all that a pack reads and one launch has, in their order."""
    reads = [ir.StringAttr(read).value for read in ir.ArrayAttr(pack.attributes["reads"])]
    values = [pack.opview.x, *epilogue_inputs(pack.opview)]
    made = [defining_op(value) for value in dict.fromkeys(values)]
    if any(read != "element" for read in reads) or any(op is None for op in made):
        return None
    found = [op for op in made if op is not None and op.name == "abq.matmul"]
    if len(found) < len(made) or any(op.block != pack.block for op in found):
        return None
    if any(user.operation not in (pack,) for op in found for user in users(op.results[0])):
        return None
    block = [op.operation for op in pack.block.operations]
    first = min(block.index(op) for op in found)
    group = block[first : first + len(found)]
    alone = first == 0 or WITH_NEXT not in block[first - 1].attributes
    together = [WITH_NEXT in op.attributes for op in group]
    if not alone or set(group) != set(found) or together != [True] * (len(group) - 1) + [False]:
        return None
    return group


def _has_kernels(products: list[ir.Operation], pack: ir.Operation, unit: Unit) -> bool:
    if not unit.known_target.objects.on_device:
        return False
    columns = {ir.IntegerAttr(op.attributes["n"]).value for op in products}
    return len(columns) == 1 and gated_product(unit, products, pack, 0) is not None
