"""Loops over the same rows, each of which reads what those before have made of its own row, become
one kernel, whose grid indices are rows.

    mean[i] = sum of x[i, j]                            one launch, which has a row
    c[i, j] = x[i, j] - mean[i] / n                     in the first cache while
    squares[i] = sum of c[i, j]^2                       all loops read it; c, mean and
    y[i, j] = c[i, j] / sqrt(squares[i] / n + e)        squares are on the stack

Norms and other chains of reductions over rows read x once from memory and write y alone. A row is
what the loops would have as an index of their grids anyway, so no parallelism is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import arith, func, ir, memref

from .infrastructure import Unit, constant_index, defining_op, register, users, walk
from .kernels.checks import checks_of
from .kernels.launch import launch
from .kernels.loop_body import Body
from .kernels.loop_nest import Nest, analyse, grid_size, grid_work, loop_sizes
from .kernels.outlining import (
    Library,
    arguments_of,
    captured_values,
    inline_scalar_inputs,
    library_of,
    unique,
)
from .loops.effects import conflicts, read_and_written
from .ownership import VIEWS, root

MOST_LOOPS = 8  # of a kernel
ROW_BYTES = 1 << 14  # of a buffer on the stack
STACK_BYTES = 1 << 15  # of all of a kernel
INDEX_BYTES = 8
# The first operand that is a size of the result.
_FIRST_SIZE = {"memref.alloc": 0, "memref.expand_shape": 1}


@dataclass(frozen=True)
class _Rows:
    """A loop whose grid's indices are rows: `dims` of its loops, of `sizes`, numbers or where they
    come from; loops of one iteration are left out."""

    op: ir.Operation
    nest: Nest
    dims: tuple[int, ...]
    sizes: tuple[object, ...]

    def axes_of_row(self, number: int) -> tuple[int, ...] | None:
        """The axes along which operand `number` has the rows; None where what is read or written is
        not the row's alone."""
        indices = list(self.nest.maps[number].results)
        own = [ir.AffineDimExpr.get(dim) for dim in self.dims]
        return tuple(map(indices.index, own)) if all(dim in indices for dim in own) else None


@register
def merge_rows(module: ir.Operation, unit: Unit) -> None:
    """Outline loops that hand rows to each other together."""
    library = library_of(unit)
    blocks = {op.block: None for op in walk(module, "linalg.generic")}
    for op in walk(module, "linalg.generic"):
        inline_scalar_inputs(op)
    for block in blocks:
        for group in _groups([inner.operation for inner in block.operations]):
            _outline(module, group, library)


def _groups(operations: Sequence[ir.Operation]) -> list[list[_Rows]]:
    """Two loops or more each, in order, that can all stand where the last of them does."""
    found: list[list[_Rows]] = []
    group: list[_Rows] = []
    for op in operations:
        rows = _rows(op)
        if rows is not None and group and len(group) < MOST_LOOPS and _joins(rows, group):
            group.append(rows)
            continue
        if rows is None and not any(_ends(op, member) for member in group):
            continue
        found.append(group)
        group = [] if rows is None else [rows]
    return [each for each in [*found, group] if len(each) > 1]


def _ends(op: ir.Operation, member: _Rows) -> bool:
    """Whether a loop cannot be moved behind an operation: what is no more than sizes, checks and
    fills may stand between loops of a group."""
    others = len(op.regions) > 0 and op.name != "linalg.generic"
    return op.name == "func.call" or others or conflicts(member.op, op)


def _rows(op: ir.Operation) -> _Rows | None:
    """A loop without checks over whole rows of buffers."""
    if op.name != "linalg.generic" or checks_of(op) or not _buffers(read_and_written(op)[0]):
        return None
    if _buffers(captured_values(op)):
        return None
    nest = analyse(op)
    cut = nest.tiled or nest.window or nest.block is not None or nest.written
    if cut or not nest.grid or (not nest.register and "reduction" in nest.kinds):
        return None
    sizes = {dim: _size(nest, dim) for dim in nest.grid}
    rows = {dim: size for dim, size in sizes.items() if not isinstance(size, int) or size != 1}
    known = rows and not any(size is None for size in rows.values())
    return _Rows(op, nest, tuple(rows), tuple(rows.values())) if known else None


def _size(nest: Nest, dim: int) -> object | None:
    """A loop's extent: a number, or a value, or a buffer and which of its sizes it is."""
    for operand, map_ in zip(nest.operands, nest.maps, strict=True):
        for axis, expr in enumerate(map_.results):
            if isinstance(expr, ir.AffineDimExpr) and expr.position == dim:
                return _size_of(operand, axis)
    return None


def _size_of(buffer: ir.Value, axis: int) -> object:
    """The same for two buffers whose sizes are the same number, or value, or size of a third."""
    shape = list(ir.MemRefType(buffer.type).shape)
    if shape[axis] != abq.DYNAMIC:
        return shape[axis]
    op = defining_op(buffer)
    first = None if op is None else _FIRST_SIZE.get(op.name)
    if op is None or first is None:
        return buffer, axis
    value = op.operands[first + shape[:axis].count(abq.DYNAMIC)]
    made = defining_op(value)
    if made is None or made.name != "memref.dim":
        return value
    number = constant_index(made.operands[1])
    return value if number is None else _size_of(made.operands[0], number)


def _joins(rows: _Rows, group: Sequence[_Rows]) -> bool:
    """Whether a loop has the rows of a group, reads some that it has made, and none but its own."""
    everything = [*group, rows]
    if rows.sizes != group[0].sizes:
        return False
    written = {root(buffer) for member in group for buffer in read_and_written(member.op)[1]}
    if not any(root(buffer) in written for buffer in _buffers(read_and_written(rows.op)[0])):
        return False
    made = written | {root(buffer) for buffer in read_and_written(rows.op)[1]}
    if not all(_is_own(buffer, rows.op.block) for buffer in made):
        return False
    touched = {root(buffer) for member in everything for buffer in member.nest.operands}
    return not any(_may_be_one_of(buffer, made) for buffer in touched) and all(
        len(accesses) == 1 and None not in accesses for accesses in _shared(everything).values()
    )


def _shared(group: Sequence[_Rows]) -> dict[ir.Value, set[tuple[ir.Value, tuple[int, ...]] | None]]:
    """The buffers that one loop writes and another one reads or writes: as what values all of them
    do so, with the axes of their rows; None for one that reads or writes another row."""
    touched = [{root(buffer) for buffer in member.nest.operands} for member in group]
    written = [{root(buffer) for buffer in read_and_written(member.op)[1]} for member in group]
    found: dict[ir.Value, set[tuple[ir.Value, tuple[int, ...]] | None]] = {}
    for member in group:
        for number, operand in enumerate(member.nest.operands):
            buffer = root(operand)
            writers = [i for i, each in enumerate(written) if buffer in each]
            if not any(buffer in each for i in writers for j, each in enumerate(touched) if i != j):
                continue
            axes = member.axes_of_row(number)
            found.setdefault(buffer, set()).add(None if axes is None else (operand, axes))
    return found


def _is_own(buffer: ir.Value, block: ir.Block) -> bool:
    """Whether a buffer is new memory, of a block itself."""
    op = defining_op(buffer)
    return op is not None and op.name == "memref.alloc" and op.block == block


def _may_be_one_of(buffer: ir.Value, made: set[ir.Value]) -> bool:
    """Whether a buffer may be the memory of an allocation, as a result of an operation behind it
    may (`arith.select`, `scf.if`)."""
    op = defining_op(buffer)
    if op is None or op.name in ("memref.alloc", "memref.get_global"):
        return False
    return any(
        own is not None and own.block == op.block and own.is_before_in_block(op)
        for own in map(defining_op, made)
    )


def _buffers(values: Sequence[ir.Value]) -> list[ir.Value]:
    return [value for value in values if isinstance(value.type, ir.MemRefType)]


def _outline(module: ir.Operation, group: Sequence[_Rows], library: Library) -> None:
    """One kernel and its launch, where the last loop was."""
    last = group[-1].op
    with ir.InsertionPoint(last), last.location:
        sizes = [loop_sizes(member.nest) for member in group]
        rows = [sizes[0][dim] for dim in group[0].dims]
        for member, of_loop in zip(group, sizes, strict=True):
            of_loop |= zip(member.dims, rows, strict=True)
        extents = [
            [of_loop[d] for d in range(len(member.nest.kinds))]
            for member, of_loop in zip(group, sizes, strict=True)
        ]
        local = _on_stack(group)
        arguments = [
            argument
            for member, of_loop in zip(group, extents, strict=True)
            for argument in arguments_of(member.nest, of_loop)
            if argument not in local
        ]
        taken = unique(arguments)
        name = library.adopt(_emit(group, taken, extents, local, library))
        work = grid_work(group[0].nest, sizes[0])
        for member, of_loop in list(zip(group, sizes, strict=True))[1:]:
            work = arith.AddIOp(work, grid_work(member.nest, of_loop)).result
        launch(module, name, grid_size(group[0].nest, sizes[0]), [*taken, work])
    for member in group:
        if member.nest.fill is not None:
            member.nest.fill.erase()
        member.op.erase()


def _on_stack(group: Sequence[_Rows]) -> dict[ir.Value, tuple[int, ...]]:
    """What nobody else reads, as these loops do, with the axes of its rows; small ones."""
    ours = [member.op for member in group]
    ours += [member.nest.fill for member in group if member.nest.fill is not None]
    found: dict[ir.Value, tuple[int, ...]] = {}
    left = STACK_BYTES
    for buffer, accesses in _shared(group).items():
        (access,) = accesses
        assert access is not None, "a group reads its own rows"
        value, axes = access
        row = _row_type(value, axes)
        if not row.has_static_shape or not all(op in ours for op in _readers(buffer)):
            continue
        size = prod(row.shape) * _bytes(row.element_type)
        if size <= min(ROW_BYTES, left):
            found[value] = axes
            left -= size
    return found


def _readers(buffer: ir.Value) -> list[ir.Operation]:
    """All that use a buffer or a view of it for more than its sizes."""
    found = []
    for user in users(buffer):
        op = user.operation
        if op.name in VIEWS:
            found += _readers(op.results[0])
        elif op.name != "memref.dim":
            found.append(op)
    return found


def _row_type(buffer: ir.Value, axes: tuple[int, ...]) -> ir.MemRefType:
    type_ = ir.MemRefType(buffer.type)
    row = [size for axis, size in enumerate(type_.shape) if axis not in axes]
    return ir.MemRefType.get(row, type_.element_type)


def _bytes(element: ir.Type) -> int:
    numbers = isinstance(element, (ir.IntegerType, ir.FloatType))
    return -(-element.width // 8) if numbers else INDEX_BYTES


def _emit(
    group: Sequence[_Rows],
    arguments: list[ir.Value],
    extents: Sequence[list[ir.Value]],
    local: dict[ir.Value, tuple[int, ...]],
    library: Library,
) -> func.FuncOp:
    index_type = ir.IndexType.get()
    types = [index_type, *(argument.type for argument in arguments), index_type]
    with ir.InsertionPoint(library.unit.outlined.body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        row, *taken, _ = entry.arguments
        inside = dict(zip(arguments, taken, strict=True))
        with ir.InsertionPoint(entry):
            for buffer, axes in local.items():
                inside[buffer] = memref.alloca(_row_type(buffer, axes), [], [], alignment=64)
            for member, of_loop in zip(group, extents, strict=True):
                _without_rows(member.nest, local)
                Body(member.nest, inside, row, of_loop).emit()
            func.ReturnOp([])
    return kernel


def _without_rows(nest: Nest, local: dict[ir.Value, tuple[int, ...]]) -> None:
    """What is on the stack has no axes of rows."""
    maps = []
    for operand, map_ in zip(nest.operands, nest.maps, strict=True):
        gone = local.get(operand, ())
        results = [expr for axis, expr in enumerate(map_.results) if axis not in gone]
        maps.append(ir.AffineMap.get(map_.n_dims, 0, results))
    nest.maps = maps
