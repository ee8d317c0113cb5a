"""The body of a kernel made from a loop nest: loops in scf, the generic's body inside."""

from __future__ import annotations

from itertools import product

from abqc.dialects.mlir import affine, arith, ir, memref, scf

from ..infrastructure import constant_index, defining_op, is_used, walk
from ..loops.generics import loops_read
from ..resolve_dims import index
from .loop_nest import TILE_BLOCK, Nest, static_extent
from .transposed import emit_tiles

# Flags with which LLVM vectorizes a reduction: of the operation that accumulates, of others. A
# maximum needs no `nnan`, so that a NaN in a row is not lost; its zero may have either sign.
_FLAGS = {
    "arith.addf": ("reassoc,contract", "contract"),
    "arith.mulf": ("reassoc,contract", "contract"),
    "arith.maximumf": ("nsz", "none"),
    "arith.minimumf": ("nsz", "none"),
}
_EXTREMES = ("arith.maximumf", "arith.minimumf")


class Body:
    """Emits the loops of one kernel."""

    def __init__(
        self,
        nest: Nest,
        inside: dict[ir.Value, ir.Value],
        grid_index: ir.Value,
        extents: list[ir.Value],
    ) -> None:
        self.nest = nest
        self.inside = inside
        self.grid_index = grid_index
        self.extents = [self._local(e) for e in extents]
        self.ivs: dict[int, ir.Value] = {}
        self.tile_bounds: list[tuple[ir.Value, ir.Value]] = []
        self.known: dict[ir.Value, ir.Value] = {}  # values of the generic's body made before a loop
        self.places: dict[ir.Value, int] = {}  # selects of the body that are the number of a loop

    def _local(self, value: ir.Value) -> ir.Value:
        constant = constant_index(value)
        return self.inside[value] if constant is None else index(constant)

    def emit(self) -> None:
        self._delinearize()
        choices = broadcasts(self.nest)
        if not choices:
            self._emit_loops()
            return
        # Chosen once, not for each element: a loop over selects is no loop over vectors.
        branches = scf.IfOp(self._nothing_repeats(choices), has_else=True)
        for block, places in (
            (branches.then_block, {op.results[0]: dim for op, dim in choices}),
            (branches.else_block, {}),
        ):
            with ir.InsertionPoint(block):
                self.places = places
                self._emit_loops()
                scf.YieldOp([])

    def _nothing_repeats(self, choices: list[tuple[ir.Operation, int]]) -> ir.Value:
        """Whether each of these selects is the number of its loop throughout."""
        result = _true()
        for op, dim in choices:
            once = arith.CmpIOp(arith.CmpIPredicate.eq, self.extents[dim], index(1)).result
            same = arith.SelectOp(self._map(op.operands[0], {}), once, _true()).result
            result = arith.AndIOp(result, same).result
        return result

    def _emit_loops(self) -> None:
        if self.nest.tiled:
            self._tiles()
        elif self.nest.register:
            self._reduce_in_register()
        elif self.nest.window:
            self._loops(self.nest.inner, self._point_of_window)
        else:
            if self.nest.init is not None:
                self._loops(self._output_loops(), self._store_init)
            self._loops(self.nest.inner, self._point_through_memory)

    def _output_loops(self) -> list[int]:
        return [d for d in self.nest.inner if self.nest.kinds[d] == "parallel"]

    def _delinearize(self) -> None:
        rest, block = self.grid_index, self.nest.block
        if self.nest.tiled:
            rest = self._delinearize_tiles(rest)
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

    def _delinearize_tiles(self, rest: ir.Value) -> ir.Value:
        """Bounds of the two loops that are cut into tiles; what is left of the grid's index."""
        self.tile_bounds = []
        for dim in reversed(self.nest.inner):
            blocks = arith.CeilDivUIOp(self.extents[dim], index(TILE_BLOCK)).result
            number = arith.RemUIOp(rest, blocks).result
            rest = arith.DivUIOp(rest, blocks).result
            begin = arith.MulIOp(number, index(TILE_BLOCK)).result
            end = arith.AddIOp(begin, index(TILE_BLOCK)).result
            self.tile_bounds.insert(0, (begin, arith.MinUIOp(end, self.extents[dim]).result))
        return rest

    def _tiles(self) -> None:
        emit_tiles(self.nest, self.inside, self.tile_bounds, self._indices_at, self._tile_point)

    def _indices_at(self, map_: ir.AffineMap, i: ir.Value, j: ir.Value) -> list[ir.Value]:
        self.ivs.update(zip(self.nest.inner, (i, j), strict=True))
        return self._indices(map_)

    def _tile_point(self, i: ir.Value, j: ir.Value) -> None:
        self.ivs.update(zip(self.nest.inner, (i, j), strict=True))
        self._point_through_memory()

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
        if len(dims) == 1 and point == self._point_through_memory and not self.known:
            steady = invariant(self.nest, dims[0])
            if any(isinstance(v, ir.BlockArgument) or _is_load(v) for v in steady):
                self._loop_after(steady, begin, end, dims, point)
                return
        self._loop(dims, begin, end, point)

    def _loop(  # type: ignore[no-untyped-def]
        self, dims: list[int], begin: ir.Value, end: ir.Value, point
    ) -> None:
        loop = scf.ForOp(begin, end, index(1))
        with ir.InsertionPoint(loop.body):
            self.ivs[dims[0]] = loop.induction_variable
            self._loops(dims[1:], point)
            scf.YieldOp([])

    def _loop_after(  # type: ignore[no-untyped-def]
        self, steady: list[ir.Value], begin: ir.Value, end: ir.Value, dims: list[int], point
    ) -> None:
        """The innermost loop, after what is the same in all of its turns, if it has any.

        LLVM cannot know that the output is no part of what such a load reads, and would load in
        every turn.
        """
        some = arith.CmpIOp(arith.CmpIPredicate.ult, begin, end).result
        with ir.InsertionPoint(scf.IfOp(some).then_block):
            self.known = self._clone_steady(steady)
            self._loops(dims, point)
            self.known = {}
            scf.YieldOp([])

    def _clone_steady(self, steady: list[ir.Value]) -> dict[ir.Value, ir.Value]:
        mapping: dict[ir.Value, ir.Value] = {}
        for value in steady:
            if isinstance(value, ir.BlockArgument):
                mapping[value] = self._load(self.nest.arguments.index(value))
                continue
            op = defining_op(value)
            assert op is not None
            if op.name == "linalg.index":
                mapping[value] = self.ivs[ir.IntegerAttr(op.attributes["dim"]).value]
            elif value in self.places:
                mapping[value] = self.ivs[self.places[value]]
            else:
                (mapping[value],) = self._clone_op(op, mapping)
        return mapping

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
            self.known.get(argument) or self._load(i) if is_used(argument) else None
            for i, argument in enumerate(self.nest.arguments)
        ]
        first = len(self.nest.operands) - self.nest.n_outputs
        for i, value in enumerate(self._clone_body(arguments)):
            self._store(first + i, value)

    def _point_of_window(self) -> None:
        """An element of the result, from all places of its window."""
        last = len(self.nest.operands) - 1
        value = self._load(last) if self.nest.init is None else self._clone_constant(self.nest.init)
        extents = [static_extent(self.nest, dim) for dim in self.nest.window]
        for turn in product(*(range(extent or 0) for extent in extents)):
            self.ivs |= {dim: index(i) for dim, i in zip(self.nest.window, turn, strict=True)}
            arguments = [
                self._load(i) if is_used(argument) else None
                for i, argument in enumerate(self.nest.arguments[:last])
            ]
            (value,) = self._clone_body([*arguments, value])
        self._store(last, value)

    def _reduce_in_register(self) -> None:
        first = len(self.nest.operands) - self.nest.n_outputs
        written = self.nest.written
        outputs = [first + i for i in range(self.nest.n_outputs) if i not in written]
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
                values = self._turn(inner)
            scf.YieldOp(values)
        return list(loop.results)

    def _turn(self, carried: list[ir.Value]) -> list[ir.Value]:
        """One turn of a reduction: stores what is written in each, returns what is carried on."""
        first = len(self.nest.operands) - self.nest.n_outputs
        written, rest = self.nest.written, iter(carried)
        before: list[ir.Value | None] = [self._load(i) for i in range(first)]
        for i in range(self.nest.n_outputs):
            used = is_used(self.nest.arguments[first + i])
            before.append(
                next(rest) if i not in written else self._load(first + i) if used else None
            )
        values = self._clone_body(before)
        for i in written:
            self._store(first + i, values[i])
        return [value for i, value in enumerate(values) if i not in written]

    def _clone_body(self, arguments: list[ir.Value | None]) -> list[ir.Value]:
        """Clone the generic's body with its arguments replaced; the yielded values."""
        block = self.nest.op.regions[0].blocks[0]
        mapping = {
            old: new
            for old, new in zip(self.nest.arguments, arguments, strict=True)
            if new is not None
        }
        mapping.update(self.known)
        accumulating = self._accumulating()
        in_register = self.nest.register and not self.nest.written
        relaxed = _FLAGS if in_register else _EXTREMES if self.nest.window else ()
        for inner in block.operations:
            op = inner.operation
            if op.name == "linalg.yield":
                return [self._map(v, mapping) for v in op.operands]
            if len(op.results) == 1 and op.results[0] in self.known:
                continue
            if op.name == "linalg.index":
                mapping[op.results[0]] = self.ivs[ir.IntegerAttr(op.attributes["dim"]).value]
                continue
            if len(op.results) == 1 and op.results[0] in self.places:
                mapping[op.results[0]] = self.ivs[self.places[op.results[0]]]
                continue
            results = self._clone_op(op, mapping)
            if op.name in relaxed:
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


def _relax(op: ir.Operation, *, accumulates: bool) -> None:
    flags = _FLAGS[op.name][not accumulates]
    op.attributes["fastmath"] = ir.Attribute.parse(f"#arith.fastmath<{flags}>")


def _true() -> ir.Value:
    i1 = ir.IntegerType.get_signless(1)
    return arith.ConstantOp(i1, ir.IntegerAttr.get(i1, 1)).result


def broadcasts(nest: Nest) -> list[tuple[ir.Operation, int]]:
    """Selects `c ? 0 : number of a loop` of the body, with the loops, where c comes from outside:
    so a tensor is read that has one element or all along an axis, as a run decides."""
    operations = [inner.operation for inner in nest.op.regions[0].blocks[0].operations]
    inside = set(nest.arguments).union(*(op.results for op in operations))
    found = []
    for op in operations:
        if op.name != "arith.select" or op.operands[0] in inside:
            continue
        place = defining_op(op.operands[2])
        if (
            place is not None
            and place.name == "linalg.index"
            and constant_index(op.operands[1]) == 0
        ):
            found.append((op, ir.IntegerAttr(place.attributes["dim"]).value))
    return found


def invariant(nest: Nest, dim: int) -> list[ir.Value]:
    """The values of the generic's body that do not change along loop `dim`, in order.

    Inputs that are not read along it, and what is computed or loaded from such values alone. No
    input shares memory with an output, unless both are read and written element by element.
    """
    steady = [
        argument
        for argument, map_ in list(zip(nest.arguments, nest.maps, strict=True))[: -nest.n_outputs]
        if is_used(argument) and dim not in loops_read(map_.results)
    ]
    found = set(steady)
    inside = set(nest.arguments)
    for inner in nest.op.regions[0].blocks[0].operations:
        op = inner.operation
        inside.update(op.results)
        if len(op.results) != 1 or len(op.regions) or op.name == "arith.constant":
            continue
        if op.name == "linalg.index":
            same = ir.IntegerAttr(op.attributes["dim"]).value != dim
        else:
            plain = op.name == "memref.load" or op.name.partition(".")[0] in ("arith", "math")
            operands = [v for v in op.operands if v in inside and not _is_constant(v)]
            same = plain and all(v in found for v in operands)
        if same:
            steady.append(op.results[0])
            found.add(op.results[0])
    return steady


def _is_constant(value: ir.Value) -> bool:
    op = defining_op(value)
    return op is not None and op.name == "arith.constant"


def _is_load(value: ir.Value) -> bool:
    op = defining_op(value)
    return op is not None and op.name == "memref.load"
