"""The loops of one linalg.generic on buffers: which become the grid, and which stay inside.

One grid index is one iteration of the outer parallel loops; the innermost loops stay inside, plain,
for LLVM to vectorize:

* the last parallel axis of the output, contiguous, is the inner loop, and reductions run around it
  over memory; unless
* a reduction runs over the contiguous axis of an input: then it is the inner loop and accumulates
  in a register; or
* reductions are over a small window: then its places are spelled out in the inner loop; or
* an input is contiguous along another parallel axis than the output: then the kernel has both, in
  square tiles (`transposed.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir, linalg, memref

from ..infrastructure import defining_op, operand_segments, users
from ..resolve_dims import index

FLAT_BLOCK = 4096  # elements that one grid index covers where a loop is cut into blocks
TILE = 16  # iterations of either axis that a square tile has
TILE_BLOCK = 64  # and one grid index, of tiles
MAX_WINDOW = 25  # places of a window that are spelled out
MAX_WINDOW_OPERATIONS = 128  # of all of its places together
MIN_INNER = 64  # small static inner axes are kept inside until this many elements are


@dataclass
class Nest:
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
    window: list[int] = field(default_factory=list)  # reductions that are spelled out
    block: int | None = None  # iterations of inner[0] that one grid index covers; None: all
    tiled: bool = False  # `inner` is two axes, of which one grid index covers TILE_BLOCK each

    @property
    def written(self) -> list[int]:
        """The outputs (by number) with an element for every turn of a reduction: running sums."""
        first = len(self.operands) - self.n_outputs
        reductions = [d for d, kind in enumerate(self.kinds) if kind == "reduction"]
        positions = [
            {expr.position for expr in map_.results if isinstance(expr, ir.AffineDimExpr)}
            for map_ in self.maps[first:]
        ]
        return [i for i, found in enumerate(positions) if found & set(reductions)]


def read_nest(op: ir.Operation) -> Nest:
    """The loops of a generic, not yet given to grid and kernel."""
    all_maps = [ir.AffineMapAttr(a).value for a in ir.ArrayAttr(op.attributes["indexing_maps"])]
    places = [i for i, o in enumerate(op.operands) if isinstance(o.type, ir.MemRefType)]
    maps = [all_maps[i] for i in places]
    kinds = linalg.iterators(op)
    segments = operand_segments(op)
    arguments = [op.regions[0].blocks[0].arguments[i] for i in places]
    return Nest(op, maps, kinds, [op.operands[i] for i in places], arguments, segments[1])


def analyse(op: ir.Operation) -> Nest:
    """The loops of a generic, given to grid and kernel as a CPU has it."""
    nest = read_nest(op)
    reductions = [d for d, kind in enumerate(nest.kinds) if kind == "reduction"]
    parallel = parallel_in_output_order(nest)
    nest.register = bool(reductions) and is_contiguous(nest, reductions)
    if nest.register:
        nest.grid, nest.inner = parallel, reductions
    elif _is_window(nest, reductions):
        nest.grid, nest.inner, nest.window = parallel[:-1], parallel[-1:], reductions
        _keep_small_axes_inside(nest)
    elif reductions:
        nest.grid, nest.inner = parallel[:-1], [*reductions, *parallel[-1:]]
    elif axes := _transposed_axes(nest):
        nest.grid, nest.inner = [d for d in parallel if d not in axes], axes
        nest.tiled = True
    else:
        nest.grid, nest.inner = parallel[:-1], parallel[-1:]
        _keep_small_axes_inside(nest)
        nest.block = _block(nest)
    nest.fill, nest.init = preceding_fill(nest) if reductions else (None, None)
    return nest


def parallel_in_output_order(nest: Nest) -> list[int]:
    """Parallel loops as the output's axes have them, so that the last one is contiguous."""
    order = []
    for expr in nest.maps[-1].results:
        if isinstance(expr, ir.AffineDimExpr) and nest.kinds[expr.position] == "parallel":
            order.append(expr.position)
    rest = [d for d, k in enumerate(nest.kinds) if k == "parallel" and d not in order]
    return [*rest, *order]


def _transposed_axes(nest: Nest) -> list[int] | None:
    """The axis along which an input is contiguous, and that of the output, where they are two loops
    of both, and neither is known to be short."""
    outputs = {_last(map_) for map_ in nest.maps[-nest.n_outputs :]}
    if len(outputs) != 1 or None in outputs:
        return None
    (last,) = outputs
    assert last is not None
    found: list[int] = []
    for map_ in nest.maps[: -nest.n_outputs]:
        axis = _last(map_)
        both = {e.position for e in map_.results if isinstance(e, ir.AffineDimExpr)}
        if axis is not None and axis != last and last in both:
            found.append(axis)
    if not found or nest.kinds[found[0]] != "parallel":
        return None
    axes = [found[0], last]
    short = any((static_extent(nest, d) or TILE) < TILE for d in axes)
    return None if short else axes


def _last(map_: ir.AffineMap) -> int | None:
    """The loop that is a map's last axis, if it is one."""
    last = map_.results[-1] if map_.results else None
    return last.position if isinstance(last, ir.AffineDimExpr) else None


def is_contiguous(nest: Nest, reductions: list[int]) -> bool:
    """Whether some input's last axis is a reduction and the output has no better inner loop.

    A window that slides along the output's last axis is better: its elements follow each other,
    while the reduction over the window's weights is short.
    """
    if _slides_along_last(nest):
        return False
    for map_ in nest.maps[: -nest.n_outputs]:
        if map_.results:
            last = map_.results[-1]
            if isinstance(last, ir.AffineDimExpr) and last.position in reductions:
                return True
    return all(k == "reduction" for k in nest.kinds)


def _is_window(nest: Nest, reductions: list[int]) -> bool:
    """Whether the reductions are over few places, all known, and leave a loop."""
    sizes = [static_extent(nest, dim) or MAX_WINDOW + 1 for dim in reductions]
    if not reductions or len(reductions) == len(nest.kinds) or nest.n_outputs != 1 or nest.written:
        return False
    body = len(list(nest.op.regions[0].blocks[0].operations))
    count = math.prod(sizes)
    return count <= MAX_WINDOW and count * body <= MAX_WINDOW_OPERATIONS


def _slides_along_last(nest: Nest) -> bool:
    """Whether an input is read at the output's last axis plus another loop."""
    result = nest.maps[-1].results[-1] if nest.maps[-1].results else None
    if not isinstance(result, ir.AffineDimExpr) or nest.kinds[result.position] != "parallel":
        return False
    sums = [map_.results[-1] for map_ in nest.maps[: -nest.n_outputs] if map_.results]
    return any(
        isinstance(expr, ir.AffineAddExpr) and result in (expr.lhs, expr.rhs) for expr in sums
    )


def static_extent(nest: Nest, dim: int) -> int | None:
    for operand, map_ in zip(nest.operands, nest.maps, strict=True):
        shape = ir.MemRefType(operand.type).shape
        for expr, size in zip(map_.results, shape, strict=True):
            if isinstance(expr, ir.AffineDimExpr) and expr.position == dim and size != abq.DYNAMIC:
                return size
    return None


def _keep_small_axes_inside(nest: Nest) -> None:
    count = 1
    while nest.grid:
        size = static_extent(nest, nest.inner[0])
        if size is None or count * size >= MIN_INNER:
            return
        count *= size
        nest.inner.insert(0, nest.grid.pop())


def _block(nest: Nest) -> int | None:
    """Long outer loops inside of a kernel are cut into blocks of about FLAT_BLOCK elements.

    Short ones stay whole, and so does a plain row under a grid: rows are tasks enough.
    """
    if not nest.inner:
        return None
    first, *others = [static_extent(nest, dim) for dim in nest.inner]
    row = math.prod(size or 1 for size in others)
    if first is not None and first * row <= FLAT_BLOCK:
        return None
    if first is None and nest.grid and not others:
        return None
    return max(1, FLAT_BLOCK // max(row, 1))


def preceding_fill(nest: Nest) -> tuple[ir.Operation | None, ir.Value | None]:
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


def _buffers(op: ir.Operation) -> list[ir.Value]:
    return [o for o in op.operands if isinstance(o.type, ir.MemRefType)]


def loop_sizes(nest: Nest) -> dict[int, ir.Value]:
    """The extent of every loop, on the host."""
    sizes: dict[int, ir.Value] = {}
    for dim in range(len(nest.kinds)):
        static = static_extent(nest, dim)
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


def grid_size(nest: Nest, sizes: dict[int, ir.Value]) -> ir.Value:
    """The size of the grid."""
    total = index(1)
    for dim in nest.grid:
        total = arith.MulIOp(total, sizes[dim]).result
    if nest.block is not None:
        blocks = arith.CeilDivUIOp(sizes[nest.inner[0]], index(nest.block)).result
        total = arith.MulIOp(total, blocks).result
    if nest.tiled:
        for dim in nest.inner:
            blocks = arith.CeilDivUIOp(sizes[dim], index(TILE_BLOCK)).result
            total = arith.MulIOp(total, blocks).result
    return total


def grid_work(nest: Nest, sizes: dict[int, ir.Value]) -> ir.Value:
    """How many elements one grid index touches: the host starts no threads for a few."""
    if nest.tiled:
        return index(TILE_BLOCK * TILE_BLOCK)
    work = index(1) if nest.block is None else index(nest.block)
    for dim in nest.inner if nest.block is None else nest.inner[1:]:
        work = arith.MulIOp(work, sizes[dim]).result
    return work
