"""Loops that write a large output of the graph around the caches.

A store to memory that is in no cache reads its line first, and throws another one out. Kernels of
this kind make a piece of the output on the stack and store it in whole lines, non-temporally. That
pays where an output is larger than what a last-level cache would keep for the next reader, and
where next to nothing is computed: stores of a piece wait for each other while nothing else is done.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from abqc.dialects.mlir import PointerType, arith, func, ir, memref, scf

from ..infrastructure import defining_op, is_used
from ..ownership import root, uses
from ..resolve_dims import index
from .launch import STREAMS
from .loop_body import Body
from .loop_nest import Nest, static_extent

STREAM_BYTES = 1 << 24  # of an output, from which on it is stored so
PIECE = 256  # elements that are made on the stack at a time; shorter rows are left alone
LINE = 64  # bytes

# Of a body, none of which takes as long as a line of memory does.
MOST_OPERATIONS = 4


def can_stream(nest: Nest) -> bool:
    """Whether a nest writes, element by element, contiguous rows of an output of the graph that
    nothing reads before the run ends."""
    if len(nest.inner) != 1 or nest.n_outputs != 1 or nest.tiled or "reduction" in nest.kinds:
        return False
    type_ = ir.MemRefType(nest.operands[-1].type)
    element = type_.element_type
    if not isinstance(element, (ir.FloatType, ir.IntegerType)) or element.width < 8:
        return False
    rank, known = len(nest.kinds), static_extent(nest, nest.inner[0])
    if nest.maps[-1] != ir.AffineMap.get_identity(rank) or nest.inner[0] != rank - 1:
        return False
    if (known is not None and known < PIECE) or is_used(nest.arguments[-1]):
        return False
    if not _is_cheap(nest.op):
        return False
    return _is_identity_layout(type_) and _is_output(nest.op, nest.operands[-1])


def _is_cheap(op: ir.Operation) -> bool:
    body = [inner.operation.name for inner in op.regions[0].blocks[0].operations]
    computed = [name for name in body if name not in ("arith.constant", "linalg.yield")]
    return len(computed) <= MOST_OPERATIONS and all(map(_is_fast, computed))


def _is_fast(name: str) -> bool:
    """Whether an operation is one instruction or two: not exp and the like, nor a division."""
    return name.startswith("arith.") and "div" not in name and "rem" not in name


def _is_identity_layout(type_: ir.MemRefType) -> bool:
    return type_.layout == ir.AffineMapAttr.get(ir.AffineMap.get_identity(type_.rank))


def _is_output(op: ir.Operation, value: ir.Value) -> bool:
    """Whether a buffer is made for `op`, in the function's own block, and given back."""
    buffer = root(value)
    made = defining_op(buffer)
    if made is None or made.name != "memref.alloc" or op.parent.operation.name != "func.func":
        return False
    others = {user.name for user, _ in uses(buffer) if user != op} - {"memref.dim"}
    return others == {"func.return"} and [user for user, _ in uses(buffer)].count(op) == 1


def streams(nest: Nest) -> bool | None:
    """Whether a nest stores its output around the caches; None where a run decides."""
    if not can_stream(nest):
        return False
    type_ = ir.MemRefType(nest.operands[-1].type)
    if not type_.has_static_shape:
        return None
    return prod(type_.shape) * type_.element_type.width // 8 >= STREAM_BYTES


def is_large(nest: Nest, sizes: dict[int, ir.Value]) -> ir.Value:
    """Whether a run's sizes make an output that is stored so, at the insertion point."""
    total = index(ir.MemRefType(nest.operands[-1].type).element_type.width // 8)
    for size in sizes.values():
        total = arith.MulIOp(total, size).result
    least = arith.CmpIPredicate.uge
    large = arith.CmpIOp(least, total, index(STREAM_BYTES)).result
    long = arith.CmpIOp(least, sizes[nest.inner[0]], index(PIECE)).result
    return arith.AndIOp(large, long).result


class StreamedBody(Body):
    """Emits the loops of a kernel that stores its output non-temporally."""

    def emit(self) -> None:
        element = ir.MemRefType(self.nest.operands[-1].type).element_type
        self.piece = memref.AllocaOp(
            ir.MemRefType.get([PIECE], element), [], [], alignment=LINE
        ).result
        super().emit()

    def _loop(
        self, dims: list[int], begin: ir.Value, end: ir.Value, point: Callable[[], None]
    ) -> None:
        (dim,) = dims
        pieces = scf.ForOp(begin, end, index(PIECE))
        with ir.InsertionPoint(pieces.body):
            first = pieces.induction_variable
            rest = arith.SubIOp(end, first).result
            count = arith.MinUIOp(rest, index(PIECE)).result
            loop = scf.ForOp(index(0), count, index(1))
            with ir.InsertionPoint(loop.body):
                self.place = loop.induction_variable
                self.ivs[dim] = arith.AddIOp(first, self.place).result
                point()
                scf.YieldOp([])
            self._stream(dim, first, count)
            scf.YieldOp([])

    def _store(self, i: int, value: ir.Value) -> None:
        memref.StoreOp(value, self.piece, [self.place])

    def _stream(self, dim: int, first: ir.Value, count: ir.Value) -> None:
        """The piece, to the output from `first` on: whole lines, what is before and behind them.

        Buffers begin at lines (one of a caller that does not is copied into); rows may not.
        """
        target = self.inside[self.nest.operands[-1]]
        element = ir.MemRefType(target.type).element_type
        size = element.width // 8
        line = ir.VectorType.get([LINE // size], element)
        self.ivs[dim] = first
        address = self._address(target, self._indices(self.nest.maps[-1]), size)
        behind = arith.RemUIOp(arith.SubIOp(index(0), address).result, index(LINE)).result
        head = arith.MinUIOp(arith.DivUIOp(behind, index(size)).result, count).result
        lines = arith.DivUIOp(arith.SubIOp(count, head).result, index(LINE // size)).result
        whole = arith.MulIOp(lines, index(LINE // size)).result
        tail = arith.AddIOp(head, whole).result
        self._copy(dim, first, index(0), head)
        loop = scf.ForOp(head, tail, index(LINE // size))
        with ir.InsertionPoint(loop.body):
            place = loop.induction_variable
            offset = arith.MulIOp(place, index(size)).result
            _store_line(_load_line(line, self.piece, place), arith.AddIOp(address, offset).result)
            scf.YieldOp([])
        self._copy(dim, first, tail, count)

    def _copy(self, dim: int, first: ir.Value, begin: ir.Value, end: ir.Value) -> None:
        """Single elements of the piece."""
        loop = scf.ForOp(begin, end, index(1))
        with ir.InsertionPoint(loop.body):
            value = memref.LoadOp(self.piece, [loop.induction_variable]).result
            self.ivs[dim] = arith.AddIOp(first, loop.induction_variable).result
            super()._store(len(self.nest.operands) - 1, value)
            scf.YieldOp([])

    def _address(self, target: ir.Value, indices: list[ir.Value], size: int) -> ir.Value:
        """Of an element of a contiguous buffer."""
        place = index(0)
        for axis, at in enumerate(indices):
            extent = memref.DimOp(target, index(axis)).result
            place = arith.AddIOp(arith.MulIOp(place, extent).result, at).result
        begin = memref.ExtractAlignedPointerAsIndexOp(target).result
        return arith.AddIOp(begin, arith.MulIOp(place, index(size)).result).result


def _load_line(line: ir.VectorType, piece: ir.Value, place: ir.Value) -> ir.Value:
    attributes = {"nontemporal": ir.BoolAttr.get(False)}
    return ir.Operation.create("vector.load", [line], [piece, place], attributes).results[0]


def _store_line(value: ir.Value, address: ir.Value) -> None:
    i64 = ir.IntegerType.get_signless(64)
    number = arith.IndexCastOp(i64, address).result
    pointer = ir.Operation.create("llvm.inttoptr", [PointerType.get()], [number]).results[0]
    attributes = {
        "alignment": ir.IntegerAttr.get(i64, LINE),
        "nontemporal": ir.UnitAttr.get(),
    }
    ir.Operation.create("llvm.store", [], [value, pointer], attributes)


def mark_streamed(kernel: func.FuncOp) -> None:
    """What the kernel has stored is to be seen by other threads when its entry returns."""
    kernel.operation.attributes[STREAMS] = ir.UnitAttr.get()
