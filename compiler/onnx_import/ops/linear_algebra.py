"""Det and Inverse of matrices, by Gaussian elimination with the largest pivot of a column."""

from __future__ import annotations

from abqc.dialects.mlir import scf

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import reshape, slice_axis
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import I64, INDEX
from ..values.symbolic import Dim, product
from ..values.value import Value
from .extremes import place_of_extreme


@lowers("Det")
def det(node: Node) -> Value:
    x, b = node.input(0), node.b
    matrices = _matrices(node, x)
    _, determinants = eliminated(b, matrices, matrices.dims[1], all_rows=False)
    return reshape(b, determinants, x.dims[:-2])


@lowers("Inverse", domain=MICROSOFT)
def inverse(node: Node) -> Value:
    """A singular matrix gives infinities and NaN."""
    x, b = node.input(0), node.b
    matrices = _matrices(node, x)
    count, size, _ = matrices.dims
    source = Value(x.dtype, matrices.dims, ssa=b.tensor(matrices))
    width = b.scalar(size)

    def beside_ones(at: list[Scalar]) -> Scalar:
        image, row, column = at
        inside = column < width
        place = inside.select(column, 0)
        own = b.read(source, [image, row, place])
        unit = (column - width == row).select(own.like(1), own.like(0))
        return inside.select(own, unit)

    wide = b.tabulate([count, size, size * 2], x.dtype, beside_ones)
    done, _ = eliminated(b, wide, size, all_rows=True)
    return reshape(b, slice_axis(b, done, 2, size, size), x.dims)


def _matrices(node: Node, x: Value) -> Value:
    if x.rank < 2:
        raise node.error(f"it needs matrices, not {x}")
    node.b.require_equal(x.dims[-2], x.dims[-1], f"the matrices of {x} are not square")
    size = x.dims[-1] if x.dims[-1].is_static else x.dims[-2]
    return reshape(node.b, x, [product(x.dims[:-2]), size, size])


def eliminated(b: Builder, x: Value, size: Dim, *, all_rows: bool) -> tuple[Value, Value]:
    """`x` [B, size, columns] with zeros below the diagonal, and the products of the pivots [B].

    `all_rows`: with zeros above it too, and ones on it. The sign of a product counts exchanged
    rows. One turn of a loop for each column, whose work are loops over all elements.
    """
    dims, one = x.dims, (x.dims[0],)
    start = b.full(x.dtype, one, 1.0)
    loop = scf.ForOp(b.index(0), b.index(size), b.index(1), [b.tensor(x), start])
    with b.block(loop.body):
        step = b.run_time(loop.induction_variable)
        matrix, product_so_far = loop.inner_iter_args
        before = Value(x.dtype, dims, ssa=matrix)
        total = Value(x.dtype, one, ssa=product_so_far)
        after, factor = _one_column(b, before, step, all_rows)
        result = b.elementwise([total, factor], x.dtype, lambda t, f: t * f)
        scf.YieldOp([b.tensor(after), b.tensor(result)])
    made, products = loop.results
    return Value(x.dtype, dims, ssa=made), Value(x.dtype, one, ssa=products)


def _one_column(b: Builder, x: Value, step: Dim, all_rows: bool) -> tuple[Value, Value]:
    count, rows, _ = x.dims
    k = b.scalar(step)

    def size_of(at: list[Scalar]) -> Scalar:
        value = b.read(x, [*at, k]).abs()
        return (at[1] >= k).select(value, value.like(-1.0))

    sizes = b.tabulate([count, rows], x.dtype, size_of)
    pivots = place_of_extreme(b, sizes, 1)

    def element(at: list[Scalar]) -> Scalar:
        image, row, column = at
        pivot = b.read(pivots, [image]).cast(INDEX)
        here = (row == pivot).select(k, row)  # rows k and pivot are exchanged
        own, first = b.read(x, [image, here, column]), b.read(x, [image, here, k])
        top, head = b.read(x, [image, pivot, column]), b.read(x, [image, pivot, k])
        reduced = own - first / head * top
        if all_rows:
            return (row == k).select(top / head, reduced)
        lower = (row > k) & (head != 0.0)
        return (row == k).select(top, lower.select(reduced, own))

    def factor(at: list[Scalar]) -> Scalar:
        pivot = b.read(pivots, at).cast(INDEX)
        head = b.read(x, [at[0], pivot, k])
        return (pivot == k).select(head, -head)

    pivots = Value(I64, pivots.dims, ssa=b.tensor(pivots))
    return b.tabulate(x.dims, x.dtype, element), b.tabulate([count], x.dtype, factor)
