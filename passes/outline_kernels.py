"""What is still linalg becomes grid functions: `linalg.generic` on buffers -> kernel + launch.

One grid index is one iteration of the outer parallel loops; the innermost loops stay inside, plain,
for LLVM to vectorize:

* the last parallel axis of the output, contiguous, is the inner loop, and reductions run around it
  over memory; unless
* a reduction runs over the contiguous axis of an input: then it is the inner loop and accumulates
  in a register.

Kernels that are equal up to their names are one kernel: thirty layers share it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

from abqc.dialects import abq
from abqc.dialects.mlir import affine, arith, func, ir, linalg, memref, scf

from .infrastructure import Unit, constant_index, defining_op, register, users, walk
from .launch import LOOPS, launch
from .resolve_dims import index

FLAT_BLOCK = 4096  # elements that one grid index covers where a loop is cut into blocks
MIN_INNER = 64  # small static inner axes are kept inside until this many elements are


@register
def outline_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a grid function of its own."""
    if unit.outlined is None:
        unit.outlined = ir.Module.create()
    library = _Library(unit)
    for op in walk(module, "memref.copy"):
        _copy_to_generic(op)
    for op in walk(module, "linalg.generic"):
        _inline_scalar_inputs(op)
    for op in filter(_reduces, walk(module, "linalg.generic")):
        _outline(module, op, library)
    # What is left are no reductions, nor fills that a reduction has taken over.
    for op in walk(module, "linalg.generic"):
        _outline(module, op, library)


def _reduces(op: ir.Operation) -> bool:
    return any("reduction" in str(kind) for kind in ir.ArrayAttr(op.attributes["iterator_types"]))


def _copy_to_generic(op: ir.Operation) -> None:
    source, target = op.operands
    rank = ir.MemRefType(target.type).rank
    identity = ir.AffineMapAttr.get(ir.AffineMap.get_identity(rank))
    kind = ir.Attribute.parse("#linalg.iterator_type<parallel>")
    element = ir.MemRefType(target.type).element_type
    with ir.InsertionPoint(op), op.location:
        copy = linalg.GenericOp(
            [],
            [source],
            [target],
            ir.ArrayAttr.get([identity] * 2),
            ir.ArrayAttr.get([kind] * rank),
        )
        block = copy.operation.regions[0].blocks.append(
            element, element, arg_locs=[op.location] * 2
        )
        with ir.InsertionPoint(block):
            linalg.YieldOp([block.arguments[0]])
    op.erase()


def _inline_scalar_inputs(op: ir.Operation) -> None:
    """Inputs that are scalars (a fill's value) are used in the body as they are."""
    for operand, argument in zip(op.operands, op.regions[0].blocks[0].arguments, strict=True):
        if not isinstance(operand.type, ir.MemRefType):
            argument.replace_all_uses_with(operand)


def _buffers(op: ir.Operation) -> list[ir.Value]:
    return [o for o in op.operands if isinstance(o.type, ir.MemRefType)]


class _Library:
    """The outlined kernels, found again by their text."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.by_text: dict[str, str] = {}

    def adopt(self, kernel: func.FuncOp) -> str:
        """Keep the kernel, or erase it if an equal one exists; its name either way."""
        text = kernel.operation.get_asm(use_local_scope=True)
        known = self.by_text.get(text)
        if known is not None:
            kernel.operation.erase()
            return known
        name = f"{LOOPS}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        kernel.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        self.by_text[text] = name
        self.unit.kernels[name] = None  # its body is in unit.outlined
        return name


@dataclass
class _Nest:
    """The loops of one generic, taken apart."""

    op: ir.Operation
    maps: list[ir.AffineMap]
    kinds: list[str]
    operands: list[ir.Value]  # the buffers of the generic, outputs last
    arguments: list[ir.Value]  # the arguments of its body that belong to them
    n_outputs: int
    init: ir.Value | None = None  # the constant that a preceding fill put into the output
    fill: ir.Operation | None = None
    grid: list[int] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)  # inside the kernel, outermost first
    register: bool = False  # reductions accumulate in a register
    block: int | None = None  # iterations of inner[0] that one grid index covers; None: all


def _outline(module: ir.Operation, op: ir.Operation, library: _Library) -> None:
    nest = _analyse(op)
    captured = _captured(op)
    buffers = _unique(nest.operands + [v for v in captured if isinstance(v.type, ir.MemRefType)])
    scalars = [v for v in captured if not isinstance(v.type, ir.MemRefType)]
    with ir.InsertionPoint(op), op.location:
        sizes = _sizes(nest)
        grid = _grid(nest, sizes)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        dynamic = [s for s in extents if constant_index(s) is None]
        arguments = _unique([*buffers, *scalars, *dynamic])
        kernel = _emit(nest, arguments, extents, library)
        name = library.adopt(kernel)
        launch(module, name, grid, [*arguments, _work(nest, sizes)])
    if nest.fill is not None:
        nest.fill.erase()
    op.erase()


def _unique(values: list[ir.Value]) -> list[ir.Value]:
    return list(dict.fromkeys(values))


def _analyse(op: ir.Operation) -> _Nest:
    all_maps = [ir.AffineMapAttr(a).value for a in ir.ArrayAttr(op.attributes["indexing_maps"])]
    places = [i for i, o in enumerate(op.operands) if isinstance(o.type, ir.MemRefType)]
    maps = [all_maps[i] for i in places]
    kinds = [
        "reduction" if "reduction" in str(a) else "parallel"
        for a in ir.ArrayAttr(op.attributes["iterator_types"])
    ]
    segments = list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))
    arguments = [op.regions[0].blocks[0].arguments[i] for i in places]
    nest = _Nest(op, maps, kinds, [op.operands[i] for i in places], arguments, segments[1])
    reductions = [d for d, kind in enumerate(kinds) if kind == "reduction"]
    parallel = _parallel_in_output_order(nest)
    nest.register = bool(reductions) and _is_contiguous(nest, reductions)
    if nest.register:
        nest.grid, nest.inner = parallel, reductions
    elif reductions:
        nest.grid, nest.inner = parallel[:-1], [*reductions, *parallel[-1:]]
    else:
        nest.grid, nest.inner = parallel[:-1], parallel[-1:]
        _keep_small_axes_inside(nest)
        nest.block = _block(nest)
    nest.fill, nest.init = _preceding_fill(nest) if reductions else (None, None)
    return nest


def _parallel_in_output_order(nest: _Nest) -> list[int]:
    """Parallel loops as the output's axes have them, so that the last one is contiguous."""
    order = []
    for expr in nest.maps[-1].results:
        if isinstance(expr, ir.AffineDimExpr) and nest.kinds[expr.position] == "parallel":
            order.append(expr.position)
    rest = [d for d, k in enumerate(nest.kinds) if k == "parallel" and d not in order]
    return [*rest, *order]


def _is_contiguous(nest: _Nest, reductions: list[int]) -> bool:
    """Whether some input's last axis is a reduction and the output has no better inner loop."""
    for map_ in nest.maps[: -nest.n_outputs]:
        if map_.results:
            last = map_.results[-1]
            if isinstance(last, ir.AffineDimExpr) and last.position in reductions:
                return True
    return all(k == "reduction" for k in nest.kinds)


def _static_extent(nest: _Nest, dim: int) -> int | None:
    for operand, map_ in zip(nest.operands, nest.maps, strict=True):
        shape = ir.MemRefType(operand.type).shape
        for expr, size in zip(map_.results, shape, strict=True):
            if isinstance(expr, ir.AffineDimExpr) and expr.position == dim and size != abq.DYNAMIC:
                return size
    return None


def _keep_small_axes_inside(nest: _Nest) -> None:
    count = 1
    while nest.grid:
        size = _static_extent(nest, nest.inner[0])
        if size is None or count * size >= MIN_INNER:
            return
        count *= size
        nest.inner.insert(0, nest.grid.pop())


def _block(nest: _Nest) -> int | None:
    """Long outer loops inside of a kernel are cut into blocks of about FLAT_BLOCK elements.

    Short ones stay whole, and so does a plain row under a grid: rows are tasks enough.
    """
    if not nest.inner:
        return None
    first, *others = [_static_extent(nest, dim) for dim in nest.inner]
    row = math.prod(size or 1 for size in others)
    if first is not None and first * row <= FLAT_BLOCK:
        return None
    if first is None and nest.grid and not others:
        return None
    return max(1, FLAT_BLOCK // max(row, 1))


def _preceding_fill(nest: _Nest) -> tuple[ir.Operation | None, ir.Value | None]:
    """The fill (a generic without inputs) of the output before `nest`, and what it fills with.

    None where anything else touches the output between: a launch, a view, code in a region.
    """
    if nest.n_outputs != 1:
        return None, None
    found: tuple[ir.Operation | None, ir.Value | None] = None, None
    for user in users(nest.operands[-1]):
        op = user.operation
        if op == nest.op or op.name == "memref.dim":
            continue
        outer = _ancestor_in(nest.op.block, op)
        if outer is None or not outer.is_before_in_block(nest.op):
            continue
        constant = _fill_constant(op) if op.block == nest.op.block else None
        if constant is None or found[0] is not None:
            return None, None
        found = op, constant
    return found


def _ancestor_in(block: ir.Block, op: ir.Operation) -> ir.Operation | None:
    """The operation of `block` that is `op` or has it inside; None where there is none."""
    current: ir.Operation | None = op
    while current is not None and current.block != block:
        current = None if current.parent is None else current.parent.operation
        if current is not None and current.name == "func.func":
            return None
    return current


def _fill_constant(op: ir.Operation) -> ir.Value | None:
    """The constant that an operation writes everywhere, None if it does anything else."""
    if op.name != "linalg.generic" or len(_buffers(op)) != 1:
        return None
    body = list(op.regions[0].blocks[0].operations)
    if len(body) != 1:
        return None
    value = body[0].operation.operands[0]
    owner = defining_op(value)
    return value if owner is not None and owner.name == "arith.constant" else None


def _captured(op: ir.Operation) -> list[ir.Value]:
    """Values from outside that the body uses, constants excepted (they are cloned)."""
    inside: set[ir.Value] = set()
    captured: list[ir.Value] = []
    for block in op.regions[0].blocks:
        inside.update(block.arguments)
    for inner in walk(op):
        if inner == op:
            continue
        for region in inner.regions:
            for block in region.blocks:
                inside.update(block.arguments)
        for operand in inner.operands:
            owner = defining_op(operand)
            if operand not in inside and not (owner is not None and owner.name == "arith.constant"):
                captured.append(operand)
        inside.update(inner.results)
    return [v for v in _unique(captured) if v not in inside]


def _sizes(nest: _Nest) -> dict[int, ir.Value]:
    """The extent of every loop, on the host."""
    sizes: dict[int, ir.Value] = {}
    for dim in range(len(nest.kinds)):
        static = _static_extent(nest, dim)
        if static is not None:
            sizes[dim] = index(static)
            continue
        for operand, map_ in zip(nest.operands, nest.maps, strict=True):
            position = _position(map_, dim)
            if position is not None:
                sizes[dim] = memref.DimOp(operand, index(position)).result
                break
        else:
            raise ValueError(f"no operand of {nest.op} says how far loop {dim} runs")
    return sizes


def _position(map_: ir.AffineMap, dim: int) -> int | None:
    for position, expr in enumerate(map_.results):
        if isinstance(expr, ir.AffineDimExpr) and expr.position == dim:
            return position
    return None


def _grid(nest: _Nest, sizes: dict[int, ir.Value]) -> ir.Value:
    """The size of the grid."""
    total = index(1)
    for dim in nest.grid:
        total = arith.MulIOp(total, sizes[dim]).result
    if nest.block is not None:
        blocks = arith.CeilDivUIOp(sizes[nest.inner[0]], index(nest.block)).result
        total = arith.MulIOp(total, blocks).result
    return total


def _work(nest: _Nest, sizes: dict[int, ir.Value]) -> ir.Value:
    """How many elements one grid index touches: the host starts no threads for a few."""
    work = index(1) if nest.block is None else index(nest.block)
    for dim in nest.inner if nest.block is None else nest.inner[1:]:
        work = arith.MulIOp(work, sizes[dim]).result
    return work


def _emit(
    nest: _Nest, arguments: list[ir.Value], extents: list[ir.Value], library: _Library
) -> func.FuncOp:
    index_type = ir.IndexType.get()
    types = [index_type, *(a.type for a in arguments), index_type]
    body = library.unit.outlined.body
    with ir.InsertionPoint(body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        inside = dict(zip(arguments, list(entry.arguments)[1:-1], strict=True))
        with ir.InsertionPoint(entry):
            _Body(nest, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
    return kernel


class _Body:
    """Emits the loops of one kernel."""

    def __init__(
        self,
        nest: _Nest,
        inside: dict[ir.Value, ir.Value],
        grid_index: ir.Value,
        extents: list[ir.Value],
    ) -> None:
        self.nest = nest
        self.inside = inside
        self.grid_index = grid_index
        self.extents = [self._local(e) for e in extents]
        self.ivs: dict[int, ir.Value] = {}

    def _local(self, value: ir.Value) -> ir.Value:
        constant = constant_index(value)
        return self.inside[value] if constant is None else index(constant)

    def emit(self) -> None:
        self._delinearize()
        if self.nest.register:
            self._reduce_in_register()
        else:
            if self.nest.init is not None:
                self._loops(self._output_loops(), self._store_init)
            self._loops(self.nest.inner, self._point_through_memory)

    def _output_loops(self) -> list[int]:
        return [d for d in self.nest.inner if self.nest.kinds[d] == "parallel"]

    def _delinearize(self) -> None:
        rest, block = self.grid_index, self.nest.block
        if block is not None:
            number = rest
            if self.nest.grid:
                length = self.extents[self.nest.inner[0]]
                blocks = arith.CeilDivUIOp(length, index(block)).result
                number = arith.RemUIOp(rest, blocks).result
                rest = arith.DivUIOp(rest, blocks).result
            self.begin = arith.MulIOp(number, index(block)).result
        for dim in reversed(self.nest.grid[1:]):
            size = self.extents[dim]
            self.ivs[dim] = arith.RemUIOp(rest, size).result
            rest = arith.DivUIOp(rest, size).result
        if self.nest.grid:
            self.ivs[self.nest.grid[0]] = rest

    def _bounds(self, dim: int) -> tuple[ir.Value, ir.Value]:
        if self.nest.block is None or dim != self.nest.inner[0]:
            return index(0), self.extents[dim]
        end = arith.AddIOp(self.begin, index(self.nest.block)).result
        return self.begin, arith.MinUIOp(end, self.extents[dim]).result

    def _loops(self, dims: list[int], point) -> None:  # type: ignore[no-untyped-def]
        if not dims:
            point()
            return
        begin, end = self._bounds(dims[0])
        loop = scf.ForOp(begin, end, index(1))
        with ir.InsertionPoint(loop.body):
            self.ivs[dims[0]] = loop.induction_variable
            self._loops(dims[1:], point)
            scf.YieldOp([])

    def _indices(self, map_: ir.AffineMap) -> list[ir.Value]:
        return [self._apply(expr, map_.n_dims) for expr in map_.results]

    def _apply(self, expr: ir.AffineExpr, n_dims: int) -> ir.Value:
        if isinstance(expr, ir.AffineDimExpr):
            return self.ivs[expr.position]
        if isinstance(expr, ir.AffineConstantExpr):
            return index(expr.value)
        map_ = ir.AffineMap.get(n_dims, 0, [expr])
        operands = [self.ivs.get(d) or index(0) for d in range(n_dims)]
        return affine.AffineApplyOp(map_, operands).result

    def _load(self, i: int) -> ir.Value:
        operand = self.inside[self.nest.operands[i]]
        return memref.LoadOp(operand, self._indices(self.nest.maps[i])).result

    def _store(self, i: int, value: ir.Value) -> None:
        operand = self.inside[self.nest.operands[i]]
        memref.StoreOp(value, operand, self._indices(self.nest.maps[i]))

    def _store_init(self) -> None:
        self._store(len(self.nest.operands) - 1, self._clone_constant(self.nest.init))

    def _clone_constant(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        owner = defining_op(value)
        assert owner is not None
        return owner.clone().results[0]

    def _point_through_memory(self) -> None:
        arguments = [
            self._load(i) if _is_used(argument) else None
            for i, argument in enumerate(self.nest.arguments)
        ]
        first = len(self.nest.operands) - self.nest.n_outputs
        for i, value in enumerate(self._clone_body(arguments)):
            self._store(first + i, value)

    def _reduce_in_register(self) -> None:
        first = len(self.nest.operands) - self.nest.n_outputs
        outputs = range(first, len(self.nest.operands))
        if self.nest.init is not None:
            start = [self._clone_constant(self.nest.init)]
        else:
            start = [self._load(i) for i in outputs]
        results = self._reduction_loops(self.nest.inner, start)
        for i, value in zip(outputs, results, strict=True):
            self._store(i, value)

    def _reduction_loops(self, dims: list[int], carried: list[ir.Value]) -> list[ir.Value]:
        loop = scf.ForOp(index(0), self.extents[dims[0]], index(1), carried)
        with ir.InsertionPoint(loop.body):
            self.ivs[dims[0]] = loop.induction_variable
            inner = list(loop.inner_iter_args)
            if len(dims) > 1:
                values = self._reduction_loops(dims[1:], inner)
            else:
                first = len(self.nest.operands) - self.nest.n_outputs
                values = self._clone_body([self._load(i) for i in range(first)] + inner)
            scf.YieldOp(values)
        return list(loop.results)

    def _clone_body(self, arguments: list[ir.Value | None]) -> list[ir.Value]:
        """Clone the generic's body with its arguments replaced; the yielded values."""
        block = self.nest.op.regions[0].blocks[0]
        mapping = {
            old: new
            for old, new in zip(self.nest.arguments, arguments, strict=True)
            if new is not None
        }
        accumulating = self._accumulating()
        for inner in block.operations:
            op = inner.operation
            if op.name == "linalg.yield":
                return [self._map(v, mapping) for v in op.operands]
            if op.name == "linalg.index":
                mapping[op.results[0]] = self.ivs[ir.IntegerAttr(op.attributes["dim"]).value]
                continue
            results = self._clone_op(op, mapping)
            if self.nest.register and op.name in _FLAGS:
                _relax(results[0].owner, accumulates=op in accumulating)
            mapping.update(zip(op.results, results, strict=True))
        raise AssertionError("a linalg body ends in linalg.yield")

    def _accumulating(self) -> set[ir.Operation]:
        """The operations of the body that depend on what was accumulated so far."""
        carried = set(self.nest.arguments[len(self.nest.arguments) - self.nest.n_outputs :])
        found: set[ir.Operation] = set()
        for inner in self.nest.op.regions[0].blocks[0].operations:
            if any(operand in carried for operand in inner.operation.operands):
                carried.update(inner.operation.results)
                found.add(inner.operation)
        return found

    def _clone_op(self, op: ir.Operation, mapping: dict[ir.Value, ir.Value]) -> list[ir.Value]:
        inside = {r for inner in walk(op) for r in inner.results} | {
            a
            for inner in walk(op)
            for region in inner.regions
            for block in region.blocks
            for a in block.arguments
        }
        for inner in walk(op):  # constants first: they must stand before their user
            for operand in inner.operands:
                if operand not in inside:
                    self._map(operand, mapping)
        clone = op.clone()
        for inner in walk(clone):
            for i, operand in enumerate(inner.operands):
                if operand in mapping or operand in self.inside:
                    inner.operands[i] = self._map(operand, mapping)
        return list(clone.results)

    def _map(self, value: ir.Value, mapping: dict[ir.Value, ir.Value]) -> ir.Value:
        if value in mapping:
            return mapping[value]
        if value in self.inside:
            return self.inside[value]
        owner = defining_op(value)
        assert owner is not None and owner.name == "arith.constant", f"{value} is no argument"
        mapping[value] = owner.clone().results[0]
        return mapping[value]


# Flags with which LLVM vectorizes a reduction: of the operation that accumulates, of others. A
# maximum needs no `nnan`, so that a NaN in a row is not lost; its zero may have either sign.
_FLAGS = {
    "arith.addf": ("reassoc,contract", "contract"),
    "arith.mulf": ("reassoc,contract", "contract"),
    "arith.maximumf": ("nsz", "none"),
    "arith.minimumf": ("nsz", "none"),
}


def _relax(op: ir.Operation, *, accumulates: bool) -> None:
    flags = _FLAGS[op.name][not accumulates]
    op.attributes["fastmath"] = ir.Attribute.parse(f"#arith.fastmath<{flags}>")


def _is_used(value: ir.Value) -> bool:
    return any(True for _ in value.uses)
