"""Loops over steps whose rows do not depend on each other, as those of a batch in a recurrence.

Such a loop can run once for each of several parts of the rows, side by side: no part waits for
another one between steps (`divide_rows.py`). `find_rows` looks for the axis of rows in all that a
loop touches, from the states that it hands on, whose first axis they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg

from ..infrastructure import constant_index, defining_op, operand_segments, walk
from ..loops.generics import groups, loops_read, maps
from ..ownership import root
from .launch import BY_ROWS


@dataclass
class Rows:
    """The rows of a loop.

    `axes` has the axis of rows of buffers that are no views, and whether rows are not told apart
    there from what they are made of (a flat buffer). `counts` are values that are the number of
    rows, `claims` others that must be, or views would have fewer rows, or more. `uses` are the
    operands of loops over elements that have rows, with their axes.
    """

    axes: dict[ir.Value, tuple[int, bool]] = field(default_factory=dict)
    counts: set[ir.Value] = field(default_factory=set)
    claims: dict[ir.Value, None] = field(default_factory=dict)
    uses: list[tuple[ir.Operation, int, int]] = field(default_factory=list)


def find_rows(
    loop: ir.Operation, states: Sequence[ir.Value], buffers: Iterable[ir.Value]
) -> Rows | None:
    """The rows of a loop that hands on `states`, which must have equally many, and has `buffers` of
    its own; None where what it does to a row depends on others, or may."""
    search = _Search(set(states) | set(buffers), Rows())
    for state in states:
        if ir.MemRefType(state.type).shape[0] != abq.DYNAMIC:
            return None
        search.rows.axes[state] = (0, False)
    block = loop.regions[0].blocks[0]
    end = block.operations[len(block.operations) - 1].operation
    if not search.block(block):
        return None
    handed = [search.axis(value) for value in end.operands]
    if any(axis != (0, False) for axis in handed) or search.reads_what_it_writes(loop):
        return None
    return search.rows


@dataclass
class _Search:
    own: set[ir.Value]
    rows: Rows

    def block(self, block: ir.Block) -> bool:
        return all(self._operation(inner.operation) for inner in block.operations)

    def _operation(self, op: ir.Operation) -> bool:
        """Whether rows stay for themselves in an operation; finds where its results have them."""
        rule = _RULES.get(op.name)
        if rule is not None:
            return rule(self, op)
        return op.name in _PLAIN or op.name.startswith("arith.")

    def reads_what_it_writes(self, loop: ir.Operation) -> bool:
        """Whether a buffer from outside is written and read, maybe along other axes."""
        read, written = set(), set()
        for op in walk(loop):
            if op.name in ("linalg.generic", "memref.copy"):
                inputs = len(op.operands) - _outputs(op)
                read |= {root(value) for value in list(op.operands)[:inputs]}
                written |= {root(value) for value in list(op.operands)[inputs:]}
        return bool(read & written - self.own)

    # Where buffers have rows

    def axis(self, value: ir.Value) -> tuple[int, bool] | None:
        """The axis of rows of a buffer, as `Rows.axes` has it; None where it has none."""
        op, known = defining_op(value), self.rows.axes.get(value)
        if known is not None or op is None or op.name not in _VIEWS:
            return known
        source = self.axis(op.operands[0])
        found = None if source is None else _VIEWS[op.name](op, *source)
        return found if found is not None and self._has_all(op, found[0]) else None

    def _has_all(self, view: ir.Operation, axis: int) -> bool:
        """Whether a view that says how many places its axis has may say the number of rows."""
        if view.name not in _SIZES:
            return True
        size = _SIZES[view.name](view, axis)
        if size is None:
            return False
        made = defining_op(size)
        if size in self.rows.counts:
            return True
        if made is not None and made.name.startswith("arith."):
            return False
        self.rows.claims[size] = None
        return True

    def _dim(self, op: ir.Operation) -> bool:
        if not _says_sizes_only(op.results[0]):
            return root(op.operands[0]) not in self.own
        axis = self.axis(op.operands[0])
        if axis is not None and axis == (constant_index(op.operands[1]), False):
            self.rows.counts.add(op.results[0])
        return True

    # What computes

    def _call(self, op: ir.Operation) -> bool:
        """A kernel that does rows one by one: its buffers have them or are weights."""
        if BY_ROWS not in op.attributes:
            return False
        grid, *arguments = op.operands
        for value in arguments:
            if not isinstance(value.type, ir.MemRefType):
                if constant_index(value) is None and value not in self.rows.counts:
                    return False
                continue
            made = defining_op(root(value))
            if value in self.own and value not in self.rows.axes:
                self.rows.axes[value] = (0, True)
                continue
            if made is not None and made.name == "memref.get_global":
                continue
            axis = self.axis(value)
            if axis is None or axis[0] != 0:
                return False
        return self._follows(grid)

    def _if(self, op: ir.Operation) -> bool:
        inside = all(self.block(block) for region in op.regions for block in region.blocks)
        return not len(op.results) and self._follows(op.operands[0]) and inside

    def _follows(self, value: ir.Value) -> bool:
        """Whether a number follows from constants and the number of rows."""
        if constant_index(value) is not None or value in self.rows.counts:
            return True
        op = defining_op(value)
        return (
            op is not None
            and op.name.startswith("arith.")
            and all(self._follows(operand) for operand in op.operands)
        )

    def _generic(self, op: ir.Operation) -> bool:
        body = walk(op)
        inside = {result for inner in body for result in inner.results}
        captured = {o for inner in body[1:] for o in inner.operands} - inside
        buffers = any(isinstance(value.type, ir.MemRefType) for value in captured)
        asks = any(inner.name == "linalg.index" for inner in body)
        return not buffers and not asks and self._loops(op, maps(op), linalg.iterators(op))

    def _copy(self, op: ir.Operation) -> bool:
        rank = ir.MemRefType(op.operands[0].type).rank
        return self._loops(op, [ir.AffineMap.get_identity(rank)] * 2, ["parallel"] * rank)

    def _loops(self, op: ir.Operation, maps_: list[ir.AffineMap], kinds: list[str]) -> bool:
        """A loop over elements, of which one is over rows and every operand is read by it alone."""
        values = [(n, v) for n, v in enumerate(op.operands) if isinstance(v.type, ir.MemRefType)]
        if all(self.axis(v) is None for _, v in values):
            self._suppose(v for _, v in values)
        known = [(maps_[n], axis) for n, v in values if (axis := self.axis(v)) is not None]
        if not known or any(flat for _, (_, flat) in known):
            return False
        over = {str(map_.results[axis]) for map_, (axis, _) in known}
        first = known[0][0].results[known[0][1][0]]
        if len(over) > 1 or not isinstance(first, ir.AffineDimExpr):
            return False
        loop = ir.AffineDimExpr(first).position
        written = len(op.operands) - _outputs(op)
        found = [(n, v, _places(maps_[n], loop)) for n, v in values]
        if kinds[loop] != "parallel" or any(places is None for _, _, places in found):
            return False
        return all(self._operand(op, n, v, places or [], n >= written) for n, v, places in found)

    def _operand(
        self, op: ir.Operation, number: int, value: ir.Value, places: list[int], written: bool
    ) -> bool:
        """Notes an operand whose axes `places`, one at most, the loop over rows goes along."""
        if not places:
            return not written and root(value) not in self.own
        (axis,) = places
        if value in self.own and value not in self.rows.axes:
            self.rows.axes[value] = (axis, False)
            self._count(value, axis)
        elif root(value) in self.own and self.axis(value) != (axis, False):
            return False
        self.rows.uses.append((op, number, axis))
        return True

    def _suppose(self, buffers: Iterable[ir.Value]) -> None:
        """Take it that a buffer of the loop's own that was allocated for as many places as there
        are rows has them there; what uses it otherwise is found then."""
        for buffer in buffers:
            made = defining_op(buffer)
            if buffer in self.own and made is not None and made.name == "memref.alloc":
                shape = ir.MemRefType(buffer.type).shape
                axes = [axis for axis, size in enumerate(shape) if size == abq.DYNAMIC]
                counted = zip(axes, made.operands, strict=True)
                found = [axis for axis, size in counted if size in self.rows.counts]
                if found:
                    self.rows.axes[buffer] = (found[0], False)

    def _count(self, buffer: ir.Value, axis: int) -> None:
        """The size with which a buffer was allocated is the number of rows."""
        shape, made = ir.MemRefType(buffer.type).shape, defining_op(buffer)
        if made is not None and made.name == "memref.alloc" and shape[axis] == abq.DYNAMIC:
            self.rows.counts.add(made.operands[shape[:axis].count(abq.DYNAMIC)])


def _cast(op: ir.Operation, axis: int, flat: bool) -> tuple[int, bool] | None:
    return axis, flat


def _collapse(op: ir.Operation, axis: int, flat: bool) -> tuple[int, bool] | None:
    shape = ir.MemRefType(op.operands[0].type).shape
    number, group = next((n, g) for n, g in enumerate(groups(op)) if axis in g)
    if any(shape[other] != 1 for other in group if other < axis):
        return None
    return number, flat or any(shape[other] != 1 for other in group if other > axis)


def _expand(op: ir.Operation, axis: int, flat: bool) -> tuple[int, bool] | None:
    shape = ir.MemRefType(op.results[0].type).shape
    wide = [other for other in groups(op)[axis] if shape[other] != 1]
    if [shape[other] == abq.DYNAMIC for other in wide] != [True] + [False] * (len(wide) - 1):
        return None
    return (wide[0], False) if flat == (len(wide) > 1) else None


def _subview(op: ir.Operation, axis: int, flat: bool) -> tuple[int, bool] | None:
    offsets = list(ir.DenseI64ArrayAttr(op.attributes["static_offsets"]))
    strides = list(ir.DenseI64ArrayAttr(op.attributes["static_strides"]))
    ranks = {ir.MemRefType(value.type).rank for value in (op.operands[0], op.results[0])}
    plain = all(offset >= 0 for offset in offsets) and set(strides) == {1} and len(ranks) == 1
    return (axis, False) if plain and offsets[axis] == 0 and not flat else None


def _expanded_size(op: ir.Operation, axis: int) -> ir.Value | None:
    """The size that an expand_shape has for an axis; None where it is fixed."""
    shape = ir.MemRefType(op.results[0].type).shape
    if shape[axis] != abq.DYNAMIC:
        return None
    return op.operands[1 + shape[:axis].count(abq.DYNAMIC)]


def _subview_size(op: ir.Operation, axis: int) -> ir.Value | None:
    """The same of a subview."""
    sizes = list(ir.DenseI64ArrayAttr(op.attributes["static_sizes"]))
    if sizes[axis] != abq.DYNAMIC:
        return None
    offsets = operand_segments(op)[1]
    return op.operands[1 + offsets + sizes[:axis].count(abq.DYNAMIC)]


def _says_sizes_only(number: ir.Value) -> bool:
    """Whether a number from inside of a loop only says how many there are of something, so that it
    may be the number of a part."""
    for use in number.uses:
        op = use.owner.operation
        if op.name.startswith("arith."):
            if not all(map(_says_sizes_only, op.results)):
                return False
        elif op.name == "memref.subview":
            segments = operand_segments(op)
            first = segments[0] + segments[1]
            if not first <= use.operand_number < first + segments[2]:
                return False
        elif op.name not in _SIZED:
            return False
    return True


def _outputs(op: ir.Operation) -> int:
    if op.name == "memref.copy":
        return 1
    return operand_segments(op)[1]


def _places(map_: ir.AffineMap, loop: int) -> list[int] | None:
    """The axes along which a loop goes, one at most; None where it does in another way."""
    places = [axis for axis, result in enumerate(map_.results) if loop in loops_read([result])]
    plain = all(isinstance(map_.results[axis], ir.AffineDimExpr) for axis in places)
    return places if plain and len(places) <= 1 else None


_VIEWS: dict[str, Callable[[ir.Operation, int, bool], tuple[int, bool] | None]] = {
    "memref.cast": _cast,
    "memref.collapse_shape": _collapse,
    "memref.expand_shape": _expand,
    "memref.subview": _subview,
}
_SIZES: dict[str, Callable[[ir.Operation, int], ir.Value | None]] = {
    "memref.expand_shape": _expanded_size,
    "memref.subview": _subview_size,
}
_SIZED = frozenset(("memref.alloc", "memref.expand_shape", "func.call", "scf.if"))
_PLAIN = frozenset(("memref.alloc", "memref.get_global", "scf.yield", "linalg.yield", *_VIEWS))
_RULES: dict[str, Callable[[_Search, ir.Operation], bool]] = {
    "func.call": _Search._call,
    "linalg.generic": _Search._generic,
    "memref.copy": _Search._copy,
    "memref.dim": _Search._dim,
    "scf.if": _Search._if,
}
