"""Selective scans on the CPU, in every instruction set, against numpy in f64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.selective_scan import selective_scan_kernel
from abqc.codegen.isa import Isa
from kernel_cases import compile_jit
from selective_scans import SHAPES, assert_close, random_scan

FLAGS = list(itertools.product([False, True], repeat=3))
GUARD = 16  # elements behind a result, which stay as they are


@pytest.mark.parametrize("isa", isas.available(), ids=lambda isa: isa.name)
def test_against_numpy(isa: Isa) -> None:
    scans = [
        random_scan(shape, softplus=softplus, initial=initial, codes=codes)
        for number, shape in enumerate(SHAPES)
        for softplus, initial, codes in (FLAGS[number % 8], FLAGS[(number + 3) % 8])
    ]
    kernels = {scan.spec: selective_scan_kernel(scan.spec) for scan in scans}
    jit = compile_jit(isa, list(kernels.values()))
    for scan in scans:
        batch, steps, channels, _ = scan.shape
        kernel = kernels[scan.spec]
        y = np.full(scan.y.size + GUARD, 7, np.float32)
        state = np.full(scan.state.size + GUARD, 7, np.float32)
        results = [y[: scan.y.size], state[: scan.state.size]]
        arguments = [*scan.arguments, *results, steps, channels]
        jit.run(kernel.name, batch * kernel.grid(channels), arguments)
        assert_close(results[0], scan.y)
        assert_close(results[1], scan.state)
        assert (y[scan.y.size :] == 7).all() and (state[scan.state.size :] == 7).all()


def test_a_step_that_is_no_number_makes_the_rest_of_its_channel_none() -> None:
    scan = random_scan((1, 4, 18, 5), softplus=True, initial=False, codes=False)
    scan.arguments[1][18 + 3] = np.nan  # step 1 of channel 3
    kernel = selective_scan_kernel(scan.spec)
    y, state = np.zeros(scan.y.size, np.float32), np.zeros(scan.state.size, np.float32)
    jit = compile_jit(isas.available()[0], [kernel])
    jit.run(kernel.name, kernel.grid(18), [*scan.arguments, y, state, 4, 18])
    expected = np.zeros((4, 18), bool)
    expected[1:, 3] = True
    np.testing.assert_array_equal(np.isnan(y.reshape(4, 18)), expected)
