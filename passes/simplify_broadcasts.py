"""Dynamic broadcasts become indexing maps.

The front end lowers a broadcast whose sizes are only known at run time to a load inside the body,
`extract %t[select(%size == 1, 0, index i)]`. Two facts undo it:

1. In a loop that runs to `%size`, `select(%size == 1, 0, i)` is `i`: if the size is 1, i is 0.
2. A load at loop indices, or at 0 along an axis of size 1, is an operand with an indexing map.

Afterwards the broadcast fuses and vectorizes like any other operand.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg

from .infrastructure import Unit, constant_index, defining_op, register, walk


@register
def simplify_broadcasts(module: ir.Operation, unit: Unit) -> None:
    """Turn loads at loop indices inside linalg.generic into operands."""
    for op in walk(module, "linalg.generic"):
        _drop_selects(op)
        _loads_to_operands(op)


def _maps(op: ir.Operation) -> list[ir.AffineMap]:
    return [ir.AffineMapAttr(a).value for a in ir.ArrayAttr(op.attributes["indexing_maps"])]


def _dim_of_index(value: ir.Value) -> int | None:
    owner = defining_op(value)
    if owner is None or owner.name != "linalg.index":
        return None
    return ir.IntegerAttr(owner.attributes["dim"]).value


def _loop_sizes(op: ir.Operation) -> dict[int, ir.Value]:
    """The dynamic loop extents that an operand made by tensor.empty names."""
    sizes: dict[int, ir.Value] = {}
    for operand, map_ in zip(op.operands, _maps(op), strict=True):
        owner = defining_op(operand)
        if owner is not None and owner.name == "linalg.fill":
            owner = defining_op(owner.operands[1])
        if owner is None or owner.name != "tensor.empty":
            continue
        dynamic = iter(owner.operands)
        shape = ir.RankedTensorType(owner.results[0].type).shape
        for expr, size in zip(map_.results, shape, strict=True):
            value = next(dynamic) if size == abq.DYNAMIC else None
            if value is not None and isinstance(expr, ir.AffineDimExpr):
                sizes[ir.AffineDimExpr(expr).position] = value
    return sizes


def _drop_selects(op: ir.Operation) -> None:
    """Fact 1."""
    sizes = _loop_sizes(op)
    for select in walk(op, "arith.select"):
        condition, zero, loop_index = select.operands
        dim = _dim_of_index(loop_index)
        if dim is None or constant_index(zero) != 0:
            continue
        compare = defining_op(condition)
        if (
            compare is None
            or compare.name != "arith.cmpi"
            or ir.IntegerAttr(compare.attributes["predicate"]).value != 0
        ):
            continue
        if constant_index(compare.operands[1]) == 1 and _same_size(
            compare.operands[0], sizes.get(dim)
        ):
            select.results[0].replace_all_uses_with(loop_index)
            select.erase()


def _same_size(a: ir.Value, b: ir.Value | None) -> bool:
    return b is not None and _strip_casts(a) == _strip_casts(b)


def _strip_casts(value: ir.Value) -> ir.Value:
    owner = defining_op(value)
    while owner is not None and owner.name == "arith.index_cast":
        value = owner.operands[0]
        owner = defining_op(value)
    return value


def _loads_to_operands(op: ir.Operation) -> None:
    """Fact 2: rebuild the op with one more input for every such load."""
    loads = []
    for extract in walk(op, "tensor.extract"):
        source = extract.operands[0]
        if _inside(source, op):
            continue
        expressions = _affine_position(extract)
        if expressions is not None:
            loads.append((extract, source, expressions))
    if not loads:
        return
    n_loops = _maps(op)[0].n_dims
    inputs = op.operands[: len(op.operands) - len(op.results)]
    outputs = list(op.operands)[len(inputs) :]
    maps = _maps(op)
    new_maps = [ir.AffineMap.get(n_loops, 0, e) for _, _, e in loads]
    all_maps = maps[: len(inputs)] + new_maps + maps[len(inputs) :]
    with ir.InsertionPoint(op), op.location:
        new = linalg.GenericOp(
            [r.type for r in op.results],
            list(inputs) + [source for _, source, _ in loads],
            outputs,
            ir.ArrayAttr.get([ir.AffineMapAttr.get(m) for m in all_maps]),
            op.attributes["iterator_types"],
        )
    old_block = op.regions[0].blocks[0]
    types = [a.type for a in old_block.arguments]
    load_types = [extract.results[0].type for extract, _, _ in loads]
    new_types = types[: len(inputs)] + load_types + types[len(inputs) :]
    block = new.operation.regions[0].blocks.append(
        *new_types, arg_locs=[op.location] * len(new_types)
    )
    for i, argument in enumerate(old_block.arguments):
        position = i if i < len(inputs) else i + len(loads)
        argument.replace_all_uses_with(block.arguments[position])
    for i, (extract, _, _) in enumerate(loads):
        extract.results[0].replace_all_uses_with(block.arguments[len(inputs) + i])
        extract.erase()
    for inner in list(old_block.operations):
        inner.operation.move_after(block.operations[len(block.operations) - 1].operation) if len(
            block.operations
        ) else block.append(inner.operation)
    for old, result in zip(op.results, new.operation.results, strict=True):
        old.replace_all_uses_with(result)
    op.erase()


def _inside(value: ir.Value, op: ir.Operation) -> bool:
    owner = defining_op(value)
    block = value.owner if owner is None else owner.block
    return block == op.regions[0].blocks[0]


def _affine_position(extract: ir.Operation) -> list[ir.AffineExpr] | None:
    source, *indices = extract.operands
    shape = ir.RankedTensorType(source.type).shape
    expressions: list[ir.AffineExpr] = []
    for value, size in zip(indices, shape, strict=True):
        dim = _dim_of_index(value)
        if dim is not None:
            expressions.append(ir.AffineDimExpr.get(dim))
        elif size == 1 and constant_index(value) == 0:
            expressions.append(ir.AffineConstantExpr.get(0))
        else:
            return None
    return expressions
