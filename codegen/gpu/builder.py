"""The layer in which GPU kernels are written: `codegen/builder.py`'s, on pointers and threads.

    arguments = [POINTER, POINTER, "i32"]
    with kernel(module, arch, "scale", arguments, threads=128) as (b, block, x, y, n):
        i = block * 128 + b.thread
        with b.when(i < n):
            b.store(b.load(x, "f32", i * 4) * 2.0, y, i * 4)

Integers are i32 unless made wider; loops count in i32. Pointers are bytes: offsets are in bytes,
i32 offsets are signed, so that what may pass 2 GiB is first widened (`b.wide`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from abqc.dialects.mlir import arith, func, ir, linkage, llvm, nvvm
from abqc.passes.kernels.launch import KERNEL_SHARED, KERNEL_THREADS
from abqc.runtime.tensor_parameter import MAP_ALIGNMENT, MAP_BYTES, TensorParameter

from ..builder import INDEX, Emitter, Value, bits_of, type_of, vec
from .arch import WARP, GpuArch

POINTER = "!llvm.ptr<1>"  # global memory
WEIGHT = "abq.weight"  # as an argument: a POINTER to a weight of the model: nothing writes there
SHARED_POINTER = "!llvm.ptr<3>"
MAP_POINTER = "!llvm.ptr"  # to a tensor map among the parameters
TENSOR_MAP = "abq.tensor_map"  # such an argument: the `numbers` of its TensorParameter

# Of a weight that a warp or a tile of columns begins with, fetched before the kernel waits: in the
# 3 us that this may take an H200's memory gives 12 MB, and some 2000 to 4000 warps are running.
PREFETCH_BYTES = 4096

# Attributes of a kernel that codegen.gpu.compile and the launch read.
THREADS = KERNEL_THREADS
SHARED = KERNEL_SHARED
REGISTERS = "abq.registers"  # at most so many a thread; where it is missing, ptxas decides
BLOCKS = "abq.blocks"  # so many blocks shall fit a multiprocessor's registers

# The dynamic shared memory of all kernels of a module; aligned for whatever reads it (wgmma: atoms
# of 8 rows of 128 bytes, swizzled).
SHARED_SYMBOL = "abqc_shared"
SHARED_ALIGNMENT = 1024

FULL = -1  # member mask of a whole warp

WAIT = "griddepcontrol.wait;"

Cache = Literal["", "nc", "stream"]
_DYNAMIC = -(2**31)  # LLVM's mark of a dynamic index


class GpuBuilder(Emitter):
    """Emits GPU kernels for one target. `thread` is the index in the block, i32."""

    index_type = "i32"

    def __init__(self, arch: GpuArch, threads: int, shared: int) -> None:
        self.arch = arch
        self.threads = threads
        self.shared_bytes = shared
        self.thread = Value(nvvm.ThreadIdXOp().result)

    @property
    def lane(self) -> Value:
        """The thread's place in its warp."""
        return self.thread & (WARP - 1)

    @property
    def warp(self) -> Value:
        """The number of the thread's warp in the block."""
        return self.thread >> 5

    # Integers

    def wide(self, value: Value) -> Value:
        """A non-negative i32 as i64."""
        return self.zext(value, "i64")

    def unsigned_max(self, a: Value, c: Value) -> Value:
        """The larger one of two i32, unsigned."""
        return self.intrinsic("llvm.umax.i32", "i32", a, c)

    def float_max(self, a: Value, c: Value) -> Value:
        """The larger one of two f32, one instruction (`max`: two); of a NaN and a number the
        number."""
        return self.intrinsic("llvm.maxnum.f32", "f32", a, c)

    def ceil_div(self, value: Value, by: int) -> Value:
        """`ceil(value / by)` of a non-negative i32."""
        return value if by == 1 else (value + (by - 1)) // by

    # Memory

    @property
    def shared(self) -> Value:
        """The block's dynamic shared memory."""
        assert self.shared_bytes, f"a kernel of {self.threads} threads has no shared memory"
        return Value(llvm.AddressOfOp(type_of(SHARED_POINTER), SHARED_SYMBOL).result)

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """The pointer `offset` bytes further on."""
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            dynamic, fixed = [], offset
        else:
            dynamic, fixed = [offset.ir], _DYNAMIC
        i8 = ir.IntegerType.get_signless(8)
        return Value(llvm.GEPOp(pointer.type, pointer.ir, dynamic, [fixed], i8, 0).result)

    def load(
        self,
        pointer: Value,
        type_: str | ir.Type,
        offset: Value | int = 0,
        *,
        align: int = 0,
        cache: Cache = "",
    ) -> Value:
        """A scalar or vector at byte `offset`, aligned to its size unless `align` (bytes) is given.

        `nc`: nothing writes there while the kernel runs. `stream`: likewise, and it is read once,
        so that it shall not push others out of the L1 cache (4 x 32 bits of a `WEIGHT` only). On
        targets with dependent launches only weights are read through the read-only path
        (assembly/dependent_launch.py).
        """
        type_ = type_of(type_)
        at = self.at(pointer, offset)
        if cache == "stream":
            assert type_ == vec(4, "i32"), "only 16 bytes are streamed"
            return self._load_stream(at)
        op = llvm.LoadOp(
            type_, at.ir, alignment=align or _byte_size(type_), invariant=cache == "nc" or None
        )
        return Value(op.result)

    def _load_stream(self, pointer: Value) -> Value:
        """Not `.nc`: ptxas moves such loads over barriers, to behind what they should overlap."""
        words = self.asm(
            "ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];",
            "=r,=r,=r,=r,l",
            ["i32"] * 4,
            pointer,
            effects=True,
        )
        return self.vector(words)

    def prefetch_line(self, weight: Value) -> None:
        """Start to bring the line at `weight` to L2."""
        self.asm("prefetch.global.L2 [$0];", "l", [], weight, effects=True)

    def store(
        self, value: Value, pointer: Value, offset: Value | int = 0, *, align: int = 0
    ) -> None:
        """Store a scalar or vector at byte `offset`, aligned to its size or to `align`."""
        at = self.at(pointer, offset)
        llvm.StoreOp(value.ir, at.ir, alignment=align or _byte_size(value.type))

    def atomic(self, kind: str, pointer: Value, value: Value, offset: Value | int = 0) -> Value:
        """`add`, `max` (signed), ... of `value` to an integer in memory; what was there before.

        Nothing is ordered by it but the accesses to that integer."""
        shared = pointer.type == type_of(SHARED_POINTER)
        op = llvm.AtomicRMWOp(
            llvm.AtomicBinOp[kind],
            self.at(pointer, offset).ir,
            value.ir,
            llvm.AtomicOrdering.monotonic,
            syncscope="block" if shared else "device",
        )
        return Value(op.result)

    def barrier_any(self, value: Value) -> Value:
        """A barrier; not 0 (i32) in all threads of the block where `value` is not 0 in one."""
        reduction = ir.Attribute.parse("#nvvm.reduction<or>")
        return Value(nvvm.BarrierReductionOp(reduction, value.ir).operation.results[0])

    def fence(self) -> None:
        """What the thread did to memory before is seen by all of the GPU before what it does after;
        what others did before theirs, by this thread after it."""
        llvm.FenceOp(llvm.AtomicOrdering.acq_rel, syncscope="device")

    def copy_async(
        self,
        shared: Value,
        source: Value,
        bytes_: int = 16,
        valid: Value | None = None,
        *,
        near: bool = False,
    ) -> None:
        """`cp.async` of 4, 8 or 16 bytes from global to shared memory; bytes from `valid` on are 0.
        `near`: 16 bytes go through the L1 cache too, where others find them.

        Whoever reads them waits (`wait_copies`) and then meets the others (`barrier`)."""
        kind = "cg" if bytes_ == 16 and not near else "ca"
        name = f"llvm.nvvm.cp.async.{kind}.shared.global.{bytes_}"
        if valid is None:
            self.call(name, shared, source)
        else:
            self.call(f"{name}.s", shared, source, valid)

    def commit_copies(self) -> None:
        """End a group of asynchronous copies."""
        self.call("llvm.nvvm.cp.async.commit.group")

    def wait_copies(self, pending: int = 0) -> None:
        """Wait until at most `pending` of this thread's groups of copies are under way."""
        nvvm.CpAsyncWaitGroupOp(pending)

    # Threads

    def wait(self) -> None:
        """Wait for the kernels that this one depends on; every thread must come here.

        Before it only arguments that are a `WEIGHT` may be read. A kernel that does not say where
        waits at its start. Targets without dependent launches need none: nothing is emitted."""
        if self.arch.dependent_launch:
            self.asm(WAIT, "~{memory}", [], effects=True)

    def prefetch(self, weight: Value, bytes_: Value | int) -> None:
        """Have bytes of a weight brought to the L2 cache, at most `PREFETCH_BYTES`, by each thread
        that comes here. They begin at a multiple of 16 bytes and are one. Like `wait`, only where
        there are dependent launches."""
        if not self.arch.dependent_launch:
            return
        most = self.min(self.index(bytes_), self.const(PREFETCH_BYTES, "i32"))
        text = "cp.async.bulk.prefetch.L2.global [$0], $1;"
        self.asm(text, "l,r", [], weight, most, effects=True)

    def barrier(self) -> None:
        """All threads of the block meet; what they wrote to shared memory is seen by all."""
        nvvm.BarrierOp()

    def warp_barrier(self) -> None:
        """The threads of the warp meet."""
        self.call("llvm.nvvm.bar.warp.sync", self.const(FULL, "i32"))

    def exchange(self, value: Value, how: str, by: Value | int) -> Value:
        """A 32- or 64-bit value of another lane; `how`: "bfly" (lane ^ by), "down", "up", or "idx".

        "down" and "up" give a lane its own value where there is no other."""
        if bits_of(value.type) == 64:
            words = self.lanes_of(self.bitcast(self.splat(value, 1), vec(2, "i32")))
            words = [self.exchange(word, how, by) for word in words]
            return self.extract(self.bitcast(self.vector(words), vec(1, value.type)), 0)
        element = "f32" if isinstance(value.type, ir.FloatType) else "i32"
        clamp = 0 if how == "up" else WARP - 1
        intrinsic = f"llvm.nvvm.shfl.sync.{how}.{element}"
        mask, last = self.const(FULL, "i32"), self.const(clamp, "i32")
        return self.intrinsic(intrinsic, element, mask, value, self.index(by), last)

    def warp_sum(self, value: Value, lanes: int = WARP) -> Value:
        """The sum over each group of `lanes` neighbouring lanes, in all of them."""
        if self._reduces(value, lanes):
            return self._reduced("add", value)
        return self._butterfly(value, lanes, lambda a, c: a + c)

    def warp_max(self, value: Value, lanes: int = WARP) -> Value:
        """The maximum (signed) over each group of `lanes` neighbouring lanes, in all of them."""
        if self._reduces(value, lanes):
            return self._reduced("max", value)
        return self._butterfly(value, lanes, self.max)

    def warp_unsigned_max(self, value: Value, lanes: int = WARP) -> Value:
        """As `warp_max`, unsigned."""
        if self._reduces(value, lanes):
            return self._reduced("umax", value)
        return self._butterfly(value, lanes, self.unsigned_max)

    def _reduces(self, value: Value, lanes: int) -> bool:
        return lanes == WARP and value.type == type_of("i32") and self.arch.warp_reductions

    def _reduced(self, how: str, value: Value) -> Value:
        mask = self.const(FULL, "i32")
        return self.intrinsic(f"llvm.nvvm.redux.sync.{how}", "i32", value, mask)

    def _butterfly(self, value: Value, lanes: int, combine: Any) -> Value:
        distance = lanes // 2
        while distance:
            value = combine(value, self.exchange(value, "bfly", distance))
            distance //= 2
        return value

    # Vectors

    def lanes_of(self, value: Value) -> list[Value]:
        """The elements of a vector."""
        return [self.extract(value, i) for i in range(value.lanes)]

    def vector(self, elements: Sequence[Value]) -> Value:
        """A vector of these scalars."""
        value = self.splat(elements[0], len(elements))
        for i, element in enumerate(elements[1:], 1):
            value = self.insert(element, value, i)
        return value

    # Instructions

    def undefined(self, type_: str) -> Value:
        """Any value: of a register that is written before it is read."""
        return Value(llvm.UndefOp(type_of(type_)).result)

    def asm(
        self,
        text: str,
        constraints: str,
        results: Sequence[str],
        *operands: Value,
        effects: bool = False,
    ) -> list[Value]:
        """Inline PTX: `$0`, ... are results, then operands; with `effects` it is never dropped."""
        types = [type_of(t) for t in results]
        made: ir.Type | None = None
        if types:
            texts = ", ".join(str(t) for t in types)
            made = types[0] if len(types) == 1 else type_of(f"!llvm.struct<({texts})>")
        op = llvm.InlineAsmOp(
            made, [o.ir for o in operands], text, constraints, has_side_effects=effects or None
        )
        if len(types) <= 1:
            return [Value(r) for r in op.operation.results]
        return self._members(op.operation.results[0], types)

    def call(self, name: str, *operands: Value) -> None:
        """An LLVM intrinsic without a result."""
        llvm.call_intrinsic(None, name, [o.ir for o in operands], [], [])

    def calls(self, name: str, results: Sequence[str], *operands: Value) -> list[Value]:
        """An LLVM intrinsic that returns a structure."""
        types = [type_of(t) for t in results]
        struct = type_of(f"!llvm.struct<({', '.join(str(t) for t in types)})>")
        made = llvm.call_intrinsic(struct, name, [o.ir for o in operands], [], [])
        return self._members(made, types)

    def _members(self, struct: ir.Value, types: Sequence[ir.Type]) -> list[Value]:
        return [
            Value(llvm.ExtractValueOp(type_, struct, [i]).result) for i, type_ in enumerate(types)
        ]

    def load_matrices(self, shared: Value, count: int, *, transposed: bool = False) -> list[Value]:
        """`ldmatrix`: `count` (1, 2, 4) matrices of 8 rows of 16 bytes each.

        Lane 8 * j + r points at row r of matrix j. Returns a register (i32) per matrix: 4 bytes of
        row `lane / 4`, at byte `lane % 4 * 4`."""
        trans = ".trans" if transposed else ""
        name = f"llvm.nvvm.ldmatrix.sync.aligned.m8n8.x{count}{trans}.b16.p3"
        if count == 1:
            return [self.intrinsic(name, "i32", shared)]
        return self.calls(name, ["i32"] * count, shared)

    def permute_bytes(self, a: Value, c: Value, selector: Value | int) -> Value:
        """`prmt`: byte j of the result is byte `selector >> 4 j & 7` of the 8 bytes a, c."""
        if isinstance(selector, int):
            selector = self.const(selector, "i32")
        return self.intrinsic("llvm.nvvm.prmt", "i32", a, c, selector)

    def logic3(self, a: Value, c: Value, d: Value, table: int) -> Value:
        """`lop3`: the function of three bits whose truth table `table` is (0xF0, 0xCC, 0xAA)."""
        text = f"lop3.b32 $0, $1, $2, $3, {table};"
        return self.asm(text, "=r,r,r,r", ["i32"], a, c, d)[0]

    def dot4(self, a: Value, c: Value, total: Value, *, signs: str = "ss") -> Value:
        """`dp4a`: total + the dot product of 4 bytes; `signs` of a and c: "uu", "us", ..."""
        types = [{"u": "u32", "s": "s32"}[s] for s in signs]
        text = f"dp4a.{types[0]}.{types[1]} $0, $1, $2, $3;"
        return self.asm(text, "=r,r,r,r", ["i32"], a, c, total)[0]

    def exp2(self, value: Value) -> Value:
        """2^x in f32, approximate (`ex2.approx`: 2 ulp), subnormals flushed."""
        return self.asm("ex2.approx.ftz.f32 $0, $1;", "=f,f", ["f32"], value)[0]

    def reciprocal_root(self, value: Value) -> Value:
        """1 / sqrt(x) in f32, rounded twice (IEEE square root and division)."""
        root = self.intrinsic("llvm.sqrt.f32", "f32", value)
        return 1.0 / root

    def round_even(self, value: Value) -> Value:
        """A float rounded to an integral float, half to even."""
        return self.intrinsic(f"llvm.roundeven.{value.type}", value.type, value)

    def to_bits(self, value: Value) -> Value:
        """The bits of a float, or of a short vector, as one integer."""
        if isinstance(value.type, ir.VectorType):
            total = value.lanes * bits_of(value.type)
            return self.extract(self.bitcast(value, vec(1, f"i{total}")), 0)
        return self.bitcast(value, f"i{bits_of(value.type)}")

    def from_bits(self, value: Value, type_: str | ir.Type) -> Value:
        """The inverse of `to_bits`."""
        type_ = type_of(type_)
        if isinstance(type_, ir.VectorType):
            return self.bitcast(self.splat(value, 1), type_)
        return self.bitcast(value, type_)


def _byte_size(type_: ir.Type) -> int:
    if isinstance(type_, ir.VectorType):
        return type_.shape[0] * bits_of(type_) // 8
    return bits_of(type_) // 8


def _argument_type(argument: str | TensorParameter) -> ir.Type:
    if isinstance(argument, TensorParameter):
        return type_of(MAP_POINTER)
    return type_of(POINTER if argument == WEIGHT else argument)


def _argument_attributes(argument: str | TensorParameter) -> ir.DictAttr:
    if isinstance(argument, TensorParameter):
        return _map_attributes(argument)
    names = {POINTER: ["llvm.noalias"], WEIGHT: ["llvm.noalias", WEIGHT]}.get(argument, [])
    return ir.DictAttr.get({name: ir.UnitAttr.get() for name in names})


def _map_attributes(parameter: TensorParameter) -> ir.DictAttr:
    """A parameter that is the map itself, of which the kernel has the address."""
    bytes_ = type_of(f"!llvm.array<{MAP_BYTES} x i8>")
    i64 = ir.IntegerType.get_signless(64)
    return ir.DictAttr.get(
        {
            "llvm.byval": ir.TypeAttr.get(bytes_),
            "llvm.align": ir.IntegerAttr.get(i64, MAP_ALIGNMENT),
            TENSOR_MAP: ir.DenseI64ArrayAttr.get(parameter.numbers),
        }
    )


def declare_shared(module: ir.Module) -> None:
    """Declare the dynamic shared memory, once a module."""
    if SHARED_SYMBOL in ir.SymbolTable(module.operation):
        return
    with ir.InsertionPoint.at_block_begin(module.body), ir.Location.unknown():
        llvm.GlobalOp(
            type_of("!llvm.array<0 x i8>"),
            SHARED_SYMBOL,
            linkage("external"),
            addr_space=3,
            alignment=SHARED_ALIGNMENT,
        )


@contextmanager
def kernel(
    module: ir.Module,
    arch: GpuArch,
    name: str,
    arguments: Sequence[str | TensorParameter],
    *,
    threads: int,
    shared: int = 0,
    registers: int = 0,
    blocks: int = 0,
) -> Iterator[tuple[Any, ...]]:
    """Add a grid function to `module`; gives a GpuBuilder, the grid index (i32), the arguments.

    `arguments` are types: POINTER, WEIGHT, "i32", "i64", "f32", or a TensorParameter, whose slots
    are those of the others: it comes to lie behind them. Pointers do not overlap each other.
    `threads` a block, `shared` bytes of dynamic shared memory, at most `registers` a thread (0:
    what ptxas thinks best for occupancy, be it a few spills), or as many as let `blocks` blocks
    run on a multiprocessor (1: no spills for the sake of occupancy).
    """
    assert threads <= arch.threads_per_block, f"{name}: {threads} threads"
    assert shared <= arch.shared_per_block, f"{name}: {shared} bytes of shared memory"
    with module.context, ir.Location.name(name):
        if shared:
            declare_shared(module)
        types = [_argument_type(argument) for argument in (INDEX, *arguments)]
        with ir.InsertionPoint(module.body):
            op = func.FuncOp(name, ir.FunctionType.get(types, []))
        i32 = ir.IntegerType.get_signless(32)
        op.operation.attributes[THREADS] = ir.IntegerAttr.get(i32, threads)
        op.operation.attributes[SHARED] = ir.IntegerAttr.get(i32, shared)
        if registers:
            op.operation.attributes[REGISTERS] = ir.IntegerAttr.get(i32, registers)
        if blocks:
            op.operation.attributes[BLOCKS] = ir.IntegerAttr.get(i32, blocks)
        op.arg_attrs = [_argument_attributes(argument) for argument in (INDEX, *arguments)]
        entry = op.add_entry_block()
        with ir.InsertionPoint(entry):
            block = Value(arith.index_cast(i32, entry.arguments[0]))
            values = [Value(argument) for argument in list(entry.arguments)[1:]]
            yield (GpuBuilder(arch, threads, shared), block, *values)
            func.return_([])
