"""Convolutions in bf16, planes and products, against sums of products in numpy."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.bf16.planes import pair_planes_kernel
from abqc.codegen.cpu.float_products.direct_conv import OUTPUTS
from abqc.codegen.isa import Isa
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.bf16 import bf16_bits
from abqc.dialects.bf16_conv_spec import SLACK, Bf16ConvSpec
from abqc.dialects.epilogue import Epilogue
from kernel_cases import Kernels, compile_jit
from test_kernels_direct_conv import EPILOGUE, convolved, planes_of

Pads = tuple[int, int, int, int]
ISAS = (*isas.available(), *(isa for isa in isas.extending() if isa.adds == "bf16"))
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)

# The specification, batch, height and width, zeros around: begins, then ends.
CASES: list[tuple[Bf16ConvSpec, tuple[int, int, int], Pads]] = [
    (Bf16ConvSpec(1, 13, 5, (3, 2), (1, 1), (1, 1)), (2, 19, 33), (1, 2, 0, 1)),
    (Bf16ConvSpec(1, 20, 8, (1, 1), (1, 1), (1, 1)), (1, 1, OUTPUTS + 5), (0, 0, 0, 0)),
    (Bf16ConvSpec(3, 4, 2, (2, 2), (2, 3), (2, 1)), (1, 12, 9), (1, 1, 1, 1)),
]
# Whole steps of 16 pairs, without and with pairs behind them.
TILE_CASES: list[tuple[Bf16ConvSpec, tuple[int, int, int], Pads]] = [
    (Bf16ConvSpec(1, 12, 1090, (1, 1), (1, 1), (1, 1)), (1, 3, 31), (0, 0, 0, 0)),
    (Bf16ConvSpec(2, 4, 64, (3, 2), (1, 2), (1, 1)), (2, 6, 15), (0, 1, 0, 1)),
]


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@cache
def jit(isa: Isa, spec: Bf16ConvSpec, epilogue: Epilogue | None = None) -> Kernels:
    conv = CpuTarget().direct_conv(spec, epilogue)
    assert conv is not None
    return compile_jit(isa, [conv, pair_planes_kernel(spec.strides, spec.phases)])


def pair_planes(isa: Isa, spec: Bf16ConvSpec, x: np.ndarray, pads: Pads) -> np.ndarray:
    """What the kernel makes of images: [B, groups, pairs, phases, rows, pitch], pairs as i32."""
    rows, pitch = planes_of(x, spec, pads).shape[3:]
    count = len(x) * spec.groups * spec.pairs
    shape = (len(x), spec.groups, spec.pairs, np.prod(spec.phases), rows, pitch)
    y = np.full(np.prod(shape) + 16, 77, np.int32)
    kernel = pair_planes_kernel(spec.strides, spec.phases)
    sizes = (*x.shape[2:], rows, pitch, *pads[:2])
    arguments = [x.reshape(-1), y[:-16], spec.channels, *sizes]
    jit(isa, spec).run(kernel.name, kernel.grid(count, rows), arguments)
    assert (y[-16:] == 77).all()
    return y[:-16].reshape(shape)


def run(
    isa: Isa,
    spec: Bf16ConvSpec,
    planes: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    shape: tuple[int, ...],
    epilogue: Epilogue | None = None,
    inputs: list[np.ndarray] | None = None,
) -> np.ndarray:
    """y of `shape`, after checking that nothing behind it was written."""
    kernel = CpuTarget().direct_conv(spec, epilogue)
    assert kernel is not None
    (batch, _, height, width), (rows, pitch) = shape, planes.shape[-2:]
    y = np.full(np.prod(shape) + 16, np.nan, np.float32)
    counts = spec.groups, spec.outputs, spec.pairs
    jit(isa, spec, epilogue).run(
        kernel.name,
        kernel.grid(batch, (height - 1) * pitch + width, spec.blocks),
        [
            *(np.pad(planes.reshape(-1), (0, SLACK)), spec.pack_weight(w), bias),
            *(each.reshape(-1) for each in inputs or []),
            *(y[:-16], *counts, pitch, rows * pitch, height, width, batch * height * width),
        ],
    )
    assert np.isnan(y[-16:]).all()
    return y[:-16].reshape(shape)


@pytest.mark.parametrize(
    ("isa", "spec", "size", "pads"),
    [
        *((isa, *case) for isa in ISAS for case in CASES),
        *((isa, *case) for isa in isas.tiled() for case in TILE_CASES),
    ],
    ids=lambda value: value.name if isinstance(value, Isa) else str(value),
)
def test_agrees(isa: Isa, spec: Bf16ConvSpec, size: tuple[int, int, int], pads: Pads) -> None:
    """Within the bound of docs/numerics.md."""
    rng = np.random.default_rng(0)
    batch, *image = size
    n = spec.groups * spec.outputs
    x = rng.standard_normal((batch, spec.groups * spec.channels, *image), np.float32)
    w = rng.standard_normal((n, spec.channels, *spec.window), np.float32)
    bias = rng.standard_normal(n, np.float32)
    expected = convolved(rounded(x), rounded(w), spec, pads) + bias[:, None, None]
    terms = convolved(abs(rounded(x)), abs(rounded(w)), spec, pads) + abs(bias)[:, None, None]
    k = spec.channels * spec.window[0] * spec.window[1]
    y = run(isa, spec, pair_planes(isa, spec, x, pads), w, bias, expected.shape)
    assert (np.abs(y - expected) <= (k + 2) * 2.0**-24 * terms).all()


@each_isa
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3), (4, 1)], ids=str)
def test_planes_are_rounded_pairs(isa: Isa, strides: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    spec = Bf16ConvSpec(2, 1, 3, (1, 1), strides, (1, 1))
    for batch, height, width, pads in (
        (1, 1, 1, (0, 0, 0, 0)),
        (2, 35, 77, (1, 2, 0, 3)),
        (1, 3, 160, (9, 40, 2, 0)),
    ):
        x = rng.standard_normal((batch, 6, height, width), np.float32)
        x[0, 0, 0, 0], x[-1, -1, -1, -1] = np.inf, 1 + 2**-8  # a tie
        split = planes_of(x, spec, pads)  # [B, C, phases, rows, pitch]
        bits = bf16_bits(split).astype(np.uint32).reshape(batch, 2, 3, *split.shape[2:])
        bits = np.pad(bits, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0)])
        expected = (bits[:, :, 0::2] | bits[:, :, 1::2] << 16).view(np.int32)
        np.testing.assert_array_equal(pair_planes(isa, spec, x, pads), expected)


def test_an_epilogue_and_what_is_not_finite() -> None:
    isa = ISAS[-1]
    rng = np.random.default_rng(2)
    spec, pads = Bf16ConvSpec(1, 9, 3, (2, 2), (1, 1), (1, 1)), (0, 0, 0, 0)
    x = rng.standard_normal((2, 3, 5, 30), np.float32)
    w, bias = rng.standard_normal((9, 3, 2, 2), np.float32), np.zeros(9, np.float32)
    shape = (2, 9, 4, 29)
    shapes = (shape, (2, 9, 1, 1), (9, 1, 1), (2, 1, 1, 1), (1,))
    inputs = [rng.uniform(-1, 1, each).astype(np.float32) for each in shapes]
    e, s, c, b, one = inputs
    planes = pair_planes(isa, spec, x, pads)
    expected = convolved(rounded(x), rounded(w), spec, pads)
    expected = np.minimum(np.tanh(expected + e) * s + c * b, 0.5) - one
    y = run(isa, spec, planes, w, bias, shape, EPILOGUE, inputs)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    x[1, 2, 0, 0], x[1, 2, 4, 29] = np.nan, np.inf
    y = run(isa, spec, pair_planes(isa, spec, x, pads), w, bias, shape)
    finite = np.ones(shape, bool)
    finite[1, :, 0, 0] = finite[1, :, 3, 28] = False
    assert (np.isfinite(y) == finite).all()
