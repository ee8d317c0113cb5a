"""The body of a GPU kernel made from a loop nest (see gpu_nest.py for who makes an element).

Positions are computed in 32 bits, because division is expensive: a kernel makes fewer than 2^31
elements, which the host checks (gpu_nest.grid_size).
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, ir, llvm, nvvm, scf

from ..infrastructure import constant_index
from .gpu_nest import WARP, Combiner, Mapping, combiners
from .loop_body import Body
from .loop_nest import Nest


class GpuBody(Body):
    """Emits the loops of one kernel for a block of threads."""

    def __init__(
        self,
        nest: Nest,
        mapping: Mapping,
        inside: dict[ir.Value, ir.Value],
        grid_index: ir.Value,
        extents: list[ir.Value],
    ) -> None:
        super().__init__(nest, inside, grid_index, extents)
        self.mapping = mapping
        self.i32 = ir.IntegerType.get_signless(32)

    def emit(self) -> None:
        thread = nvvm.ThreadIdXOp().result
        block = arith.IndexCastOp(self.i32, self.grid_index).result
        first = arith.MulIOp(block, self._i32(self.mapping.per_block)).result
        self.lane = arith.AndIOp(thread, self._i32(WARP - 1)).result
        if self.mapping is Mapping.WARP:
            thread = arith.ShRUIOp(thread, self._i32(5)).result
        element = arith.AddIOp(first, thread).result
        inside = arith.CmpIOp(arith.CmpIPredicate.ult, element, self._total(self.nest.grid)).result
        with ir.InsertionPoint(scf.IfOp(inside).then_block):
            self._split(element, self.nest.grid)
            if self.mapping is Mapping.POINTS:
                self._point_through_memory()
            elif self.mapping is Mapping.SERIAL:
                self._reduce_in_register()
            else:
                self._reduce_by_warp([c for c in combiners(self.nest) if c is not None])
            scf.YieldOp([])

    def _i32(self, value: int) -> ir.Value:
        return arith.ConstantOp(self.i32, ir.IntegerAttr.get(self.i32, value)).result

    def _extent(self, dim: int) -> ir.Value:
        constant = constant_index(self.extents[dim])
        if constant is not None:
            return self._i32(constant)
        return arith.IndexCastOp(self.i32, self.extents[dim]).result

    def _total(self, dims: list[int]) -> ir.Value:
        total = self._i32(1)
        for dim in dims:
            total = arith.MulIOp(total, self._extent(dim)).result
        return total

    def _split(self, number: ir.Value, dims: list[int]) -> None:
        """The positions of `dims`, the last of them fastest, from one number."""
        for dim in reversed(dims[1:]):
            extent = self._extent(dim)
            self._set(dim, arith.RemUIOp(number, extent).result)
            number = arith.DivUIOp(number, extent).result
        if dims:
            self._set(dims[0], number)

    def _set(self, dim: int, value: ir.Value) -> None:
        self.ivs[dim] = arith.IndexCastUIOp(ir.IndexType.get(), value).result

    def _reduce_by_warp(self, joins: list[Combiner]) -> None:
        first = len(self.nest.operands) - self.nest.n_outputs
        types = [argument.type for argument in self.nest.arguments[first:]]
        neutral = [_constant(j.neutral, t) for j, t in zip(joins, types, strict=True)]
        terms = self._total(self.nest.inner)
        loop = scf.ForOp(self.lane, terms, self._i32(WARP), neutral)
        with ir.InsertionPoint(loop.body):
            self._split(loop.induction_variable, self.nest.inner)
            inputs: list[ir.Value | None] = [self._load(i) for i in range(first)]
            scf.YieldOp(self._clone_body(inputs + list(loop.inner_iter_args)))
        results = [_all_lanes(join, value) for join, value in zip(joins, loop.results, strict=True)]
        zero = self._i32(0)
        leader = arith.CmpIOp(arith.CmpIPredicate.eq, self.lane, zero).result
        with ir.InsertionPoint(scf.IfOp(leader).then_block):
            for i, (join, value) in enumerate(zip(joins, results, strict=True)):
                start = (
                    self._load(first + i)
                    if self.nest.init is None
                    else self._clone_constant(self.nest.init)
                )
                self._store(first + i, _join(join, start, value))
            scf.YieldOp([])


def _constant(value: float | int, type_: ir.Type) -> ir.Value:
    if isinstance(type_, ir.FloatType):
        return arith.ConstantOp(type_, ir.FloatAttr.get(type_, float(value))).result
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, int(value))).result


def _join(join: Combiner, a: ir.Value, b: ir.Value) -> ir.Value:
    op = ir.Operation.create(join.op, results=[a.type], operands=[a, b])
    return op.results[0]


def _all_lanes(join: Combiner, value: ir.Value) -> ir.Value:
    """What all lanes of the warp have together, in each of them."""
    distance = WARP // 2
    while distance:
        value = _join(join, value, _of_lane(value, distance))
        distance //= 2
    return value


def _of_lane(value: ir.Value, distance: int) -> ir.Value:
    """The value of the lane whose number differs in the bit `distance`."""
    type_ = value.type
    width = type_.width
    bits_type = ir.IntegerType.get_signless(width)
    i32 = ir.IntegerType.get_signless(32)
    bits = arith.BitcastOp(bits_type, value).result if isinstance(type_, ir.FloatType) else value
    if width > 32:
        shift = arith.ConstantOp(bits_type, ir.IntegerAttr.get(bits_type, 32)).result
        low = arith.TruncIOp(i32, bits).result
        high = arith.TruncIOp(i32, arith.ShRUIOp(bits, shift).result).result
        low, high = (
            arith.ExtUIOp(bits_type, _shuffle(half, distance)).result for half in (low, high)
        )
        bits = arith.OrIOp(low, arith.ShLIOp(high, shift).result).result
    elif width == 32:
        bits = _shuffle(bits, distance)
    else:
        wide = _shuffle(arith.ExtUIOp(i32, bits).result, distance)
        bits = arith.TruncIOp(bits_type, wide).result
    return arith.BitcastOp(type_, bits).result if isinstance(type_, ir.FloatType) else bits


def _shuffle(value: ir.Value, distance: int) -> ir.Value:
    i32 = value.type
    mask, by, clamp = (
        arith.ConstantOp(i32, ir.IntegerAttr.get(i32, n)).result for n in (-1, distance, WARP - 1)
    )
    operands = [mask, value, by, clamp]
    return llvm.call_intrinsic(i32, "llvm.nvvm.shfl.sync.bfly.i32", operands, [], [])
