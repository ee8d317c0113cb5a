"""Operations on layouts: composition, complement, inverses, division and product.

Definitions as in "CuTe Layout Algebra" (CUTLASS documentation); each function's docstring states
what it satisfies, and tests/test_layout_algebra.py checks that against tables of offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from .layout import Layout, LayoutError, concatenate, from_leaves

Tiler: TypeAlias = "int | Layout | Sequence[Tiler]"


def coalesce(layout: Layout) -> Layout:
    """The same function of an index with as few modes as possible; flat."""
    leaves: list[tuple[int, int]] = []
    for size, stride in layout.leaves():
        if size == 1:
            continue
        if leaves and leaves[-1][0] * leaves[-1][1] == stride:
            leaves[-1] = (leaves[-1][0] * size, leaves[-1][1])
        else:
            leaves.append((size, stride))
    return from_leaves(leaves)


def compose(outer: Layout, inner: Layout) -> Layout:
    """R with R(c) = outer(inner(c)), shaped as `inner` (leaves may unfold).

    Raises LayoutError where no layout is that function.
    """
    modes = coalesce(outer).leaves()
    composed = _compose(modes, inner)
    # Modes compose one by one unless sums of their offsets carry, which only overlapping ones do.
    if _overlap(inner) and any(composed(i) != outer(inner(i)) for i in range(inner.size)):
        raise LayoutError(f"{inner} overlaps itself in a way that {outer} cannot follow")
    return composed


def _overlap(layout: Layout) -> bool:
    """Whether a mode begins before the one below it ends."""
    end = 1
    for stride, count in sorted((stride, count) for count, stride in layout.leaves()):
        if stride and count > 1:
            if stride < end:
                return True
            end = stride * count
    return False


def _compose(modes: list[tuple[int, int]], inner: Layout) -> Layout:
    if isinstance(inner.shape, int) or isinstance(inner.stride, int):
        assert isinstance(inner.shape, int) and isinstance(inner.stride, int)
        return _compose_leaf(modes, inner.shape, inner.stride)
    return concatenate(*(_compose(modes, mode) for mode in inner))


def _compose_leaf(modes: list[tuple[int, int]], count: int, step: int) -> Layout:
    """Every `step`-th element of the flat layout `modes`, `count` of them."""
    if step == 0 or count == 1:
        return Layout(count, 0)
    leaves: list[tuple[int, int]] = []
    for size, stride in modes[:-1]:
        if step % size == 0:
            step //= size
            continue
        if size % step:
            raise LayoutError(f"a step of {step} does not divide a mode of {size}")
        taken = min(size // step, count)
        if count % taken:
            raise LayoutError(f"{count} elements do not divide into rows of {taken}")
        leaves.append((taken, step * stride))
        count //= taken
        step = 1
        if count == 1:
            return from_leaves(leaves)
    leaves.append((count, step * modes[-1][1]))
    return from_leaves(leaves)


def complement(layout: Layout, size: int) -> Layout:
    """What `layout` does not reach below `size`: the two together are a bijection.

    With layout.cosize dividing `size`, (layout, complement) is one onto 0 .. size - 1. Raises
    LayoutError where the offsets of `layout` overlap or interleave.
    """
    leaves: list[tuple[int, int]] = []
    covered = 1
    for stride, count in sorted((stride, count) for count, stride in layout.leaves()):
        if count == 1 or stride == 0:
            continue
        if stride % covered:
            raise LayoutError(f"{layout} has no complement: modes overlap")
        leaves.append((stride // covered, covered))
        covered = stride * count
    leaves.append((-(-size // covered), covered))
    return coalesce(from_leaves(leaves))


def right_inverse(layout: Layout) -> Layout:
    """The longest R with layout(R(i)) = i."""
    starts, modes = 1, []
    for size, stride in layout.leaves():
        modes.append((stride, size, starts))
        starts *= size
    leaves: list[tuple[int, int]] = []
    reached = 1
    for stride, size, start in sorted(modes):
        if size == 1:
            continue
        if stride != reached:
            if stride > reached:
                break
            continue
        leaves.append((size, start))
        reached *= size
    return coalesce(from_leaves(leaves))


def left_inverse(layout: Layout) -> Layout:
    """L with L(layout(i)) = i, for an injective layout."""
    return right_inverse(concatenate(layout, complement(layout, layout.cosize)))


def logical_divide(layout: Layout, tiler: Tiler) -> Layout:
    """(tile, rest) of the whole layout; with a sequence of tilers, of each of its modes.

    A number tiles by that many consecutive elements; a layout picks the elements of a tile.
    """
    if isinstance(tiler, Sequence):
        return concatenate(
            *(logical_divide(layout[i], part) for i, part in enumerate(tiler)),
            *(layout[i] for i in range(len(tiler), layout.rank)),
        )
    tile = Layout(tiler, 1) if isinstance(tiler, int) else tiler
    return compose(layout, concatenate(tile, complement(tile, layout.size)))


def zipped_divide(layout: Layout, tiler: Sequence[Tiler]) -> Layout:
    """((tile of each mode), (rest of each mode)): coordinates inside of a tile, then of tiles."""
    divided = list(logical_divide(layout, tiler))
    parts, rest = divided[: len(tiler)], divided[len(tiler) :]
    return concatenate(
        concatenate(*(part[0] for part in parts)), concatenate(*(part[1] for part in parts), *rest)
    )


def tiled_divide(layout: Layout, tiler: Sequence[Tiler]) -> Layout:
    """As `zipped_divide`, with the modes of the rest at the top level."""
    zipped = zipped_divide(layout, tiler)
    return concatenate(zipped[0], *zipped[1])


def logical_product(layout: Layout, tiler: Layout) -> Layout:
    """(layout, copies): `layout` repeated in the order of `tiler`, without overlap."""
    copies = compose(complement(layout, layout.size * tiler.cosize), tiler)
    return concatenate(layout, copies)
