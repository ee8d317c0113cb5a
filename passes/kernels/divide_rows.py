"""Loops over steps in parts of their rows, which `row_parts.py` has found: one loop of parts.

scf.for %part = 0 to %parts {abq.sequence, abq.parts} {   // a grid index each
  views of the part's rows of states, and of buffers of its own
  scf.for %t = ... { as it was, over fewer rows }
}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, memref, scf

from ..infrastructure import defining_op, walk
from ..ownership import root
from ..resolve_dims import index
from .launch import PARTS, SEQUENCE
from .row_parts import Rows, find_rows

ALIGNMENT = 64
_I8_BITS = 8
_DYNAMIC_STRIDE = ir.ShapedType.get_dynamic_stride_or_offset()


def divide(
    loop: ir.Operation, states: Sequence[ir.Value], buffers: Sequence[ir.Value], parts: ir.Value
) -> None:
    """Make a loop of `parts` of an scf.for that carries nothing; `states` and `buffers` are
    allocations of this block that it uses."""
    rows = find_rows(loop, states, buffers)
    assert rows is not None, "find_rows has found them in the loop that carries its states"
    with ir.InsertionPoint(loop), loop.location:
        count = memref.DimOp(states[0], index(0)).result
    shared = [_bytes_of(state, None) for state in states]
    apart = [_bytes_of(buffer, parts) for buffer in buffers]
    with ir.InsertionPoint(loop), loop.location:
        outer = scf.ForOp(index(0), parts, index(1))
        outer.operation.attributes[SEQUENCE] = ir.UnitAttr.get()
        outer.operation.attributes[PARTS] = ir.UnitAttr.get()
        with ir.InsertionPoint(outer.body):
            part = outer.induction_variable
            begin = _share(part, count, parts)
            own = _subtract(_share(_add(part, index(1)), count, parts), begin)
            end = scf.YieldOp([]).operation
        with ir.InsertionPoint(end):
            views = [
                memref.ViewOp(
                    buffer.type, buffer.raw, _times(begin, buffer.row), [own, *buffer.rest]
                )
                for buffer in shared
            ] + [
                memref.ViewOp(buffer.type, buffer.raw, _times(part, buffer.size), buffer.sizes)
                for buffer in apart
            ]
    loop.move_before(end)
    known = {each.value: view.result for each, view in zip([*shared, *apart], views, strict=True)}
    _narrow(loop, rows, known, begin, own)


@dataclass(frozen=True)
class _Bytes:
    """A buffer that is a view of bytes now. `value` is what it was, or the view of all of it; `row`
    are the bytes of a row, `size` those of all, `sizes` and `rest` its dynamic sizes with and
    without the rows."""

    value: ir.Value
    type: ir.MemRefType
    raw: ir.Value
    row: ir.Value
    size: ir.Value
    sizes: list[ir.Value]
    rest: list[ir.Value]


def _bytes_of(buffer: ir.Value, parts: ir.Value | None) -> _Bytes:
    """Replace the allocation of a buffer by one of bytes; of as much for each of `parts`."""
    alloc, type_ = defining_op(buffer), ir.MemRefType(buffer.type)
    assert alloc is not None
    i8 = ir.MemRefType.get([abq.DYNAMIC], ir.IntegerType.get_signless(_I8_BITS))
    with ir.InsertionPoint(alloc), alloc.location:
        sizes = list(alloc.operands)
        dynamic = iter(sizes)
        dims = [next(dynamic) if size == abq.DYNAMIC else index(size) for size in type_.shape]
        row = index(-(-type_.element_type.width // _I8_BITS))
        for dim in dims[1:]:
            row = _times(row, dim)
        size = _times(row, dims[0]) if dims else row
        if parts is not None:
            size = _times(arith.CeilDivUIOp(size, index(ALIGNMENT)).result, index(ALIGNMENT))
        total = size if parts is None else _times(size, parts)
        raw = memref.AllocOp(i8, [total], [], alignment=ALIGNMENT).result
        rest = sizes[1:] if type_.shape[:1] == [abq.DYNAMIC] else sizes
        whole = memref.ViewOp(type_, raw, index(0), sizes).result
    buffer.replace_all_uses_with(whole)
    alloc.erase()
    return _Bytes(whole, type_, raw, row, size, sizes, rest)


def _narrow(
    loop: ir.Operation, rows: Rows, views: dict[ir.Value, ir.Value], begin: ir.Value, own: ir.Value
) -> None:
    """Have a loop use `views` of what it owns, `own` rows of them, and of other buffers those from
    `begin` on."""
    for op in walk(loop):
        for number, operand in enumerate(op.operands):
            if operand in views:
                op.operands[number] = views[operand]
    mine = {root(view) for view in views.values()}
    inside = {result for op in walk(loop) for result in op.results}
    # One for all uses: a kernel that gets a buffer twice, as two, has to take it for two.
    parts: dict[tuple[ir.Value, int], ir.Value] = {}
    for op, number, axis in rows.uses:
        value = op.operands[number]
        first = None if root(value) in mine else begin
        if (value, axis) not in parts:
            with _behind(value, inside, loop), op.location:
                parts[value, axis] = _part(value, axis, first, own)
        op.operands[number] = parts[value, axis]
    for op in walk(loop):
        numbers = range(len(op.operands)) if op.name == "func.call" else range(op.name == "scf.if")
        for number in numbers:
            with ir.InsertionPoint(op), op.location:
                op.operands[number] = _of_part(op.operands[number], rows.counts, own)


def _behind(value: ir.Value, inside: set[ir.Value], loop: ir.Operation) -> ir.InsertionPoint:
    """The first place in a loop where a value is there, which may be one of those `inside`."""
    made = defining_op(value)
    if made is not None and value in inside:
        return ir.InsertionPoint.after(made)
    return ir.InsertionPoint.at_block_begin(loop.regions[0].blocks[0])


def _part(buffer: ir.Value, axis: int, begin: ir.Value | None, count: ir.Value) -> ir.Value:
    """`count` places of an axis from `begin` on, or from 0."""
    type_ = ir.MemRefType(buffer.type)
    strides, offset = type_.get_strides_and_offset()
    sizes = [
        memref.DimOp(buffer, index(a)).result
        for a, size in enumerate(type_.shape)
        if size == abq.DYNAMIC and a != axis
    ]
    before = type_.shape[:axis].count(abq.DYNAMIC)
    sizes.insert(before, count)
    shape = [abq.DYNAMIC if a == axis else size for a, size in enumerate(type_.shape)]
    offsets = [0] * type_.rank
    if begin is not None:
        offsets[axis], offset = abq.DYNAMIC, _DYNAMIC_STRIDE
    layout = ir.StridedLayoutAttr.get(offset, strides)
    result = ir.MemRefType.get(shape, type_.element_type, layout)
    return memref.SubViewOp(
        *(result, buffer, [] if begin is None else [begin], sizes, []),
        *(offsets, shape, [1] * type_.rank),
    ).result


def _of_part(value: ir.Value, counts: set[ir.Value], own: ir.Value) -> ir.Value:
    """A number that follows from that of the rows, for `own` of them."""
    if value in counts:
        return own
    op = defining_op(value)
    if op is None or not op.name.startswith("arith.") or op.name == "arith.constant":
        return value
    operands = [_of_part(operand, counts, own) for operand in op.operands]
    if operands == list(op.operands):
        return value
    clone = op.clone()
    for number, operand in enumerate(operands):
        clone.operands[number] = operand
    return clone.results[list(op.results).index(value)]


def _share(part: ir.Value, count: ir.Value, parts: ir.Value) -> ir.Value:
    """Where a part begins."""
    return arith.DivUIOp(_times(part, count), parts).result


def _times(x: ir.Value, y: ir.Value) -> ir.Value:
    return arith.MulIOp(x, y).result


def _add(x: ir.Value, y: ir.Value) -> ir.Value:
    return arith.AddIOp(x, y).result


def _subtract(x: ir.Value, y: ir.Value) -> ir.Value:
    return arith.SubIOp(x, y).result
