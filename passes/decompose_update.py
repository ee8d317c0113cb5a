"""`abq.update` of what the runtime does not write in place becomes a loop over the whole cache."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, tensor

from .infrastructure import Unit, register, walk
from .loops.axis_blocks import parallel_loop
from .resolve_dims import dimension_or_query, index


@register
def decompose_update(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.update as a linalg.generic that reads the past, the rows, or neither."""
    for op in walk(module, "abq.update"):
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_whole_cache(op))
        op.erase()


def _whole_cache(op: ir.Operation) -> ir.Value:
    past, rows, begins, capacity = op.operands
    axis = ir.IntegerAttr(op.attributes["axis"]).value
    type_ = ir.RankedTensorType(op.results[0].type)
    sizes = [
        size if size != abq.DYNAMIC else (capacity if i == axis else dimension_or_query(rows, i))
        for i, size in enumerate(type_.shape)
    ]
    old, new = _Part.of(past, axis), _Part.of(rows, axis)

    def body(elements: list[ir.Value]) -> ir.Value:
        at = [linalg.IndexOp(i).result for i in range(type_.rank)]
        value = _zero(type_.element_type)
        if old is not None:
            value = old.element_or(value, at, axis, at[axis])
        if new is not None:
            begin = tensor.ExtractOp(begins, [at[0]]).result
            begin = arith.IndexCastOp(ir.IndexType.get(), begin).result
            value = new.element_or(value, at, axis, arith.SubIOp(at[axis], begin).result)
        return value

    return parallel_loop([], [], tensor.EmptyOp(sizes, type_.element_type).result, body)


@dataclass(frozen=True)
class _Part:
    """A tensor with `count` elements along an axis, which has one at least."""

    source: ir.Value
    count: ir.Value

    @staticmethod
    def of(value: ir.Value, axis: int) -> _Part | None:
        """None for a tensor that is known to be empty."""
        if abq.shape(value)[axis] == 0:
            return None
        return _Part(_with_one(value, axis), dimension_or_query(value, axis))

    def element_or(
        self, other: ir.Value, at: list[ir.Value], axis: int, place: ir.Value
    ) -> ir.Value:
        """The element at `place` along `axis`, `other` where there is none."""
        inside = arith.CmpIOp(arith.CmpIPredicate.ult, place, self.count).result
        # A loop reads an element whatever it takes.
        within = arith.SelectOp(inside, place, index(0)).result
        indices = [within if i == axis else each for i, each in enumerate(at)]
        element = tensor.ExtractOp(self.source, indices).result
        return arith.SelectOp(inside, element, other).result


def _with_one(source: ir.Value, axis: int) -> ir.Value:
    """The tensor, with one element along `axis` at least."""
    shape = abq.shape(source)
    if shape[axis] != abq.DYNAMIC:
        return source
    size = dimension_or_query(source, axis)
    missing = arith.SubIOp(arith.MaxUIOp(size, index(1)).result, size).result
    high = [abq.DYNAMIC if i == axis else 0 for i in range(len(shape))]
    type_ = ir.RankedTensorType(source.type)
    padded = tensor.PadOp(type_, source, [], [missing], [0] * len(shape), high)
    block = padded.operation.regions[0].blocks.append(
        *[ir.IndexType.get()] * len(shape), arg_locs=[ir.Location.current] * len(shape)
    )
    with ir.InsertionPoint(block):
        tensor.YieldOp(_zero(type_.element_type))
    return padded.result


def _zero(type_: ir.Type) -> ir.Value:
    number = (
        ir.IntegerAttr.get(type_, 0)
        if isinstance(type_, ir.IntegerType)
        else ir.FloatAttr.get(type_, 0.0)
    )
    return arith.ConstantOp(type_, number).result
