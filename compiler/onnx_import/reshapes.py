"""tensor.reshape by a shape computed at run time -> views, where sizes are known to multiply up."""

from __future__ import annotations

from itertools import product as pairs

from abqc.dialects.mlir import arith, cf, ir, tensor

from .polynomials import Polynomial, constant, product
from .sizes import Sizes

DYNAMIC = ir.ShapedType.get_dynamic_size()
Group = tuple[list[int], list[int]]


def reshape_to_view(op: ir.Operation, sizes: Sizes) -> None:
    """Replaces the operation by a collapse and an expand, else checks the element count."""
    source, shape = op.operands
    if isinstance(shape.owner, ir.Block) or shape.owner.name != "tensor.from_elements":
        return
    wanted = list(shape.owner.operands)
    old, new = (ir.RankedTensorType(value.type) for value in (source, op.results[0]))
    with ir.InsertionPoint(op), op.location:
        groups = match(sizes.dims(source), [sizes.of(value) for value in wanted])
        if groups is None or not _types_agree(groups, old, new):
            _check_count(source, wanted)
            return
        result = _expand(_collapse(source, groups), groups, new, wanted)
    op.results[0].replace_all_uses_with(result)
    op.erase()


def match(old: list[Polynomial], new: list[Polynomial]) -> list[Group] | None:
    """Runs of axes with equal products, as short as possible; None where there are none."""
    groups: list[Group] = []
    i = j = 0
    one = constant(1)
    while i < len(old) and j < len(new):
        lengths = sorted(
            pairs(range(1, len(old) - i + 1), range(1, len(new) - j + 1)), key=lambda ab: sum(ab)
        )
        for a, b in lengths:
            if product(old[i : i + a]) == product(new[j : j + b]):
                groups.append((list(range(i, i + a)), list(range(j, j + b))))
                i, j = i + a, j + b
                break
        else:
            return None
    if not groups or any(size != one for size in (*old[i:], *new[j:])):
        return None
    groups[-1][0].extend(range(i, len(old)))
    groups[-1][1].extend(range(j, len(new)))
    return groups


def _types_agree(groups: list[Group], old: ir.RankedTensorType, new: ir.RankedTensorType) -> bool:
    """Whether a run is static before exactly if it is after, which the view operations demand."""
    return all(
        all(old.shape[axis] != DYNAMIC for axis in before)
        == all(new.shape[axis] != DYNAMIC for axis in after)
        for before, after in groups
    )


def _collapse(source: ir.Value, groups: list[Group]) -> ir.Value:
    if all(len(before) == 1 for before, _ in groups):
        return source
    type_ = ir.RankedTensorType(source.type)
    shape = [_static_product([type_.shape[axis] for axis in before]) for before, _ in groups]
    collapsed = ir.RankedTensorType.get(shape, type_.element_type)
    return tensor.CollapseShapeOp(collapsed, source, [before for before, _ in groups]).result


def _expand(
    source: ir.Value, groups: list[Group], type_: ir.RankedTensorType, wanted: list[ir.Value]
) -> ir.Value:
    if all(len(after) == 1 for _, after in groups):
        return source
    dynamic = [_as_index(v) for v, size in zip(wanted, type_.shape, strict=True) if size == DYNAMIC]
    return tensor.ExpandShapeOp(
        type_, source, [after for _, after in groups], dynamic, list(type_.shape)
    ).result


def _check_count(source: ir.Value, wanted: list[ir.Value]) -> None:
    """A reshape that nothing explains must not read beyond its source."""
    rank = ir.RankedTensorType(source.type).rank
    index = ir.IndexType.get()
    before = arith.constant(index, 1)
    for axis in range(rank):
        size = tensor.DimOp(source, arith.constant(index, axis)).result
        before = arith.muli(before, size)
    after = arith.constant(index, 1)
    for value in wanted:
        after = arith.muli(after, _as_index(value))
    equal = arith.cmpi(arith.CmpIPredicate.eq, before, after)
    cf.assert_(equal, "a Reshape changes the number of elements")


def _as_index(value: ir.Value) -> ir.Value:
    if value.type == ir.IndexType.get():
        return value
    return arith.index_cast(ir.IndexType.get(), value)


def _static_product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        if size == DYNAMIC:
            return DYNAMIC
        total *= size
    return total
