"""What an element of a tensor is, as an expression of elements of other tensors.

Reshapes, transposes, slices and copies only say which element of another tensor it is (`origin`);
a loop over elements computes it from others (`opened`). So patterns are written as equations
between elements, and hold however a model arranges its axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import constant_index, defining_op, operand_segments
from .generics import (
    Tree,
    dims,
    expression,
    filled,
    groups,
    inputs,
    is_elementwise,
    iterators,
    maps,
)
from .slices import has_steps, static_sizes

# Of an index: a name, or an index value.
Symbol: TypeAlias = str | ir.Value


@dataclass(frozen=True)
class Index:
    """`symbol + offset`; a constant where there is no symbol."""

    symbol: Symbol | None = None
    offset: int = 0


@dataclass(frozen=True)
class Element:
    """The element of a tensor at an index for each axis."""

    value: ir.Value
    index: tuple[Index, ...]

    def at(self, symbols: Mapping[Symbol, Index]) -> Element:
        """With other indices in the place of symbols."""
        return Element(self.value, tuple(_substituted(i, symbols) for i in self.index))


@dataclass(frozen=True)
class Operation:
    """An operation of the arith or math dialect on numbers; names as in `generics.expression`."""

    name: str
    operands: tuple[Expression, ...]


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Sum:
    """The sum of `term` over all values of `symbol`."""

    symbol: str
    term: Expression


Expression = Element | Operation | Number | Sum

_COUNTER = itertools.count()


def element(value: ir.Value, *symbols: str) -> Element:
    """The element of a tensor at an index of symbols."""
    return Element(value, tuple(Index(symbol) for symbol in symbols))


def origin(element: Element) -> Element:
    """The element that it is a copy of, through operations that only move elements."""
    step: Element | None = element
    while step is not None:
        element, step = step, _moved(step)
    return element


def opened(element: Element) -> Expression | None:
    """What one loop computes an element from that is no copy; None for other operations."""
    op = defining_op(element.value)
    if op is None:
        return None
    constant = filled(element.value)
    if constant is not None:
        return Number(constant)
    if op.name in ("linalg.batch_matmul", "linalg.matmul"):
        return _product(op, element.index)
    if op.name != "linalg.generic" or len(op.results) != 1:
        return None
    if is_elementwise(op):
        return _of_tree(expression(op), op, dict(enumerate(element.index)))
    return _sum(op, element.index)


def products(expression: Expression, count: int) -> Iterator[list[Expression]]:
    """All ways to see an expression as a product of `count` factors, in their order.

    A factor that is a copy is the element that it is a copy of.
    """
    if isinstance(expression, Element):
        expression = origin(expression)
    if count == 1:
        yield [expression]
        return
    product = operation(expression)
    if not isinstance(product, Operation) or product.name != "arith.mulf":
        return
    left, right = product.operands
    for first in range(1, count):
        for begin in products(left, first):
            for end in products(right, count - first):
                yield begin + end


def operation(expression: Expression) -> Expression:
    """An expression that is an operation where it can be seen as one; copies are seen through."""
    while isinstance(expression, Element):
        expression = origin(expression)
        inner = opened(expression)
        if inner is None:
            break
        expression = inner
    return expression


def _moved(element: Element) -> Element | None:
    op = defining_op(element.value)
    if op is None:
        return None
    rule = _MOVES.get(op.name)
    index = rule(op, element.index) if rule else None
    return None if index is None else Element(op.operands[0], index)


def _transpose(op: ir.Operation, index: tuple[Index, ...]) -> tuple[Index, ...]:
    moved = list(index)
    for axis, source in enumerate(ir.DenseI64ArrayAttr(op.attributes["permutation"])):
        moved[source] = index[axis]
    return tuple(moved)


def _expand(op: ir.Operation, index: tuple[Index, ...]) -> tuple[Index, ...] | None:
    """Axes of size 1 are dropped."""
    shape = abq.shape(op.results[0])
    found = []
    for group in groups(op):
        wide = [axis for axis in group if shape[axis] != 1]
        if len(wide) > 1:
            return None
        found.append(index[wide[0]] if wide else Index())
    return tuple(found)


def _collapse(op: ir.Operation, index: tuple[Index, ...]) -> tuple[Index, ...] | None:
    """Axes of size 1 are added."""
    shape = abq.shape(op.operands[0])
    found = [Index()] * len(shape)
    for axis, group in enumerate(groups(op)):
        wide = [at for at in group if shape[at] != 1]
        if len(wide) > 1:
            return None
        if wide:
            found[wide[0]] = index[axis]
    return tuple(found)


def _slice(op: ir.Operation, index: tuple[Index, ...]) -> tuple[Index, ...] | None:
    """Offsets are added, a value only to an index that is a constant."""
    if has_steps(op) or len(static_sizes(op)) != len(index):
        return None
    offsets = list(ir.DenseI64ArrayAttr(op.attributes["static_offsets"]))
    values = iter(list(op.operands)[1:])
    found = []
    for offset, at in zip(offsets, index, strict=True):
        if offset != abq.DYNAMIC:
            found.append(replace(at, offset=at.offset + offset))
            continue
        value = next(values)
        constant = constant_index(value)
        if constant is not None:
            found.append(replace(at, offset=at.offset + constant))
        elif at.symbol is None:
            found.append(Index(value, at.offset))
        else:
            return None
    return tuple(found)


def _copy(op: ir.Operation, index: tuple[Index, ...]) -> tuple[Index, ...] | None:
    """An allocation that is a copy of its operand."""
    copies = operand_segments(op)[1] == 1
    return index if copies and len(op.operands) == 1 else None


_MOVES = {
    "bufferization.alloc_tensor": _copy,
    "linalg.transpose": _transpose,
    "tensor.cast": lambda op, index: index,
    "tensor.collapse_shape": _collapse,
    "tensor.expand_shape": _expand,
    "tensor.extract_slice": _slice,
}


def _of_tree(tree: Tree, op: ir.Operation, loops: Mapping[int, Index]) -> Expression:
    """A body's tree (`generics.expression`); `loops` are the indices of the loops by number."""
    name, *rest = tree
    if name == "in":
        return _read(op, rest[0], loops)
    if name == "const":
        return Number(rest[0])
    if name in ("outside", "out", "large"):
        return Operation(str(tree), ())
    operands = tuple(_of_tree(part, op, loops) for part in rest if isinstance(part, tuple))
    attributes = [part for part in rest if not isinstance(part, tuple)]
    return Operation(" ".join([name, *attributes]), operands)


def _read(op: ir.Operation, number: int, loops: Mapping[int, Index]) -> Expression:
    value, map_ = inputs(op)[number], maps(op)[number]
    if dims(map_) is None:
        return Operation(f"input {number} of a loop", ())  # of no pattern
    index = []
    for result in map_.results:
        is_loop = isinstance(result, ir.AffineDimExpr)
        index.append(loops[ir.AffineDimExpr(result).position] if is_loop else Index())
    return Element(value, tuple(index))


def _sum(op: ir.Operation, index: tuple[Index, ...]) -> Expression | None:
    """A reduction of one loop that adds its terms to zero."""
    kinds = iterators(op)
    kept = dims(maps(op)[-1])
    if kinds.count("reduction") != 1 or filled(op.operands[len(op.operands) - 1]) != 0.0:
        return None
    reduced = kinds.index("reduction")
    others = [loop for loop in range(len(kinds)) if loop != reduced]
    tree = expression(op)
    if tree[0] != "arith.addf" or ("out",) not in tree[1:] or kept is None or kept != others:
        return None
    (term,) = [part for part in tree[1:] if part != ("out",)]
    symbol = f"sum{next(_COUNTER)}"
    loops = dict(zip(others, index, strict=True)) | {reduced: Index(symbol)}
    return Sum(symbol, _of_tree(term, op, loops))


def _product(op: ir.Operation, index: tuple[Index, ...]) -> Expression | None:
    """`sum over k of a[.., m, k] b[.., k, n]`."""
    if filled(op.operands[2]) != 0.0 or ("indexing_maps" in op.attributes and not _plain(op)):
        return None
    *batch, m, n = index
    symbol = f"sum{next(_COUNTER)}"
    a = Element(op.operands[0], (*batch, m, Index(symbol)))
    b = Element(op.operands[1], (*batch, Index(symbol), n))
    return Sum(symbol, Operation("arith.mulf", (a, b)))


def _plain(op: ir.Operation) -> bool:
    """Whether a product's maps are those of its name."""
    batch = [0] if op.name == "linalg.batch_matmul" else []
    m, n, k = (len(batch) + i for i in range(3))
    return [dims(map_) for map_ in maps(op)] == [[*batch, m, k], [*batch, k, n], [*batch, m, n]]


def _substituted(index: Index, symbols: Mapping[Symbol, Index]) -> Index:
    if index.symbol is None or index.symbol not in symbols:
        return index
    other = symbols[index.symbol]
    return Index(other.symbol, other.offset + index.offset)
