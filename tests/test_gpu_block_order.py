"""The order of blocks: every place once, groups of rows column by column."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.matmul.block_order import group_rows, index_of, place


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 4), (5, 8), (16, 3), (33, 20)])
@pytest.mark.parametrize("group", [1, 2, 4, 11, 40])
def test_every_place_once(shape, group):
    index = np.arange(shape[0] * shape[1])
    row, column = place(index, *shape, group)
    assert (row < shape[0]).all() and (column < shape[1]).all()
    np.testing.assert_array_equal(np.sort(row * shape[1] + column), index)
    np.testing.assert_array_equal(index_of(row, column, *shape, group), index)


def test_the_picture_of_the_docstring():
    picture = index_of(np.arange(3)[:, None], np.arange(4)[None, :], 3, 4, 2)
    assert picture.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 9, 10, 11]]


def test_groups_of_one_row_are_rows():
    index = np.arange(15)
    row, column = place(index, 3, 5, 1)
    np.testing.assert_array_equal(index, row * 5 + column)


def test_patches_are_square_in_bytes():
    """Blocks of as many bits of rows as of columns: 16 x 16 of 256."""
    assert group_rows(1024, 1024) == 16
    assert group_rows(128 * 16, 128 * 4) == 8
    assert group_rows(1 << 20, 1) == 1
