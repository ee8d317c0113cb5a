"""A small layer over the bindings in which kernels are written.

    with function(module, isa, "scale", [("x", memref(F32)), ("n", INDEX)]) as (b, i, x, n):
        with b.loop(0, n, 16) as loop:
            v = b.load(x, loop.i, 16)
            b.store(v * 2.0, x, loop.i)

A `Value` is an SSA value with operators; Python numbers become constants of the other side's
type, splat over vectors. Integers are signless: `>>`, `//` and `%` are unsigned, comparisons
signed. Types are given as texts (`"i8"`, `"f32"`, `"index"`) or MLIR types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..dialects.mlir import PointerType, arith, func, ir, math, memref, scf, vector
from .isa import Isa

INDEX = "index"
DYNAMIC = ir.ShapedType.get_dynamic_size()

Number = int | float


def type_of(text: str | ir.Type) -> ir.Type:
    return ir.Type.parse(text) if isinstance(text, str) else text


def buffer(element: str) -> str:
    """The type of a kernel's buffer argument."""
    return f"memref<?x{element}>"


def vec(n: int, element: str | ir.Type) -> ir.VectorType:
    return ir.VectorType.get([n], type_of(element))


def element_of(type_: ir.Type) -> ir.Type:
    return type_.element_type if isinstance(type_, ir.VectorType) else type_


def bits_of(type_: ir.Type) -> int:
    """The width of a scalar or of a vector's element."""
    return element_of(type_).width


def _is_float(type_: ir.Type) -> bool:
    return isinstance(element_of(type_), ir.FloatType)


def _attribute(number: Number, type_: ir.Type) -> ir.Attribute:
    if _is_float(type_):
        return ir.FloatAttr.get(type_, float(number))
    if isinstance(type_, ir.IndexType):
        return ir.IntegerAttr.get(type_, int(number))
    # IntegerAttr wants the value in the signed range of the width.
    wrapped = (int(number) + (1 << (type_.width - 1))) % (1 << type_.width)
    return ir.IntegerAttr.get(type_, wrapped - (1 << (type_.width - 1)))


def constant(number: Number, type_: str | ir.Type) -> Value:
    """A constant; for a vector type, in all lanes."""
    type_ = type_of(type_)
    attribute = _attribute(number, element_of(type_))
    if isinstance(type_, ir.VectorType):
        attribute = ir.DenseElementsAttr.get_splat(type_, attribute)
    return Value(arith.constant(type_, attribute))


def constants(numbers: Sequence[Number], element: str) -> Value:
    """A vector of the given numbers."""
    type_ = vec(len(numbers), element)
    attributes = [_attribute(number, type_.element_type) for number in numbers]
    return Value(arith.constant(type_, ir.DenseElementsAttr.get(attributes, type_)))


class Value:
    """An SSA value with operators. Compares by `==` into an i1, so it cannot be hashed."""

    __slots__ = ("ir",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: ir.Value) -> None:
        self.ir = value

    @property
    def type(self) -> ir.Type:
        return self.ir.type

    @property
    def lanes(self) -> int:
        """The number of elements of a vector."""
        return ir.VectorType(self.type).shape[0]

    def _same(self, other: Value | Number) -> ir.Value:
        return other.ir if isinstance(other, Value) else constant(other, self.type).ir

    def _binary(
        self, other: Value | Number, integer: Any, float_: Any, swap: bool = False
    ) -> Value:
        op = float_ if _is_float(self.type) else integer
        a, b = self.ir, self._same(other)
        return Value(op(b, a) if swap else op(a, b))

    def __add__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.addi, arith.addf)

    def __radd__(self, other: Number) -> Value:
        return self._binary(other, arith.addi, arith.addf, swap=True)

    def __sub__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.subi, arith.subf)

    def __rsub__(self, other: Number) -> Value:
        return self._binary(other, arith.subi, arith.subf, swap=True)

    def __mul__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.muli, arith.mulf)

    def __rmul__(self, other: Number) -> Value:
        return self._binary(other, arith.muli, arith.mulf, swap=True)

    def __truediv__(self, other: Value | Number) -> Value:
        return self._binary(other, None, arith.divf)

    def __rtruediv__(self, other: Number) -> Value:
        return self._binary(other, None, arith.divf, swap=True)

    def __floordiv__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.divui, None)

    def __mod__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.remui, None)

    def __and__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.andi, None)

    def __or__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.ori, None)

    def __xor__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.xori, None)

    def __lshift__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.shli, None)

    def __rshift__(self, other: Value | Number) -> Value:
        return self._binary(other, arith.shrui, None)

    def sar(self, other: Value | Number) -> Value:
        """Shift right, copies of the sign coming in."""
        return self._binary(other, arith.shrsi, None)

    def __neg__(self) -> Value:
        return Value(arith.negf(self.ir)) if _is_float(self.type) else 0 - self

    def _compare(self, other: Value | Number, integer: str, float_: str) -> Value:
        if _is_float(self.type):
            predicate = getattr(arith.CmpFPredicate, float_)
            return Value(arith.cmpf(predicate, self.ir, self._same(other)))
        return Value(arith.cmpi(getattr(arith.CmpIPredicate, integer), self.ir, self._same(other)))

    def __lt__(self, other: Value | Number) -> Value:
        return self._compare(other, "slt", "OLT")

    def __le__(self, other: Value | Number) -> Value:
        return self._compare(other, "sle", "OLE")

    def __gt__(self, other: Value | Number) -> Value:
        return self._compare(other, "sgt", "OGT")

    def __ge__(self, other: Value | Number) -> Value:
        return self._compare(other, "sge", "OGE")

    def __eq__(self, other: Value | Number) -> Value:  # type: ignore[override]
        return self._compare(other, "eq", "OEQ")

    def __ne__(self, other: Value | Number) -> Value:  # type: ignore[override]
        """For floats true also where a side is NaN."""
        return self._compare(other, "ne", "UNE")


def _call_intrinsic(name: str, results: list[ir.Type], args: Sequence[Value]) -> ir.Operation:
    return ir.Operation.create(
        "llvm.call_intrinsic",
        results=results,
        operands=[a.ir for a in args],
        attributes={
            "intrin": ir.StringAttr.get(name),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(args), 0]),
            "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
        },
    )


class Loop:
    """The inside of `Builder.loop`: index `i`, carried values `args`; `results` afterwards."""

    def __init__(self, op: scf.ForOp) -> None:
        self._op = op
        self._yielded = False
        self.i = Value(op.induction_variable)
        self.args = [Value(value) for value in op.inner_iter_args]

    def carry(self, *values: Value) -> None:
        """End the body: the values of `args` in the next turn."""
        scf.yield_([value.ir for value in values])
        self._yielded = True

    def annotate(self, name: str, attribute: ir.Attribute) -> None:
        """Give the loop an attribute."""
        self._op.operation.attributes[name] = attribute

    @property
    def results(self) -> list[Value]:
        return [Value(value) for value in self._op.results_]


class Emitter:
    """Emits operations at the current insertion point: what CPU and GPU kernels have in common.

    `index_type` is the type of loop counters and of numbers made into indices.
    """

    index_type = INDEX

    # Constants

    def const(self, number: Number, type_: str | ir.Type) -> Value:
        return constant(number, type_)

    def consts(self, numbers: Sequence[Number], element: str) -> Value:
        return constants(numbers, element)

    def index(self, number: Value | int) -> Value:
        return number if isinstance(number, Value) else constant(number, self.index_type)

    # Control flow

    @contextmanager
    def loop(
        self,
        begin: Value | int,
        end: Value | int,
        step: Value | int = 1,
        carry: Sequence[Value] = (),
    ) -> Iterator[Loop]:
        """`for i in range(begin, end, step)`, with values carried from turn to turn."""
        bounds = [self.index(x).ir for x in (begin, end, step)]
        op = scf.ForOp(*bounds, [value.ir for value in carry])
        with ir.InsertionPoint(op.body):
            loop = Loop(op)
            yield loop
            if not loop._yielded:
                assert not carry, "a loop that carries values must end with carry(...)"
                scf.yield_([])

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the body where `condition` (i1) holds."""
        op = scf.IfOp(condition.ir)
        with ir.InsertionPoint(op.then_block):
            yield
            scf.yield_([])

    def either(
        self,
        condition: Value,
        types: Sequence[str | ir.Type],
        yes: Callable[[], Sequence[Value]],
        no: Callable[[], Sequence[Value]],
    ) -> list[Value]:
        """The values (of `types`) that `yes` emits where `condition` holds, else those of `no`."""
        op = scf.IfOp(condition.ir, [type_of(t) for t in types], has_else=True)
        for block, side in ((op.then_block, yes), (op.else_block, no)):
            with ir.InsertionPoint(block):
                scf.yield_([value.ir for value in side()])
        return [Value(result) for result in op.results]

    def select(self, condition: Value, yes: Value, no: Value | Number) -> Value:
        return Value(arith.select(condition.ir, yes.ir, yes._same(no)))

    def min(self, a: Value, b: Value | Number) -> Value:
        """The smaller one, signed; for floats `b` where the comparison is unordered."""
        return self.select(a < b, a, b)

    def max(self, a: Value, b: Value | Number) -> Value:
        """The larger one, signed; for floats `b` where the comparison is unordered."""
        return self.select(a > b, a, b)

    # Vectors

    def splat(self, value: Value, n: int) -> Value:
        return Value(vector.broadcast(vec(n, value.type), value.ir))

    def extract(self, value: Value, i: int) -> Value:
        return Value(vector.extract(value.ir, [], [i]))

    def insert(self, scalar: Value, value: Value, i: int) -> Value:
        return Value(vector.insert(scalar.ir, value.ir, [], [i]))

    def slice(self, value: Value, begin: int, n: int) -> Value:
        """Lanes begin .. begin + n."""
        return self.shuffle(value, value, range(begin, begin + n))

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """The vector of the given lanes of `a` and `b` joined."""
        return Value(vector.shuffle(a.ir, b.ir, list(lanes)))

    def join(self, *parts: Value) -> Value:
        """The parts (a power of two of them) one after another."""
        while len(parts) > 1:
            n = 2 * parts[0].lanes
            parts = tuple(
                self.shuffle(parts[i], parts[i + 1], range(n)) for i in range(0, len(parts), 2)
            )
        return parts[0]

    def mask(self, n: int, count: Value) -> Value:
        """The vector<n x i1> whose first `count` (index) lanes are on."""
        return Value(vector.create_mask(vec(n, "i1"), [count.ir]))

    def reduce(self, value: Value, kind: str) -> Value:
        """All lanes into one by a `vector.kind`: add, minsi, maxui, xor, ..."""
        kind_attr = ir.Attribute.parse(f"#vector.kind<{kind}>")
        return Value(vector.reduction(element_of(value.type), kind_attr, value.ir))

    # Conversions

    def bitcast(self, value: Value, type_: str | ir.Type) -> Value:
        type_ = type_of(type_)
        if type_ == value.type:
            return value
        op = vector.bitcast if isinstance(type_, ir.VectorType) else arith.bitcast
        return Value(op(type_, value.ir))

    def _convert(self, op: Any, value: Value, element: str) -> Value:
        type_ = type_of(element)
        if isinstance(value.type, ir.VectorType):
            type_ = vec(value.lanes, type_)
        return value if type_ == value.type else Value(op(type_, value.ir))

    def zext(self, value: Value, element: str) -> Value:
        return self._convert(arith.extui, value, element)

    def sext(self, value: Value, element: str) -> Value:
        return self._convert(arith.extsi, value, element)

    def trunc(self, value: Value, element: str) -> Value:
        return self._convert(arith.trunci, value, element)

    def to_index(self, value: Value) -> Value:
        """A signed integer as an index."""
        return Value(arith.index_cast(ir.IndexType.get(), value.ir))

    def from_index(self, value: Value, element: str) -> Value:
        return Value(arith.index_cast(type_of(element), value.ir))

    def to_float(self, value: Value, element: str = "f32") -> Value:
        """A signed integer rounded to the nearest float."""
        return self._convert(arith.sitofp, value, element)

    def extend(self, value: Value, element: str = "f32") -> Value:
        """A float as a wider float."""
        return self._convert(arith.extf, value, element)

    def narrow(self, value: Value, element: str) -> Value:
        """A float rounded to a narrower one."""
        return self._convert(arith.truncf, value, element)

    # Arithmetic

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once, on every instruction set."""
        return Value(math.fma(a.ir, b.ir, c.ir))

    def abs(self, value: Value) -> Value:
        return Value(math.absf(value.ir) if _is_float(value.type) else math.absi(value.ir))

    def sqrt(self, value: Value) -> Value:
        """The square root, correctly rounded."""
        return Value(math.sqrt(value.ir))

    def popcount(self, value: Value) -> Value:
        return Value(math.ctpop(value.ir))

    def intrinsic(self, name: str, result: str | ir.Type, *args: Value) -> Value:
        """Call the LLVM intrinsic `name`, for instance "llvm.x86.avx2.pmadd.wd"."""
        return Value(_call_intrinsic(name, [type_of(result)], args).results[0])

    def effect(self, name: str, *args: Value) -> None:
        """Call an LLVM intrinsic that has no result."""
        _call_intrinsic(name, [], args)


class Builder(Emitter):
    """Emits CPU kernels, for one instruction set."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    # Memory

    def load(self, source: Value, i: Value | int, n: int = 0, mask: Value | None = None) -> Value:
        """Element `i`, or the vector of `n` elements from `i` on; lanes off the mask are 0."""
        at = [self.index(i).ir]
        if not n:
            return Value(memref.load(source.ir, at))
        type_ = vec(n, ir.MemRefType(source.type).element_type)
        if mask is None:
            return Value(vector.load(type_, source.ir, at))
        return Value(vector.maskedload(type_, source.ir, at, mask.ir, constant(0, type_).ir))

    def store(self, value: Value, target: Value, i: Value | int, mask: Value | None = None) -> None:
        """Store a scalar, or a vector's lanes (those on the mask), from element `i` on."""
        at = [self.index(i).ir]
        if not isinstance(value.type, ir.VectorType):
            memref.store(value.ir, target.ir, at)
        elif mask is None:
            vector.store(value.ir, target.ir, at)
        else:
            vector.maskedstore(target.ir, at, mask.ir, value.ir)

    def load_as(self, source: Value, i: Value | int, type_: str | ir.Type) -> Value:
        """Read a scalar or vector of any type at byte `i` of a buffer of bytes, unaligned; or of
        larger elements, at a multiple of their size."""
        type_ = type_of(type_)
        vector_type = type_ if isinstance(type_, ir.VectorType) else vec(1, type_)
        size = ir.MemRefType(source.type).element_type.width // 8
        count = vector_type.shape[0] * bits_of(vector_type) // 8 // size
        at = self.index(i) // size if size > 1 else i
        value = self.bitcast(self.load(source, at, count), vector_type)
        return value if isinstance(type_, ir.VectorType) else self.extract(value, 0)

    def view(self, source: Value, element: str, count: Value) -> Value:
        """The first `count` elements of a buffer of bytes, which begins at a multiple of them."""
        type_ = ir.MemRefType.parse(f"memref<?x{element}>")
        zero = self.index(0)
        return Value(memref.view(type_, source.ir, zero.ir, [count.ir]))

    def store_as(self, value: Value, target: Value, i: Value | int) -> None:
        """Write a scalar or vector of any type likewise."""
        if not isinstance(value.type, ir.VectorType):
            value = self.splat(value, 1)
        element = ir.MemRefType(target.type).element_type
        size = element.width // 8
        count = value.lanes * bits_of(value.type) // 8 // size
        at = self.index(i) // size if size > 1 else i
        self.store(self.bitcast(value, vec(count, element)), target, at)

    def opaque(self, value: Value) -> Value:
        """The same vector, of which LLVM does not know how it was made: a sum stays a sum of what
        was written, in that order. No instruction."""
        attributes = {
            "asm_string": ir.StringAttr.get(""),
            "constraints": ir.StringAttr.get("=v,0" if self.isa.vector_bits == 512 else "=x,0"),
        }
        made = ir.Operation.create(
            "llvm.inline_asm", results=[value.type], operands=[value.ir], attributes=attributes
        )
        return Value(made.results[0])

    def note_error(self, flag: Value, number: Value) -> None:
        """Leave the number of a failed check in the run's error flag (passes/kernels/checks.py)."""
        least = self.from_index(number, "i32")
        memref.atomic_rmw(arith.AtomicRMWKind.minu, least.ir, flag.ir, [self.index(0).ir])

    def prefetch(self, source: Value, i: Value | int, locality: int = 3) -> None:
        """Fetch the line of element `i` for reading; 3 keeps it in every cache, 0 in none."""
        memref.prefetch(source.ir, [self.index(i).ir], False, locality, True)

    def alloca(self, n: int, element: str) -> Value:
        """A buffer of `n` elements on the stack, 64-byte aligned; call it outside of loops."""
        fixed = memref.alloca(ir.MemRefType.get([n], type_of(element)), [], [], alignment=64)
        return Value(memref.cast(type_of(buffer(element)), fixed))

    def address(self, source: Value, i: Value | int) -> Value:
        """The pointer (`!llvm.ptr`) to byte `i` of a buffer of bytes, for intrinsics."""
        begin = Value(memref.extract_aligned_pointer_as_index(source.ir))
        number = self.from_index(begin + self.index(i), "i64")
        pointer = PointerType.get()
        made = ir.Operation.create("llvm.inttoptr", results=[pointer], operands=[number.ir])
        return Value(made.results[0])

    # Conversions

    def half_to_float(self, bits: Value) -> Value:
        """The f32 values of finite f16 numbers given as their bits (i16)."""
        if self.isa.f16c:
            half = ir.F16Type.get()
            lanes = isinstance(bits.type, ir.VectorType)
            return self.extend(self.bitcast(bits, vec(bits.lanes, half) if lanes else half))
        # Magnitude bits moved to f32's place are too small by 2^112, subnormals included.
        wide = self.zext(bits, "i32")
        as_float = vec(bits.lanes, "f32") if isinstance(bits.type, ir.VectorType) else "f32"
        magnitude = self.bitcast((wide & 0x7FFF) << 13, as_float) * 2.0**112
        sign = (wide & 0x8000) << 16
        return self.bitcast(self.bitcast(magnitude, wide.type) | sign, as_float)


@contextmanager
def function(
    module: ir.Module, isa: Isa, name: str, arguments: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Add grid function `name` to `module`; gives a Builder, the grid index and the arguments.

    `arguments` are the types after the grid index, such as `[buffer("f32"), INDEX]`. Buffers do not
    overlap each other (`llvm.noalias`).
    """
    with module.context, ir.Location.name(name):
        types = [type_of(INDEX), *(type_of(text) for text in arguments)]
        with ir.InsertionPoint(module.body):
            op = func.FuncOp(name, ir.FunctionType.get(types, []))
        noalias = {"llvm.noalias": ir.UnitAttr.get()}
        op.arg_attrs = [
            ir.DictAttr.get(noalias if isinstance(type_, ir.MemRefType) else {}) for type_ in types
        ]
        block = op.add_entry_block()
        with ir.InsertionPoint(block):
            yield (Builder(isa), *(Value(argument) for argument in block.arguments))
            func.return_([])
