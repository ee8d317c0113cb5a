"""The layout algebra against tables of offsets."""

from __future__ import annotations

import pytest
from abqc.codegen.layout import (
    Layout,
    LayoutError,
    Swizzle,
    Swizzled,
    coalesce,
    complement,
    compose,
    concatenate,
    left_inverse,
    logical_divide,
    logical_product,
    right_inverse,
    tiled_divide,
    zipped_divide,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

SIZES = st.sampled_from([1, 2, 3, 4, 6, 8])


@st.composite
def nested(draw, depth=2):
    if depth == 0 or draw(st.booleans()):
        return draw(SIZES)
    return tuple(draw(st.lists(nested(depth - 1), min_size=1, max_size=3)))


@st.composite
def layouts(draw):
    """Any nesting, any strides."""
    shape = draw(nested())

    def strides(part):
        if isinstance(part, int):
            return draw(st.integers(0, 40))
        return tuple(strides(p) for p in part)

    return Layout(shape, strides(shape))


@st.composite
def bijections(draw):
    """Flat dense layouts with their modes in any order."""
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    order = draw(st.permutations(range(len(sizes))))
    strides, reached = [0] * len(sizes), 1
    for mode in order:
        strides[mode] = reached
        reached *= sizes[mode]
    return Layout(tuple(sizes), tuple(strides))


def test_numbers_unfold_leftmost_first():
    layout = Layout((4, (2, 3)), (2, (1, 8)))
    assert layout(3, (1, 2)) == 3 * 2 + 1 + 16
    assert layout(3, 5) == layout(3, (1, 2))
    assert layout(3 + 4 * 5) == layout(3, 5)
    assert str(layout) == "(4,(2,3)):(2,(1,8))"
    assert Layout.rows(3, 5)(2, 4) == 14
    assert (layout.size, layout.cosize) == (24, 3 * 2 + 1 + 16 + 1)
    assert str(layout[1]) == "(2,3):(1,8)"


def test_bad_layouts_are_refused():
    with pytest.raises(LayoutError, match="nested"):
        Layout((2, 3), (1, (2, 3)))
    with pytest.raises(LayoutError, match="empty"):
        Layout((2, 0))
    with pytest.raises(LayoutError, match="deeper"):
        Layout((2, 2))((1, (0, 1)))


@settings(deadline=None)
@given(layouts())
def test_coalescing_keeps_the_function(layout):
    flat = coalesce(layout)
    assert flat.offsets() == layout.offsets()
    assert len(flat.leaves()) <= len(layout.leaves())


def test_modes_whose_sums_carry_do_not_compose():
    with pytest.raises(LayoutError, match="overlaps"):
        compose(Layout((2, 2), (0, 1)), Layout((2, 2), (1, 1)))


@settings(deadline=None)
@given(layouts(), layouts())
def test_composition(outer, inner):
    assume(inner.cosize <= outer.size)
    try:
        composed = compose(outer, inner)
    except LayoutError:
        return
    assert composed.offsets() == [outer(inner(i)) for i in range(inner.size)]
    assert composed.size == inner.size


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8]))
def test_slices_of_powers_of_two_compose(rank, step, count):
    outer = Layout((8,) * rank)
    assume(step * count <= outer.size)
    assert compose(outer, Layout(count, step)).offsets() == [step * i for i in range(count)]


@settings(deadline=None)
@given(layouts(), st.integers(1, 200))
def test_complement(layout, size):
    try:
        rest = complement(layout, size)
    except LayoutError:
        return
    offsets = concatenate(layout, rest).offsets()
    distinct = set(layout.offsets())
    assert len(set(offsets)) == len(distinct) * rest.size
    if size % layout.cosize == 0:
        assert set(range(size)) <= set(offsets)


@settings(deadline=None)
@given(bijections())
def test_inverses_of_bijections(layout):
    right, left = right_inverse(layout), left_inverse(layout)
    assert right.size == layout.size
    assert [layout(right(i)) for i in range(layout.size)] == list(range(layout.size))
    assert [left(layout(i)) for i in range(layout.size)] == list(range(layout.size))


@settings(deadline=None)
@given(layouts())
def test_right_inverse(layout):
    right = right_inverse(layout)
    assert [layout(right(i)) for i in range(right.size)] == list(range(right.size))


@settings(deadline=None)
@given(layouts())
def test_left_inverse(layout):
    assume(len(set(layout.offsets())) == layout.size)
    try:
        left = left_inverse(layout)
    except LayoutError:
        return
    assert [left(layout(i)) for i in range(layout.size)] == list(range(layout.size))


@settings(deadline=None)
@given(bijections(), st.sampled_from([1, 2, 3, 4, 8]))
def test_division_cuts_into_tiles(layout, tile):
    assume(layout.size % tile == 0)
    try:
        divided = logical_divide(layout, tile)
    except LayoutError:
        return
    assert divided[0].size == tile
    offsets = [divided(i, t) for t in range(divided[1].size) for i in range(tile)]
    assert offsets == layout.offsets()


def test_zipped_and_tiled_division():
    """An 8 x 12 tile in blocks of 4 x 3."""
    layout = Layout.rows(8, 12)
    zipped = zipped_divide(layout, (4, 3))
    tiled = tiled_divide(layout, (4, 3))
    for i in range(4):
        for j in range(3):
            for bi in range(2):
                for bj in range(4):
                    offset = layout(bi * 4 + i, bj * 3 + j)
                    assert zipped((i, j), (bi, bj)) == offset
                    assert tiled((i, j), bi, bj) == offset


def test_division_by_a_layout():
    """Every other element is a tile."""
    divided = logical_divide(Layout(16), Layout(4, 2))
    assert [divided(i, 0) for i in range(4)] == [0, 2, 4, 6]
    assert sorted(divided.offsets()) == list(range(16))


@settings(deadline=None, max_examples=25)
@given(bijections(), bijections())
def test_product_repeats_without_overlap(layout, tiler):
    try:
        repeated = logical_product(layout, tiler)
    except LayoutError:
        return
    assert repeated[0].offsets() == layout.offsets()
    assert len(set(repeated.offsets())) == layout.size * tiler.size


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 4), st.integers(3, 5))
def test_swizzles_are_their_own_inverse(bits, base, shift):
    swizzle = Swizzle(bits, base, shift)
    image = [swizzle(x) for x in range(1 << 12)]
    assert sorted(image) == list(range(1 << 12))
    assert [swizzle(x) for x in image] == list(range(1 << 12))
    block = 1 << base
    assert all(image[x + 1] == image[x] + 1 for x in range(1 << 12) if (x + 1) % block)
    assert Swizzled(swizzle, Layout((4, 8)))(3, 1) == swizzle(7)


def test_swizzles_that_mix_bits_with_themselves_are_refused():
    with pytest.raises(ValueError, match="mix"):
        Swizzle(3, 4, 2)
