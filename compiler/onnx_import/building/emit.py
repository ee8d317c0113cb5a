"""Builds the IR of a model: sizes, tensors, loops. What operators are lowered with.

All methods need an insertion point and a location, which `lowering.py` sets for each node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir, linalg, tensor
from abqc.errors import ModelError

from ..graph.model import SMALL
from ..values import symbolic
from ..values.constants import Constant
from ..values.element_types import INDEX, ElementType
from ..values.symbolic import ONE, Atom, Call, Dim, Named, Opaque
from ..values.value import Value, constant_value
from ..values.weights import Weights
from .scalars import Number, Scalar, const

DYNAMIC = ir.ShapedType.get_dynamic_size()

Body = Callable[..., Scalar]


class Scope:
    """What was made in a block already and can be used again there and in regions inside of it."""

    def __init__(self, parent: Scope | None = None) -> None:
        self._parent = parent
        self._indices: dict[Dim, ir.Value] = {}
        self._tensors: dict[int, tuple[Value, ir.Value]] = {}  # the Value lives as long as its id
        self._equal: dict[Atom, Dim] = {}  # what checks at run time have made sure of
        self._required: set[Dim] = set()

    def equal(self, atom: Atom) -> Dim | None:
        known = self._equal.get(atom)
        return self._parent.equal(atom) if known is None and self._parent else known

    def keep_equal(self, atom: Atom, dim: Dim) -> None:
        self._equal[atom] = dim

    @property
    def has_equal(self) -> bool:
        return bool(self._equal) or (self._parent is not None and self._parent.has_equal)

    def index(self, dim: Dim) -> ir.Value | None:
        known = self._indices.get(dim)
        return self._parent.index(dim) if known is None and self._parent else known

    def keep_index(self, dim: Dim, ssa: ir.Value) -> None:
        self._indices[dim] = ssa

    def tensor(self, value: Value) -> ir.Value | None:
        known = self._tensors.get(id(value))
        if known is None:
            return self._parent.tensor(value) if self._parent else None
        return known[1]

    def keep_tensor(self, value: Value, ssa: ir.Value) -> None:
        self._tensors[id(value)] = (value, ssa)

    def is_required(self, condition: Dim) -> bool:
        """Whether a condition was checked before."""
        if condition in self._required:
            return True
        return self._parent is not None and self._parent.is_required(condition)

    def keep_required(self, condition: Dim) -> None:
        self._required.add(condition)


class Builder:
    """Emits ops at the current insertion point; `node` and `op_type` say which they are for."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.node = ""
        self.op_type = ""
        self.scope = Scope()
        self._atoms: dict[Atom, ir.Value] = {}  # sizes of inputs, run-time integers
        self._opaques = 0
        self.loop_forms: dict[object, Any] = {}  # how loops were emitted (looping.py)
        self.iterations: list[Dim] = []  # the numbers of those around the insertion point
        self.notes: list[dict[str, str]] = []

    def note(self, text: str) -> None:
        """Something that the user should know of the node: the rest of a sentence about it."""
        note = {"node": self.node, "note": text}
        if note not in self.notes:
            self.notes.append(note)

    # Scopes

    @contextmanager
    def block(self, block: ir.Block) -> Iterator[None]:
        """Emit at the end of a block of a region."""
        outer, self.scope = self.scope, Scope(self.scope)
        try:
            with ir.InsertionPoint(block):
                yield
        finally:
            self.scope = outer

    # Integers

    def bind(self, atom: Atom, ssa: ir.Value) -> Dim:
        """From now on `ssa`, an index, is the value of `atom`."""
        self._atoms[atom] = ssa
        return Dim.of(atom)

    @property
    def mark(self) -> int:
        """Run-time integers bound from now on have larger numbers."""
        return self._opaques

    def run_time(self, ssa: ir.Value | Scalar, *, natural: bool = True) -> Dim:
        """An integer that only a run knows. `natural`: it is never negative."""
        value = ssa.cast(INDEX).ssa if isinstance(ssa, Scalar) else ssa
        self._opaques += 1
        return self.bind(Opaque(self._opaques, natural), value)

    def index(self, dim: Dim | int) -> ir.Value:
        """A `Dim` as an SSA index."""
        dim = Dim.of(dim)
        known = self.scope.index(dim)
        if known is None:
            known = self._index(dim)
            self.scope.keep_index(dim, known)
        return known

    def scalar(self, dim: Dim | int) -> Scalar:
        return Scalar(self.index(dim), INDEX)

    def truth(self, condition: Dim) -> Scalar:
        """Whether a `Dim` is not 0."""
        if condition.value is None and len(condition.terms) == 1:
            ((atoms, factor),) = condition.terms
            if factor == 1 and len(atoms) == 1 and isinstance(atoms[0], Call):
                rule = _TRUTHS.get(atoms[0].function)
                if rule is not None:
                    return rule(self, *atoms[0].arguments)
        return self.scalar(condition) != 0

    def _index(self, dim: Dim) -> ir.Value:
        number = dim.value
        if number is not None:
            return self._constant(number).ssa
        total: Scalar | None = None
        for atoms, factor in dim.terms:
            term = self._monomial(atoms, factor)
            total = term if total is None else total + term
        assert total is not None
        return total.ssa

    def _monomial(self, atoms: tuple[Atom, ...], factor: int) -> Scalar:
        if not atoms:
            return self._constant(factor)
        result = self._atom(atoms[0])
        for atom in atoms[1:]:
            result = result * self._atom(atom)
        return result if factor == 1 else result * self._constant(factor)

    def _constant(self, number: int) -> Scalar:
        if not -(1 << 63) <= number < 1 << 63:
            raise ModelError(f"a size of {number} takes more than 64 bits", node=self.node)
        return const(number, INDEX)

    def _atom(self, atom: Atom) -> Scalar:
        if isinstance(atom, Call):
            dim = Dim.of(atom)
            known = self.scope.index(dim)
            if known is None:
                known = _CALLS[atom.function](self, *atom.arguments).ssa
                self.scope.keep_index(dim, known)
            return Scalar(known, INDEX)
        if atom not in self._atoms:
            assert isinstance(atom, Named)
            raise ModelError(f"no input has the size '{atom}'", node=self.node)
        return Scalar(self._atoms[atom], INDEX)

    # Checks

    def require(self, condition: Dim, what: str) -> None:
        """The run ends with `what` unless `condition` holds; ModelError if it never can."""
        if condition.value is not None:
            if not condition.value:
                raise ModelError(self._of_node(what), node=self.node)
            return
        if not self.scope.is_required(condition):
            self.scope.keep_required(condition)
            self.check(self.truth(condition), what)

    def require_equal(self, a: Dim, b: Dim, what: str) -> None:
        a, b = self.normal(a), self.normal(b)
        if symbolic.equal(a, b) is False:
            raise ModelError(self._of_node(f"{what}: {a} and {b}"), node=self.node)
        self.require(symbolic.is_equal(a, b), what)
        self._learn(a, b)

    def normal(self, dim: Dim) -> Dim:
        """A size in the words of those that it was found to be equal to."""
        if dim.is_static or not self.scope.has_equal:
            return dim
        found = symbolic.replaced(dim, self.scope.equal)
        # What was learned later may say more of what stands for it.
        return found if found == dim else self.normal(found)

    def _learn(self, a: Dim, b: Dim) -> None:
        """A check has made sure that two sizes are equal: one stands for both from here on."""
        if a == b or a.is_static or b.is_static:
            return
        pairs = [(symbolic.single_atom(b), a), (symbolic.single_atom(a), b)]
        pairs.sort(key=lambda pair: isinstance(pair[0], Named))  # names of the model stay
        for atom, dim in pairs:
            if atom is not None and not symbolic.mentions(dim, atom):
                self.scope.keep_equal(atom, dim)
                return

    def normalized(self, value: Value) -> Value:
        """A value whose dims are in these words."""
        if not self.scope.has_equal:
            return value
        dims = tuple(map(self.normal, value.dims))
        content = value.content and tuple(map(self.normal, value.content))
        if dims == value.dims and content == value.content:
            return value
        if value.ssa is None and content == value.content:
            # What it is made of is kept by identity.
            ssa, steps = self.tensor(value), value.steps
            return Value(value.dtype, dims, ssa=ssa, steps=steps, rounded=value.rounded)
        viewed = value.viewed and self.normalized(value.viewed)
        return replace(value, dims=dims, content=content, viewed=viewed)

    def _of_node(self, what: str) -> str:
        return f"{self.op_type}: {what}" if self.op_type else what

    def check_input(self, condition: Scalar, what: str) -> None:
        """As `check`, of what the caller hands in."""
        cf.AssertOp(condition.ssa, what)

    def check(self, condition: Scalar, what: str) -> None:
        """An error of the run unless `condition` holds; inside of loops too."""
        cf.AssertOp(condition.ssa, f"node '{self.node}': {what}")

    # Tensors

    def type(self, dtype: ElementType, dims: Sequence[Dim]) -> ir.RankedTensorType:
        sizes = [DYNAMIC if dim.value is None else dim.value for dim in dims]
        return ir.RankedTensorType.get(sizes, dtype.inside())

    def tensor(self, value: Value) -> ir.Value:
        """A value as a tensor of the IR."""
        if value.ssa is not None:
            return value.ssa
        known = self.scope.tensor(value)
        if known is None:
            known = self._materialized(value)
            self.scope.keep_tensor(value, known)
        return known

    def weight(self, constant: Constant, *, node: str, op_type: str, kind: str) -> ir.Value:
        """A constant of f32 inside as the weight of a node, which may be stored in 16 bits."""
        symbol, stored = self.weights.of_node(constant, node=node, op_type=op_type, kind=kind)
        type_ = ir.RankedTensorType.get(list(constant.shape), stored.stored())
        return abq.WeightOp(ir.StringAttr.get(symbol), type_).result

    def made(self, ssa: ir.Value, dtype: ElementType, dims: Sequence[Dim | int]) -> Value:
        """The value that an op returned; its type is brought in line with `dims`."""
        exact = tuple(Dim.of(dim) for dim in dims)
        return Value(dtype, exact, ssa=self.as_type(ssa, self.type(dtype, exact)))

    def as_type(self, ssa: ir.Value, type_: ir.Type) -> ir.Value:
        return ssa if ssa.type == type_ else tensor.CastOp(type_, ssa).result

    def _materialized(self, value: Value) -> ir.Value:
        if value.make is not None:
            return value.make()
        constant = value.as_constant
        type_ = self.type(value.dtype, value.dims)
        if constant is not None and constant.size == 0:
            return self.empty(value.dtype, value.dims)
        if constant is not None and constant.size <= SMALL:
            array = np.ascontiguousarray(constant.load().astype(value.dtype.inside_dtype))
            return arith.ConstantOp(type_, _dense(array, type_)).result
        if constant is not None:
            symbol = self.weights.plain(constant, value.dtype)
            return abq.WeightOp(ir.StringAttr.get(symbol), type_).result
        assert value.content is not None
        elements = [self.scalar(dim).cast(value.dtype).ssa for dim in value.content]
        return tensor.FromElementsOp(type_, elements).result

    def empty(self, dtype: ElementType, dims: Sequence[Dim]) -> ir.Value:
        return self.empty_of(dtype.inside(), dims)

    def empty_of(self, element: ir.Type, dims: Sequence[Dim]) -> ir.Value:
        sizes = [self.index(dim) if dim.value is None else dim.value for dim in dims]
        return tensor.EmptyOp(sizes, element).result

    def full(self, dtype: ElementType, dims: Sequence[Dim], number: Number | Scalar) -> ir.Value:
        """A tensor of the IR with one number in all places."""
        fill = number if isinstance(number, Scalar) else const(number, dtype)
        return linalg.fill(fill.ssa, outs=[self.empty(dtype, dims)])

    def constant(self, number: Number, dtype: ElementType) -> Value:
        """A constant of rank 0."""
        array = np.array(number).astype(dtype.dtype)
        return constant_value(Constant((), dtype.onnx, lambda: array), dtype)

    def content(self, dims: Sequence[Dim], dtype: ElementType, shape: Sequence[int]) -> Value:
        """A shape tensor."""
        return Value(dtype, tuple(map(Dim.of, shape)), content=tuple(dims))

    def item(self, value: Value, *position: Dim | int) -> Scalar:
        """One element of a tensor, read outside of loops."""
        indices = [self.index(Dim.of(at)) for at in position]
        return Scalar(tensor.ExtractOp(self.tensor(value), indices).result, value.dtype)

    def integers(self, value: Value) -> list[Dim]:
        """The elements of an integer tensor of at most one axis as `Dim`s, read if unknown."""
        if value.symbols is not None:
            return list(value.symbols)
        if value.rank > 1 or value.size is None:
            raise ModelError(
                f"the number of elements of a shape tensor, {value}, must be static", node=self.node
            )
        positions: list[tuple[int, ...]] = [(i,) for i in range(value.size)]
        if value.rank == 0:
            positions = [()]
        return [self.run_time(self.item(value, *at), natural=False) for at in positions]

    # Loops

    def elementwise(
        self,
        operands: Sequence[Value],
        dtype: ElementType,
        body: Body,
        *,
        dims: Sequence[Dim] | None = None,
    ) -> Value:
        """`body` of the operands' elements, which are broadcast together as ONNX does.

        `dims`: the result's, if they are more than the broadcast of the operands'.
        """
        shapes = [operand.dims for operand in operands]
        result = self.broadcast_dims(shapes if dims is None else [*shapes, tuple(dims)])
        read, maps, numbers, known = [], [], {}, {}
        for at, operand in enumerate(operands):
            if operand.size == 1 and operand.as_constant is not None:
                numbers[at] = operand.as_constant.load().reshape(-1)[0]
                continue
            if operand.size == 1 and operand.content is not None:
                known[at] = self.scalar(operand.content[0]).cast(operand.dtype)
                continue
            wide = self._spread(operand, result)
            read.append(self.tensor(wide))
            maps.append(_broadcast_map(wide.dims, result))

        def full_body(*elements: ir.Value) -> list[ir.Value]:
            rest = iter(elements)
            arguments = [
                const(_number(numbers[at]), operand.dtype)
                if at in numbers
                else known[at]
                if at in known
                else Scalar(next(rest), operand.dtype)
                for at, operand in enumerate(operands)
            ]
            return [body(*arguments).ssa]

        (ssa,) = self.generic(result, read, maps, [dtype], full_body)
        return Value(dtype, result, ssa=ssa)

    def tabulate(
        self, dims: Sequence[Dim], dtype: ElementType, body: Callable[[list[Scalar]], Scalar]
    ) -> Value:
        """The tensor whose element at `indices` is `body(indices)`, which may `read` others."""
        exact = tuple(map(Dim.of, dims))

        def full_body() -> list[ir.Value]:
            indices = [Scalar(linalg.IndexOp(axis).result, INDEX) for axis in range(len(exact))]
            return [body(indices).ssa]

        (ssa,) = self.generic(exact, [], [], [dtype], full_body)
        return Value(dtype, exact, ssa=ssa)

    def read(self, value: Value, indices: Sequence[Scalar | ir.Value]) -> Scalar:
        """An element, inside of a body. `value` must have been made before the loop."""
        at = [index.ssa if isinstance(index, Scalar) else index for index in indices]
        return Scalar(tensor.ExtractOp(self.tensor(value), at).result, value.dtype)

    def generic(
        self,
        dims: Sequence[Dim],
        read: Sequence[ir.Value],
        maps: Sequence[ir.AffineMap],
        dtypes: Sequence[ElementType],
        body: Callable[..., list[ir.Value]],
    ) -> list[ir.Value]:
        """A linalg.generic over `dims`, all parallel, with a result of these dims per dtype."""
        identity = ir.AffineMap.get_identity(len(dims))
        outs = [self.empty(dtype, dims) for dtype in dtypes]

        def without_outs(*elements: ir.Value) -> list[ir.Value]:
            return body(*elements[: len(read)])

        all_maps = [*maps, *([identity] * len(outs))]
        return self.structured(read, outs, all_maps, [True] * len(dims), without_outs)

    def structured(
        self,
        read: Sequence[ir.Value],
        outs: Sequence[ir.Value],
        maps: Sequence[ir.AffineMap],
        parallel: Sequence[bool],
        body: Callable[..., list[ir.Value]],
    ) -> list[ir.Value]:
        """A linalg.generic; `body` gets the elements of `read` and `outs` and returns new ones."""
        generic = linalg.GenericOp(
            [out.type for out in outs],
            list(read),
            list(outs),
            ir.ArrayAttr.get([ir.AffineMapAttr.get(map_) for map_ in maps]),
            linalg.iterator_types("parallel" if flag else "reduction" for flag in parallel),
        )
        types = [ir.RankedTensorType(value.type).element_type for value in (*read, *outs)]
        location = ir.Location.current
        block = generic.operation.regions[0].blocks.append(*types, arg_locs=[location] * len(types))
        with self.block(block):
            linalg.YieldOp(body(*block.arguments))
        return list(generic.operation.results)

    def reduce(
        self,
        operands: Sequence[Value],
        axes: Sequence[int],
        inits: Sequence[tuple[ElementType, Number]],
        combine: Callable[..., Sequence[Scalar]],
        *,
        keepdims: bool = False,
    ) -> list[Value]:
        """Reduce `axes` (not negative) of operands of equal dims.

        `combine(*elements, *accumulators)` returns the new accumulators, which begin as `inits`,
        pairs of type and number.
        """
        dims = operands[0].dims
        kept = [axis for axis in range(len(dims)) if axis not in axes]
        result = tuple(dims[axis] for axis in kept)
        outs = [self.full(dtype, result, number) for dtype, number in inits]
        identity = ir.AffineMap.get_identity(len(dims))
        onto = ir.AffineMap.get(len(dims), 0, [ir.AffineDimExpr.get(axis) for axis in kept])

        def body(*values: ir.Value) -> list[ir.Value]:
            types = [*(o.dtype for o in operands), *(dtype for dtype, _ in inits)]
            scalars = [Scalar(v, t) for v, t in zip(values, types, strict=True)]
            return [scalar.ssa for scalar in combine(*scalars)]

        made = self.structured(
            [self.tensor(operand) for operand in operands],
            outs,
            [identity] * len(operands) + [onto] * len(outs),
            [axis in kept for axis in range(len(dims))],
            body,
        )
        values = [
            Value(dtype, result, ssa=ssa) for ssa, (dtype, _) in zip(made, inits, strict=True)
        ]
        if not keepdims:
            return values
        wide = tuple(dim if axis in kept else ONE for axis, dim in enumerate(dims))
        from .shaping import reshape

        return [reshape(self, value, wide) for value in values]

    # Broadcasts

    def broadcast_dims(self, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
        """The dims of tensors broadcast together; what only a run can decide is checked there."""
        rank = max((len(shape) for shape in shapes), default=0)
        result = []
        for axis in range(-rank, 0):
            size = ONE
            for shape in shapes:
                if -axis <= len(shape):
                    size = self._joined(size, Dim.of(shape[axis]), axis)
            result.append(size)
        return tuple(result)

    def _joined(self, a: Dim, b: Dim, axis: int) -> Dim:
        a, b = self.normal(a), self.normal(b)
        if a == b or b == ONE:
            return a
        if a == ONE:
            return b
        if symbolic.are_one_together(a, b):
            self.require_equal(a, b, f"sizes {a} and {b} differ (axis {axis})")
            return self.normal(a)
        joined = symbolic.call("broadcast", a, b)
        agree = symbolic.is_equal(a, b)
        for size in (a, b):
            agree = symbolic.call("or", agree, symbolic.is_equal(size, ONE))
        self.require(agree, f"sizes {a} and {b} cannot be broadcast together (axis {axis})")
        return joined

    def _spread(self, operand: Value, dims: Sequence[Dim]) -> Value:
        """An operand whose sizes are the result's or statically 1; others are decided at run time.

        Where a size may be 1 in one run and the result's in another, the element is chosen by a
        comparison: slower than a loop over known sizes, and rare.
        """
        own = dims[len(dims) - operand.rank :]
        operand = self.normalized(operand)
        decided = [size in (ONE, wide) for size, wide in zip(operand.dims, own, strict=True)]
        if all(decided):
            return operand
        wide = tuple(
            size if known else target
            for size, known, target in zip(operand.dims, decided, own, strict=True)
        )
        source = Value(operand.dtype, operand.dims, ssa=self.tensor(operand))
        zero = const(0, INDEX)
        single = [None if known else self.truth(symbolic.is_equal(size, ONE))
                  for size, known in zip(operand.dims, decided, strict=True)]  # fmt: skip

        def body(indices: list[Scalar]) -> Scalar:
            at = [
                index if one is None else one.select(zero, index)
                for index, one in zip(indices, single, strict=True)
            ]
            return self.read(source, at)

        return self.tabulate(wide, operand.dtype, body)


def _dense(array: np.ndarray, type_: ir.RankedTensorType) -> ir.Attribute:
    if array.dtype != bool:
        return ir.DenseElementsAttr.get(array, type=type_.element_type, shape=list(type_.shape))
    elements = [ir.IntegerAttr.get(type_.element_type, int(x)) for x in array.reshape(-1)]
    return ir.DenseElementsAttr.get(elements, type_)


def _number(value: np.generic) -> Number:
    if isinstance(value, (np.bool_, bool)):
        return bool(value)
    if np.issubdtype(value.dtype, np.integer) or value.dtype.kind in "iu":
        return int(value)
    return float(value)  # 2- and 4-bit integers of ml_dtypes too


def _broadcast_map(dims: Sequence[Dim], result: Sequence[Dim]) -> ir.AffineMap:
    """From the result's loops to the operand's axes; 0 along what is broadcast."""
    offset = len(result) - len(dims)
    expressions = [
        ir.AffineConstantExpr.get(0)
        if dim == ONE and result[offset + axis] != ONE
        else ir.AffineDimExpr.get(offset + axis)
        for axis, dim in enumerate(dims)
    ]
    return ir.AffineMap.get(len(result), 0, expressions)


def _select(b: Builder, condition: Dim, then: Dim, otherwise: Dim) -> Scalar:
    return b.truth(condition).select(b.scalar(then), b.scalar(otherwise))


def _floordiv(b: Builder, x: Dim, y: Dim) -> Scalar:
    if symbolic.is_natural(x) and symbolic.is_natural(y):
        return Scalar(arith.DivUIOp(b.index(x), b.index(y)).result, INDEX)
    return b.scalar(x) // b.scalar(y)


def _both(b: Builder, x: Dim, y: Dim) -> Scalar:
    return b.truth(x) & b.truth(y)


def _either(b: Builder, x: Dim, y: Dim) -> Scalar:
    return b.truth(x) | b.truth(y)


_TRUTHS: dict[str, Callable[..., Scalar]] = {
    "eq": lambda b, x, y: b.scalar(x) == b.scalar(y),
    "lt": lambda b, x, y: b.scalar(x) < b.scalar(y),
    "not": lambda b, x: ~b.truth(x),
    "and": _both,
    "or": _either,
}


def _as_index(function: str) -> Callable[..., Scalar]:
    return lambda b, *arguments: _TRUTHS[function](b, *arguments).select(const(1, INDEX), 0)


_CALLS: dict[str, Callable[..., Scalar]] = {
    "floordiv": _floordiv,
    "truncdiv": lambda b, x, y: b.scalar(x) / b.scalar(y),
    "mul": lambda b, x, y: b.scalar(x) * b.scalar(y),
    "min": lambda b, x, y: b.scalar(x).minimum(b.scalar(y)),
    "max": lambda b, x, y: b.scalar(x).maximum(b.scalar(y)),
    "select": _select,
    "broadcast": lambda b, x, y: (b.scalar(x) == 1).select(b.scalar(y), b.scalar(x)),
    **{name: _as_index(name) for name in _TRUTHS},
}
