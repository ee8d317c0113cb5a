"""Selective scans in the PTX machine, against numpy in f64."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.codegen.gpu.lines.selective_scan import lanes_of, selective_scan_kernel
from abqc.compiler.driver import compile_file
from abqc.dialects.reference_selective_scan import selective_scan
from abqc.dialects.scan_spec import ScanSpec
from gpu_kernels import output, run, take
from onnx_models import save
from selective_scan_models import CHANNELS, STATES, constants, scan
from selective_scans import SHAPES, assert_close, random_scan

CASES = [
    (SHAPES[0], False, True, False),
    (SHAPES[1], True, False, True),
    (SHAPES[2], True, True, False),
    (SHAPES[3], False, False, True),
    (SHAPES[4], True, True, True),
    (SHAPES[5], True, False, False),
    ((2, 2, 5, 40), False, False, False),
]


@pytest.mark.parametrize(("shape", "softplus", "initial", "codes"), CASES)
def test_against_numpy(
    shape: tuple[int, int, int, int], softplus: bool, initial: bool, codes: bool
) -> None:
    scan = random_scan(shape, softplus=softplus, initial=initial, codes=codes)
    batch, steps, channels, _ = shape
    kernel = selective_scan_kernel(scan.spec)
    results = [output(scan.y.size), output(scan.state.size)]
    arguments = [*scan.arguments, *results, steps, channels]
    after = run(kernel, batch * kernel.grid(channels), arguments)
    assert_close(take(after[-2]), scan.y)
    assert_close(take(after[-1]), scan.state)


@pytest.mark.parametrize(("states", "lanes"), [(1, 1), (8, 1), (9, 2), (16, 2), (40, 8), (900, 32)])
def test_threads_of_a_channel(states: int, lanes: int) -> None:
    assert lanes_of(ScanSpec(states, False, False, False)) == lanes


def test_a_model_with_a_scan(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {"h0": (2, CHANNELS, STATES), "deltas": (2, 3, CHANNELS), "xs": (2, 3, CHANNELS)}
    shapes |= dict.fromkeys(("bs", "cs"), (2, 3, STATES))
    feeds = {n: rng.uniform(0, 1, shape).astype(np.float32) for n, shape in shapes.items()}
    library = compile_file(save(scan(), tmp_path), target="sm_90a", output=tmp_path / "model.so")
    y, state = abqc.load(library, device="ptx-vm").run(feeds)
    h0, delta, x, b, c = (feeds[name].astype(np.float64) for name in shapes)
    expected = selective_scan(x, delta, constants()["A"], b, c, initial=h0)
    assert_close(y, expected[0])
    assert_close(state, expected[1])
