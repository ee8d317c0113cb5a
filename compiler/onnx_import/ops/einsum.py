"""Einsum: sums of products of elements that an equation pairs by the names of their axes.

An equation becomes products of two operands at a time. A pair whose axes are shared, summed, or of
one side alone is a batched matrix product; with a constant matrix on the right it is an
`abq.matmul`, as MatMul makes it. What is left (a diagonal, a sum over an axis of one operand) is
done to each operand before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape, transpose
from ..registry import Node, lowers
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value
from .matmul import product_of
from .reductions import summed


@lowers("Einsum")
def einsum(node: Node) -> Value:
    operands = node.tensors()
    inputs, output = parse_equation(node, str(node.string("equation")), operands)
    sizes = _sizes(node, inputs, operands)
    terms = [
        _without_repeats(node.b, Term(value, names), sizes)
        for value, names in zip(operands, inputs, strict=True)
    ]
    result, *others = terms
    for at, term in enumerate(others):
        needed = set(output).union(*(later.names for later in others[at + 1 :]))
        result = _multiplied(node, result, term, needed)
    result = _summed(node.b, result, set(output))
    return _arranged(node.b, result, output, sizes)


@dataclass(frozen=True)
class Term:
    """An operand, and the name of each of its axes. A name is a letter, or `.i` of an ellipsis."""

    value: Value
    names: tuple[str, ...]

    def dim(self, name: str) -> Dim:
        return self.value.dims[self.names.index(name)]


Names = tuple[str, ...]


def parse_equation(
    node: Node, equation: str, operands: Sequence[Value]
) -> tuple[list[Names], Names]:
    """The names of the axes of every operand and of the result."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(operands):
        raise node.error(
            f"'{equation}' has {len(texts)} terms, but there are {len(operands)} inputs"
        )
    inputs = [
        _names(node, text, operand.rank) for text, operand in zip(texts, operands, strict=True)
    ]
    hidden = max((sum(n.startswith(".") for n in names) for names in inputs), default=0)
    ellipsis = tuple(f".{i}" for i in range(-hidden, 0))
    if arrow:
        if right.count("...") > 1:
            raise node.error(f"'{equation}' has more than one ellipsis in its result")
        before, dots, behind = right.partition("...")
        output = (*before, *(ellipsis if dots else ()), *behind)
    else:  # letters that occur once, in alphabetical order
        letters = [name for names in inputs for name in names if not name.startswith(".")]
        output = (*ellipsis, *sorted(name for name in letters if letters.count(name) == 1))
    known = {name for names in inputs for name in names}
    if len(set(output)) != len(output) or not set(output) <= known:
        raise node.error(f"'{equation}': the result has a name twice or one that no input has")
    return inputs, output


def _names(node: Node, text: str, rank: int) -> Names:
    before, dots, behind = text.partition("...")
    letters = before + behind
    if not (letters.isalpha() or not letters):
        raise node.error(f"'{text}' is no term of an equation")
    hidden = rank - len(letters)
    if hidden < 0 or (hidden and not dots):
        raise node.error(f"the term '{text}' does not fit an input of rank {rank}")
    return (*before, *(f".{i}" for i in range(-hidden, 0)), *behind)


def _sizes(node: Node, inputs: Sequence[Names], operands: Sequence[Value]) -> dict[str, Dim]:
    """The size behind every name; sizes of 1 are broadcast."""
    sizes: dict[str, Dim] = {}
    for names, operand in zip(inputs, operands, strict=True):
        for name, dim in zip(names, operand.dims, strict=True):
            known = sizes.get(name)
            sizes[name] = dim if known is None else node.b.broadcast_dims([[known], [dim]])[0]
    return sizes


def _without_repeats(b: Builder, term: Term, sizes: dict[str, Dim]) -> Term:
    """Diagonals instead of names that occur twice; sizes of 1 that are broadcast made whole."""
    names = tuple(dict.fromkeys(term.names))
    x = term.value
    if len(names) < len(term.names):
        source = Value(x.dtype, x.dims, ssa=b.tensor(x))
        places = [names.index(name) for name in term.names]
        dims = [sizes[name] for name in names]
        fixed = [dim == ONE for dim in x.dims]

        def diagonal(at: list[Scalar]) -> Scalar:
            read = [
                at[place].like(0) if one else at[place]
                for place, one in zip(places, fixed, strict=True)
            ]
            return b.read(source, read)

        return Term(b.tabulate(dims, x.dtype, diagonal), names)
    dims = [sizes[name] for name in names]
    if all(own in (wide, ONE) for own, wide in zip(x.dims, dims, strict=True)):
        return term  # products broadcast sizes of 1 themselves
    return Term(b.elementwise([x], x.dtype, lambda v: v, dims=dims), names)


def _summed(b: Builder, term: Term, needed: set[str]) -> Term:
    """Without the axes that nothing else needs."""
    axes = [axis for axis, name in enumerate(term.names) if name not in needed]
    if not axes:
        return term
    names = tuple(name for name in term.names if name in needed)
    return Term(summed(b, term.value, axes), names)


def _multiplied(node: Node, x: Term, y: Term, needed: set[str]) -> Term:
    """The product, summed over the names that neither the result nor another operand needs."""
    b = node.b
    x = _summed(b, x, needed | set(y.names))
    y = _summed(b, y, needed | set(x.names))
    x, y = _without_units(b, x, y)
    shared = [name for name in x.names if name in y.names]
    batch = [name for name in shared if name in needed]
    inner = [name for name in shared if name not in needed]
    rows = [name for name in x.names if name not in shared]
    columns = [name for name in y.names if name not in shared]
    if not inner:
        return _outer(b, x, y, (*batch, *rows, *columns))
    left = _grouped(b, x, [batch, rows, inner])
    right = _grouped(b, y, [batch, inner, columns])
    if not batch:
        left, right = (reshape(b, value, value.dims[1:]) for value in (left, right))
    made = product_of(node, left, right)
    dims = [x.dim(n) for n in (*batch, *rows)] + [y.dim(n) for n in columns]
    return Term(reshape(b, made, dims), (*batch, *rows, *columns))


def _without_units(b: Builder, x: Term, y: Term) -> tuple[Term, Term]:
    """Without axes of size 1 that the other operand has in full: a product ignores them."""

    def reduced(term: Term, other: Term) -> Term:
        kept = [
            name
            for name in term.names
            if not (name in other.names and term.dim(name) == ONE and other.dim(name) != ONE)
        ]
        if len(kept) == len(term.names):
            return term
        return Term(reshape(b, term.value, [term.dim(name) for name in kept]), tuple(kept))

    return reduced(x, y), reduced(y, x)


def _grouped(b: Builder, term: Term, groups: Sequence[Sequence[str]]) -> Value:
    """With the axes of each group joined to one, groups in order."""
    names = [name for group in groups for name in group]
    moved = transpose(b, term.value, [term.names.index(name) for name in names])
    dims = [product(term.dim(name) for name in group) for group in groups]
    return reshape(b, moved, dims)


def _outer(b: Builder, x: Term, y: Term, names: Names) -> Term:
    """Products of elements, nothing being summed."""

    def spread(term: Term) -> Value:
        own = [name for name in names if name in term.names]
        moved = transpose(b, term.value, [term.names.index(name) for name in own])
        return reshape(b, moved, [term.dim(n) if n in term.names else ONE for n in names])

    left, right = spread(x), spread(y)
    return Term(b.elementwise([left, right], left.dtype, lambda v, w: v * w), names)


def _arranged(b: Builder, term: Term, output: Names, sizes: dict[str, Dim]) -> Value:
    """Axes as the result has them."""
    moved = transpose(b, term.value, [term.names.index(name) for name in output])
    dims = [sizes[name] for name in output]
    if tuple(dims) == moved.dims:
        return moved
    return b.elementwise([moved], moved.dtype, lambda v: v, dims=dims)
