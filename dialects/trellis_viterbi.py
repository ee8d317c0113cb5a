"""The search of `trellis.encode`, compiled for this machine by LLVM: the same symbols, to the bit.

    costs of 2^L paths, row by row:  cost'[m'] = min over x of cost[m] + (row - value[state])^2
    state = m' 2^k + x,  m = state mod 2^(L-k)    (L bits of state, k of them a symbol, x)

State m' 2^k + x with m' = b J + j follows joint m = j 2^k + x, J joints for each of the 2^k values
of b. So 16 lanes run over m', that is over j, and from k = 5 on, where J is below 16, over several
b: the costs are taken apart by x once a row, and the values lie in the order [m' / 16][x][16].
Which predecessor was best is not stored but found again on the way back, from the costs of every
row, which stay in the second-level cache.

Compiled without fast-math flags: no product is contracted with a sum, so that costs are those of
numpy's f32. Needs llvmlite, nothing of MLIR.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock

import llvmlite.binding as llvm
import numpy as np
from abqc.dialects import jit, trellis
from abqc.dialects.trellis import F32, OVERLAP, STATE_BITS, Symbols
from llvmlite import ir
from llvmlite.binding.orcjit import ResourceTracker

LANES = 16
I64, I8, FLOAT, POINTER = ir.IntType(64), ir.IntType(8), ir.FloatType(), ir.PointerType()
VECTOR = ir.VectorType(FLOAT, LANES)
BYTES_OF_A_FLOAT = 4

_COMPILING = Lock()  # two threads would compile the same, and drop code that the other one runs


class ViterbiSearch:
    """`trellis.encode` for codes of `rate` bits. Not thread-safe: it keeps its scratch memory."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        with _COMPILING:
            self._compiled = _compiled(rate)
        self._costs = np.empty((0, 1 << (STATE_BITS - rate)), np.float32)
        self._overlap_symbols = np.empty(2 * OVERLAP, np.uint8)

    def encode(self, x: F32) -> Symbols:
        """The symbols of sequences `x`, f32 [S, rows] in units of the scale; all are finite."""
        sequences, rows = x.shape
        steps = max(rows, 2 * OVERLAP) + 1
        if len(self._costs) < steps:
            self._costs = np.empty((steps, self._costs.shape[1]), np.float32)
        x = np.ascontiguousarray(x, np.float32)
        around = np.ascontiguousarray(x[:, np.arange(-OVERLAP, OVERLAP) % rows])
        symbols = np.empty((sequences, rows), np.uint8)
        arrays = (
            x,
            around,
            trellis.state_values(),
            _by_lanes(self.rate),
            self._costs,
            self._overlap_symbols,
            symbols,
        )
        self._compiled.entry(sequences, rows, *(array.ctypes.data for array in arrays))
        return symbols


@cache
def _by_lanes(rate: int) -> F32:
    """The states' values in the order [m' / 16][x][16]."""
    states = trellis.state_values().reshape(-1, LANES, 1 << rate)
    return np.ascontiguousarray(states.transpose(0, 2, 1))


@dataclass(frozen=True)
class _Compiled:
    """A compiled search, and what owns its code."""

    code: ResourceTracker
    entry: Callable[..., None]


@cache
def _compiled(rate: int) -> _Compiled:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit",
        opt=3,
        codemodel="default",
        reloc="pic",
    )
    module = llvm.parse_assembly(str(_Emitter(rate).module))
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    code = jit.load(machine.emit_object(module), ["encode"])
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 7)
    return _Compiled(code, prototype(code["encode"]))


class _Emitter:
    """The module of three functions for codes of `rate` bits."""

    def __init__(self, rate: int) -> None:
        self.module = ir.Module()
        self.copies = 1 << rate
        self.joints = 1 << (STATE_BITS - rate)
        self.forward = self._forward()
        self.trace = self._trace()
        self._encode()

    def _function(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        function = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        function.append_basic_block()
        return function

    def _forward(self) -> ir.Function:
        """forward(x, rows, values by lanes, costs): fills the costs of rows 1 to `rows`."""
        function = self._function("forward", ir.VoidType(), [POINTER, I64, POINTER, POINTER])
        x, rows, values, costs = function.args
        b = _Builder(function)
        per_copy = self.joints // self.copies
        blocks = max(1, per_copy // LANES)  # vectors of j
        with b.loop(rows) as row:
            target = b.splat(b.load_float(x, row))
            before = b.at(costs, b.mul(row, I64(self.joints)))
            after = b.at(before, I64(self.joints))
            with b.loop(I64(blocks)) as block:
                if per_copy < LANES:
                    apart = [self._joints(b, before, symbol) for symbol in range(self.copies)]
                else:
                    first = b.mul(block, I64(LANES * self.copies))
                    apart = b.deinterleave(
                        [b.load_vector(before, first, i * LANES) for i in range(self.copies)]
                    )
                with b.loop(I64(self.joints // LANES // blocks)) as copy:
                    at = b.mul(copy, I64(blocks))
                    at = b.add(at, block)
                    base = b.mul(at, I64(LANES * self.copies))
                    best = None
                    for symbol, cost in enumerate(apart):
                        value = b.load_vector(values, base, symbol * LANES)
                        distance = b.fsub(target, value)
                        total = b.fadd(cost, b.fmul(distance, distance))
                        best = total if best is None else b.minimum(total, best)
                    b.store_vector(best, after, b.mul(at, I64(LANES)))
        b.ret_void()
        return function

    def _joints(self, b: _Builder, costs: ir.Value, symbol: int) -> ir.Value:
        """The costs of the joints of `symbol`, as often as they fit in the lanes."""
        per_copy = self.joints // self.copies
        vector: ir.Value = ir.Constant(VECTOR, ir.Undefined)
        for j in range(per_copy):
            cost = b.load_float(costs, I64(j * self.copies + symbol))
            vector = b.insert_element(vector, cost, ir.IntType(32)(j))
        return b.shuffle_vector(vector, vector, _mask([lane % per_copy for lane in range(LANES)]))

    def _trace(self) -> ir.Function:
        """trace(x, last row + 1, first row, values, costs, joint, symbols) -> joint before."""
        arguments = [POINTER, I64, I64, POINTER, POINTER, I64, POINTER]
        function = self._function("trace", I64, arguments)
        x, end, begin, values, costs, last_joint, symbols = function.args
        b = _Builder(function)
        joint = b.variable(last_joint)
        with b.loop(b.sub(end, begin)) as step:
            row = b.sub(b.sub(end, I64(1)), step)
            target = b.load_float(x, row)
            before = b.at(costs, b.mul(row, I64(self.joints)))
            state = b.mul(b.load(joint, typ=I64), I64(self.copies))
            best, best_symbol = None, I64(0)
            for symbol in range(self.copies):
                candidate = b.add(state, I64(symbol))
                cost = b.load_float(before, b.and_(candidate, I64(self.joints - 1)))
                distance = b.fsub(target, b.load_float(values, candidate))
                total = b.fadd(cost, b.fmul(distance, distance))
                if best is None:
                    best = total
                    continue
                better = b.fcmp_ordered("<", total, best)
                best = b.select(better, total, best)
                best_symbol = b.select(better, I64(symbol), best_symbol)
            b.store(b.trunc(best_symbol, I8), b.gep(symbols, [row], source_etype=I8))
            chosen = b.add(state, best_symbol)
            b.store(b.and_(chosen, I64(self.joints - 1)), joint)
        b.ret(b.load(joint, typ=I64))
        return function

    def _encode(self) -> None:
        """encode(sequences, rows, x, around, values, by lanes, costs, scratch, symbols)."""
        function = self._function("encode", ir.VoidType(), [I64, I64, *[POINTER] * 7])
        sequences, rows, x, around, values, by_lanes, costs, scratch, symbols = function.args
        b = _Builder(function)
        with b.loop(sequences) as sequence:
            window = b.at(around, b.mul(sequence, I64(2 * OVERLAP)))
            both = I64(2 * OVERLAP)
            self._fill(b, costs, 0.0)
            b.call(self.forward, [window, both, by_lanes, costs])
            end = self._lowest(b, b.at(costs, I64(2 * OVERLAP * self.joints)))
            back = [window, both, I64(OVERLAP), values, costs, end, scratch]
            joint = b.call(self.trace, back)
            self._fill(b, costs, float("inf"))
            b.store(FLOAT(0.0), b.at(costs, joint))
            mine = b.at(x, b.mul(sequence, rows))
            out = b.gep(symbols, [b.mul(sequence, rows)], source_etype=I8)
            b.call(self.forward, [mine, rows, by_lanes, costs])
            b.call(self.trace, [mine, rows, I64(0), values, costs, joint, out])
        b.ret_void()

    def _fill(self, b: _Builder, costs: ir.Value, cost: float) -> None:
        with b.loop(I64(self.joints)) as joint:
            b.store(FLOAT(cost), b.at(costs, joint))

    def _lowest(self, b: _Builder, costs: ir.Value) -> ir.Value:
        """The joint of least cost, the first of equals."""
        lowest = b.variable(I64(0))
        with b.loop(I64(self.joints)) as joint:
            best = b.load(lowest, typ=I64)
            better = b.fcmp_ordered("<", b.load_float(costs, joint), b.load_float(costs, best))
            b.store(b.select(better, joint, best), lowest)
        return b.load(lowest, typ=I64)


class _Builder(ir.IRBuilder):
    """llvmlite's builder with counted loops, variables and arrays of f32."""

    def __init__(self, function: ir.Function) -> None:
        super().__init__(function.entry_basic_block)

    def variable(self, value: ir.Value) -> ir.Value:
        """A place on the stack that holds `value`; LLVM makes it a register."""
        with self.goto_entry_block():
            place = self.alloca(value.type)
        self.store(value, place)
        return place

    @contextmanager
    def loop(self, count: ir.Value) -> Iterator[ir.Value]:
        """0 <= index < count."""
        index = self.variable(I64(0))
        head, body, done = (self.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        value = self.load(index, typ=I64)
        self.cbranch(self.icmp_signed("<", value, count), body, done)
        self.position_at_end(body)
        yield value
        self.store(self.add(value, I64(1)), index)
        self.branch(head)
        self.position_at_end(done)

    def at(self, array: ir.Value, index: ir.Value) -> ir.Value:
        """The address of an element."""
        return self.gep(array, [index], source_etype=FLOAT)

    def load_float(self, array: ir.Value, index: ir.Value) -> ir.Value:
        return self.load(self.at(array, index), typ=FLOAT)

    def load_vector(self, array: ir.Value, index: ir.Value, offset: int) -> ir.Value:
        place = self.at(array, self.add(index, I64(offset)))
        return self.load(place, typ=VECTOR, align=BYTES_OF_A_FLOAT)

    def store_vector(self, value: ir.Value, array: ir.Value, index: ir.Value) -> None:
        self.store(value, self.at(array, index), align=BYTES_OF_A_FLOAT)

    def splat(self, value: ir.Value) -> ir.Value:
        undefined = ir.Constant(VECTOR, ir.Undefined)
        one = self.insert_element(undefined, value, ir.IntType(32)(0))
        return self.shuffle_vector(one, undefined, _mask([0] * LANES))

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.select(self.fcmp_ordered("<", a, b), a, b)

    def deinterleave(self, vectors: list[ir.Value]) -> list[ir.Value]:
        """Vectors of consecutive elements as vectors of every len(vectors)-th one."""
        if len(vectors) == 1:
            return vectors
        halves = []
        for first in (0, 1):
            pick = _mask(range(first, 2 * LANES, 2))
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            halves.append(self.deinterleave([self.shuffle_vector(a, c, pick) for a, c in pairs]))
        return [vector for pair in zip(*halves, strict=True) for vector in pair]


def _mask(lanes: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
