"""Tensors seen or copied in another shape: what operators share, on values of the importer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from abqc.dialects.mlir import ir, linalg, tensor

from ..values import symbolic
from ..values.element_types import STORED_HALVES, ElementType
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value, constant_value
from .emit import DYNAMIC, Builder
from .scalars import Number, Scalar
from .small_floats import decode, encode


def widened(b: Builder, stored: Value, dtype: ElementType) -> Value:
    """A tensor of halves as it lies in memory, as a value of `dtype`: f32 where one computes."""

    def make() -> ir.Value:
        identity = ir.AffineMap.get_identity(stored.rank)
        return b.generic(
            stored.dims, [b.tensor(stored)], [identity], [dtype], lambda x: [decode(x, dtype)]
        )[0]

    return Value(dtype, stored.dims, make=make, stored=stored)


def narrowed(b: Builder, x: Value) -> Value:
    """Halves as they lie in memory, rounded if they have been computed."""
    if x.stored is not None:
        return x.stored
    dtype, ssa = STORED_HALVES[x.dtype], b.tensor(x)
    identity = ir.AffineMap.get_identity(x.rank)
    (made,) = b.generic(x.dims, [ssa], [identity], [dtype], lambda v: [encode(v, x.dtype)])
    return Value(dtype, x.dims, ssa=made)


def reshape(b: Builder, x: Value, dims: Sequence[Dim | int]) -> Value:
    """The same elements, in row-major order. Checks at run time what is not known to agree."""
    target = tuple(map(Dim.of, dims))
    if target == x.dims:
        return x
    before, after = product(x.dims), product(target)
    b.require_equal(before, after, f"{x} cannot be reshaped to [{_text(target)}]")
    if x.content is not None:
        return Value(x.dtype, target, content=x.content)
    shape = tuple(dim.value for dim in target)
    if x.constant is not None and None not in shape:
        return constant_value(x.constant.reshaped(shape), x.dtype)  # type: ignore[arg-type]
    if symbolic.ZERO in (before, after):
        return Value(x.dtype, target, ssa=b.empty(x.dtype, target))
    if x.stored is not None:
        return widened(b, reshape(b, x.stored, target), x.dtype)
    source = x.viewed or x
    if target == source.dims:
        return source
    swapped = _swapped(b, x, target)
    if swapped is not None:
        return swapped
    return Value(x.dtype, target, ssa=_view(b, x, target), steps=x.steps, viewed=source)


def _swapped(b: Builder, x: Value, target: tuple[Dim, ...]) -> Value | None:
    """The transpose of the last two axes that PyTorch writes for three axes, as one of the tensor.

    It exports `key.transpose(-2, -1)` of its attention as a reshape to [-1, rows, columns], a
    transpose of these three axes and a reshape back.
    """
    if x.transposed is None or x.transposed[1] != (0, 2, 1):
        return None
    whole = x.transposed[0].viewed
    if whole is None or whole.rank < 3 or whole.dims[-2:] != x.transposed[0].dims[1:]:
        return None
    *lead, rows, columns = whole.dims
    if target != (*lead, columns, rows):
        return None
    return transpose(b, whole, [*range(len(lead)), whole.rank - 1, whole.rank - 2])


def _text(dims: Sequence[Dim]) -> str:
    return ", ".join(map(str, dims))


def _view(b: Builder, x: Value, target: tuple[Dim, ...]) -> ir.Value:
    """Axes are joined and cut group by group, so that loops fuse through the reshape."""
    if not x.dims or not target:
        return _of_one_element(b, x, target)
    groups = _groups(x.dims, target)
    middle = [product(x.dims[i] for i in left) for left, _ in groups]
    ssa = b.tensor(x)
    if len(middle) < x.rank:
        ssa = tensor.CollapseShapeOp(
            b.type(x.dtype, middle), ssa, [list(left) for left, _ in groups]
        ).result
    # A type says the size of what is cut only where it says those of all parts.
    wanted = [symbolic.static_product(target[i] for i in right) for _, right in groups]
    cut = [DYNAMIC if size is None else size for size in wanted]
    ssa = b.as_type(ssa, ir.RankedTensorType.get(cut, x.dtype.inside()))
    if len(groups) == len(target):
        return b.as_type(ssa, b.type(x.dtype, target))
    shape = [DYNAMIC if dim.value is None else dim.value for dim in target]
    dynamic = [b.index(dim) for dim in target if dim.value is None]
    return tensor.ExpandShapeOp(
        b.type(x.dtype, target), ssa, [list(right) for _, right in groups], dynamic, shape
    ).result


def _of_one_element(b: Builder, x: Value, target: tuple[Dim, ...]) -> ir.Value:
    """To or from rank 0; all other sizes are 1 (`reshape` has checked it)."""
    type_ = b.type(x.dtype, target)
    ssa = b.tensor(x)
    if x.dims and any(dim != ONE for dim in x.dims):
        element = tensor.ExtractOp(ssa, [b.index(0)] * x.rank).result
        return tensor.FromElementsOp(type_, [element]).result
    if x.dims:
        return tensor.CollapseShapeOp(type_, ssa, []).result
    if all(dim == ONE for dim in target):
        return tensor.ExpandShapeOp(type_, ssa, [], [], [1] * len(target)).result
    element = tensor.ExtractOp(ssa, []).result
    ones = tensor.FromElementsOp(b.type(x.dtype, [ONE] * len(target)), [element]).result
    return b.as_type(b.as_type(ones, _all_dynamic(x, len(target))), type_)


def _all_dynamic(x: Value, rank: int) -> ir.Type:
    return ir.RankedTensorType.get([DYNAMIC] * rank, x.dtype.inside())


Group = tuple[list[int], list[int]]


def _groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[Group]:
    """The finest split of both into runs of axes whose products are known to be equal."""
    groups: list[Group] = []
    i = j = 0
    while i < len(source) and j < len(target):
        group, i_next, j_next = _next_group(source, target, i, j)
        groups.append(group)
        i, j = i_next, j_next
    # What is left over are sizes whose product is 1: they belong to the last group.
    groups[-1][0].extend(range(i, len(source)))
    groups[-1][1].extend(range(j, len(target)))
    return groups


def _next_group(
    source: Sequence[Dim], target: Sequence[Dim], i: int, j: int
) -> tuple[Group, int, int]:
    for total in range(2, len(source) - i + len(target) - j + 1):
        for left in range(max(1, total - (len(target) - j)), min(total, len(source) - i + 1)):
            right = total - left
            if product(source[i : i + left]) != product(target[j : j + right]):
                continue
            rest = product(source[i + left :]), product(target[j + right :])
            ends = (i + left == len(source), j + right == len(target))
            if ends[0] != ends[1] and symbolic.equal(*rest) is not True:
                continue
            group = (list(range(i, i + left)), list(range(j, j + right)))
            return group, i + left, j + right
    everything = (list(range(i, len(source))), list(range(j, len(target))))
    return everything, len(source), len(target)


def transpose(b: Builder, x: Value, permutation: Sequence[int]) -> Value:
    """Axis i of the result is axis `permutation[i]` of `x`."""
    order = list(permutation)
    if order == sorted(order):
        return x
    dims = tuple(x.dims[axis] for axis in order)
    if x.constant is not None:
        return constant_value(x.constant.transposed(tuple(order)), x.dtype)
    if x.stored is not None:
        return widened(b, transpose(b, x.stored, order), x.dtype)
    if x.content is not None and None not in x.shape:
        places = np.arange(len(x.content)).reshape(x.static_shape).transpose(order)
        return Value(x.dtype, dims, content=tuple(x.content[at] for at in places.reshape(-1)))
    # Axes of size 1 that move past each other change nothing in memory.
    if [a for a in order if x.dims[a] != ONE] == [
        a for a in range(x.rank) if x.dims[a] != ONE
    ] and all(dim.value is not None or dim.atoms() for dim in dims):
        return reshape(b, x, dims)
    out = b.empty(x.dtype, dims)
    ssa = linalg.transpose(b.tensor(x), outs=[out], permutation=order).operation.results[0]
    return Value(x.dtype, dims, ssa=ssa, steps=x.steps, transposed=(x, tuple(order)))


def channels_second(b: Builder, x: Value) -> Value:
    """[N, ..., C] as [N, C, ...]."""
    return transpose(b, x, [0, x.rank - 1, *range(1, x.rank - 1)])


def channels_last(b: Builder, x: Value) -> Value:
    """[N, C, ...] as [N, ..., C]."""
    return transpose(b, x, [0, *range(2, x.rank), 1])


def unsqueeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Adds sizes of 1 at `axes` of the result (not negative)."""
    rest = iter(x.dims)
    rank = x.rank + len(axes)
    return reshape(b, x, [ONE if axis in axes else next(rest) for axis in range(rank)])


def squeeze(b: Builder, x: Value, axes: Sequence[int]) -> Value:
    """Takes sizes of 1 out; others there are an error (of the run, where only it knows)."""
    for axis in axes:
        b.require_equal(x.dims[axis], ONE, f"axis {axis} of {x} is squeezed, its size must be 1")
    return reshape(b, x, [dim for axis, dim in enumerate(x.dims) if axis not in axes])


def expand(b: Builder, x: Value, dims: Sequence[Dim]) -> Value:
    """Broadcast to `dims` (or what `dims` and those of x are, broadcast together)."""
    result = b.broadcast_dims([x.dims, tuple(dims)])
    if result == x.dims:
        return x
    if x.content is not None and len(set(x.content)) == 1:
        size = symbolic.static_product(result)
        if size is not None and size <= 4096:
            return Value(x.dtype, result, content=x.content[:1] * size)
    if x.stored is not None:
        return widened(b, expand(b, x.stored, dims), x.dtype)
    return b.elementwise([x], x.dtype, lambda element: element, dims=result)


def slice_axes(
    b: Builder,
    x: Value,
    begins: Sequence[Dim | int],
    sizes: Sequence[Dim | int],
    steps: Sequence[int] | None = None,
) -> Value:
    """`x[begin + i * step]` for i < size along every axis; the caller sees to the bounds."""
    starts, dims = tuple(map(Dim.of, begins)), tuple(map(Dim.of, sizes))
    strides = list(steps) if steps is not None else [1] * x.rank
    if dims == x.dims and all(s == symbolic.ZERO for s in starts) and set(strides) <= {1}:
        return x
    if x.stored is not None:
        return widened(b, slice_axes(b, x.stored, starts, dims, strides), x.dtype)
    if any(dim == symbolic.ZERO for dim in (*dims, *x.dims)):
        return Value(x.dtype, dims, ssa=b.empty(x.dtype, dims))
    if any(step < 0 for step in strides):
        source = Value(x.dtype, x.dims, ssa=b.tensor(x))
        at = [b.scalar(start) for start in starts]
        return b.tabulate(
            dims,
            x.dtype,
            lambda indices: b.read(
                source, [s + i * t for s, i, t in zip(at, indices, strides, strict=True)]
            ),
        )
    ssa = tensor.ExtractSliceOp(
        b.type(x.dtype, dims),
        b.tensor(x),
        [b.index(start) for start in starts if start.value is None],
        [b.index(dim) for dim in dims if dim.value is None],
        [],
        [DYNAMIC if start.value is None else start.value for start in starts],
        [DYNAMIC if dim.value is None else dim.value for dim in dims],
        strides,
    ).result
    return Value(x.dtype, dims, ssa=ssa)


def slice_axis(
    b: Builder, x: Value, axis: int, begin: Dim | int, size: Dim | int, step: int = 1
) -> Value:
    """As `slice_axes`, of one axis."""
    begins = [Dim.of(begin) if i == axis else symbolic.ZERO for i in range(x.rank)]
    sizes = [Dim.of(size) if i == axis else dim for i, dim in enumerate(x.dims)]
    return slice_axes(b, x, begins, sizes, [step if i == axis else 1 for i in range(x.rank)])


def concat(b: Builder, parts: Sequence[Value], axis: int) -> Value:
    """Parts of one type and rank put together along `axis` (not negative)."""
    first = parts[0]
    for part in parts[1:]:
        for at, (size, other) in enumerate(zip(first.dims, part.dims, strict=True)):
            if at != axis:
                b.require_equal(size, other, f"sizes along axis {at} differ")
    dims = tuple(
        sum((part.dims[at] for part in parts), symbolic.ZERO)
        if at == axis
        # Of sizes found to agree the static one says most.
        else next((p.dims[at] for p in parts if p.dims[at].value is not None), dim)
        for at, dim in enumerate(first.dims)
    )
    if len(parts) == 1:
        return first
    contents = [() if part.dims == (symbolic.ZERO,) else part.symbols for part in parts]
    if first.rank == 1 and all(content is not None for content in contents):
        joined = tuple(dim for content in contents for dim in content or ())
        return Value(first.dtype, dims, content=joined)
    if any(part.stored is not None for part in parts):
        return widened(b, concat(b, [narrowed(b, part) for part in parts], axis), first.dtype)
    ssa = tensor.ConcatOp(
        ir.RankedTensorType.get(
            [
                DYNAMIC
                if (at == axis and any(p.dims[at].value is None for p in parts))
                or (at != axis and any(p.dims[at].value is None for p in parts))
                else dim.value
                for at, dim in enumerate(dims)
            ],
            first.dtype.inside(),
        ),
        axis,
        [b.tensor(part) for part in parts],
    ).result
    return b.made(ssa, first.dtype, dims)


def pad(
    b: Builder,
    x: Value,
    begins: Sequence[Dim | int],
    ends: Sequence[Dim | int],
    number: Number | Scalar = 0,
) -> Value:
    """Surrounded by `number`; negative amounts take elements away."""
    low, high = tuple(map(Dim.of, begins)), tuple(map(Dim.of, ends))
    if all(amount == symbolic.ZERO for amount in (*low, *high)):
        return x
    zero = symbolic.ZERO
    cut_low, cut_high = ([symbolic.maximum(-a, zero) for a in amounts] for amounts in (low, high))
    kept = [dim - s - e for dim, s, e in zip(x.dims, cut_low, cut_high, strict=True)]
    for size in kept:
        b.require(symbolic.negated(symbolic.is_less(size, zero)), "pads take more than there is")
    x = slice_axes(b, x, cut_low, kept)
    added_low, added_high = (
        [symbolic.maximum(a, zero) for a in amounts] for amounts in (low, high)
    )
    if all(amount == zero for amount in (*added_low, *added_high)):
        return x
    dims = [dim + s + e for dim, s, e in zip(x.dims, added_low, added_high, strict=True)]
    return Value(x.dtype, tuple(dims), ssa=_padded(b, x, dims, added_low, number))


def _padded(
    b: Builder,
    x: Value,
    dims: Sequence[Dim],
    low: Sequence[Dim],
    number: Number | Scalar,
) -> ir.Value:
    """Written into a tensor filled with `number`: two loops over memory, no branch in either."""
    filled = b.full(x.dtype, dims, number)
    if symbolic.ZERO in x.dims:  # MLIR rejects offsets at the end of an empty axis
        return filled
    return tensor.InsertSliceOp(
        b.tensor(x),
        filled,
        [b.index(start) for start in low if start.value is None],
        [b.index(dim) for dim in x.dims if dim.value is None],
        [],
        [DYNAMIC if start.value is None else start.value for start in low],
        [DYNAMIC if dim.value is None else dim.value for dim in x.dims],
        [1] * x.rank,
    ).result
