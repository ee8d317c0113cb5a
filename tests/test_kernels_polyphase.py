"""Planes of padded images against slices in numpy."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.polyphase import ROWS, polyphase_kernel
from abqc.codegen.isa import Isa
from kernel_cases import ISAS, Kernels, compile_jit

STRIDES = [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3), (4, 4), (16, 16), (1, 5)]
# All phases, or the first ones.
CASES = [*((each, each) for each in STRIDES), ((2, 2), (1, 1)), ((4, 3), (2, 1))]


@cache
def jit(isa: Isa, strides: tuple[int, int], phases: tuple[int, int]) -> Kernels:
    return compile_jit(isa, [polyphase_kernel(strides, phases)])


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("strides", "phases"), CASES, ids=str)
def test_agrees(isa: Isa, strides: tuple[int, int], phases: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    sizes = [(1, 1, 1), (3, 10, 10), (2, 2 * ROWS + 3, 77), (1, 5, 160), (5, 1, 33)]
    for (images, height, width), pads in product(
        sizes, [(0, 0, 0, 0), (1, 2, 0, 3), (9, 40, 2, 0)]
    ):
        x = rng.standard_normal((images, height, width), np.float32)
        expected = planes_of(x, strides, phases, pads)
        rows, pitch = expected.shape[2:]
        y = np.full(expected.size + 16, np.nan, np.float32)
        kernel = polyphase_kernel(strides, phases)
        arguments = [x.reshape(-1), y[:-16], height, width, rows, pitch, *pads[:2]]
        jit(isa, strides, phases).run(kernel.name, kernel.grid(images, rows), arguments)
        assert np.array_equal(y[:-16].reshape(expected.shape), expected)
        assert np.isnan(y[-16:]).all()


def planes_of(
    x: np.ndarray,
    strides: tuple[int, int],
    phases: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> np.ndarray:
    """[images, phases, rows, pitch], zeros behind the image up to whole numbers of strides."""
    padded = np.pad(x, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    rest = [-size % stride for size, stride in zip(padded.shape[1:], strides, strict=True)]
    padded = np.pad(padded, ((0, 0), (0, rest[0]), (0, rest[1])))
    sy, sx = strides
    return np.stack([padded[:, y::sy, x::sx] for y, x in product(*map(range, phases))], axis=1)
