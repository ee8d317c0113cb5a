"""The largest of windows of images against windows in numpy."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from abqc.codegen.cpu.max_pool import COLUMNS, ROWS, max_pool_kernel
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from abqc.dialects.pool_spec import PoolSpec
from kernel_cases import ISAS, compile_jit

SPECS = [
    PoolSpec((3, 3), (2, 2), (1, 1)),
    PoolSpec((2, 3), (1, 1), (1, 2)),
    PoolSpec((5, 2), (3, 4), (2, 3)),
    PoolSpec((1, 3), (1, 3), (1, 1)),
]


@cache
def jit(isa: Isa, spec: PoolSpec) -> Jit:
    return compile_jit(isa, [max_pool_kernel(spec)])


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_agrees(isa: Isa, spec: PoolSpec) -> None:
    rng = np.random.default_rng(2)
    images = [(1, 9, 9), (3, 2 * ROWS + 15, 77), (1, 11, COLUMNS * 4 + 50)]
    for (count, height, width), pads in product(
        images, [(0, 0, 0, 0), (1, 2, 0, 3), (12, 9, 1, 0)]
    ):
        x = rng.standard_normal((count, height, width), np.float32)
        x[0, height // 2, width // 2] = np.nan
        expected = pooled(x, spec, pads)
        rows, columns = expected.shape[1:]
        y = np.full(expected.size + 16, 7, np.float32)
        kernel = max_pool_kernel(spec)
        arguments = [x.reshape(-1), y[:-16], height, width, rows, columns, *pads[:2]]
        jit(isa, spec).run(kernel.name, kernel.grid(count, rows), arguments)
        assert np.array_equal(y[:-16].reshape(expected.shape), expected, equal_nan=True)
        assert (y[-16:] == 7).all()


def pooled(x: np.ndarray, spec: PoolSpec, pads: tuple[int, int, int, int]) -> np.ndarray:
    """[images, rows, columns], the windows that lie in the image with -inf around it."""
    padded = np.pad(x, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=-np.inf)
    (ky, kx), (sy, sx), (dy, dx) = spec.window, spec.strides, spec.dilations
    reach = ((ky - 1) * dy + 1, (kx - 1) * dx + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    return windows[:, ::sy, ::sx, ::dy, ::dx].max(axis=(3, 4))
