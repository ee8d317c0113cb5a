"""Rows that CPU kernels quantize, against numpy: codes are those of a division."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.packing.activations import measure_kernel
from abqc.codegen.cpu.packing.measure_pieces import piece_kernels
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats
from abqc.dialects.formats import parse_scheme
from kernel_cases import ISAS, compile_jit

STRATEGY = Int8Strategy()


def spec_of(activation: str, k: int) -> MatmulSpec:
    return MatmulSpec(16, k, parse_scheme("w8"), parse_scheme(activation))


def check(spec: MatmulSpec, q: np.ndarray, u: np.ndarray, scale: np.ndarray) -> None:
    """Packed rows against codes, their sums and scales."""
    layout = STRATEGY.row_layout(spec)
    at = layout.codes_offset
    np.testing.assert_array_equal(q[:, at : at + spec.k], u)
    for offset, type_, expected in (
        (layout.scale_offset, np.float32, scale),
        (layout.sums_offset, np.int32, u.sum(axis=1)),
    ):
        found = np.ascontiguousarray(q[:, offset : offset + 4]).view(type_)[:, 0]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("activation", ["a8", "a8:token:sym", "a4:token:sym:c37"])
def test_codes_are_quotients_at_every_magnitude(isa: Isa, activation: str) -> None:
    """Values beside the middle between two codes, in rows from subnormal numbers to the largest."""
    rng = np.random.default_rng(3)
    exponents = np.linspace(-149, 126, 56).astype(int)[:, None]
    x = np.ldexp(rng.integers(-255, 256, (56, 150)) * np.float32(0.5), exponents - 7)
    near = 1 + rng.integers(-3, 4, x.shape) * 2**-23
    x = (x * np.where(rng.integers(0, 2, x.shape) == 1, 1, near)).astype(np.float32)
    x[1::2, 0] *= 1.37  # scales that are no powers of two
    spec = spec_of(activation, 150)
    assert spec.activation is not None
    kernel = STRATEGY.pack_kernel(spec)
    q = np.zeros((len(x), STRATEGY.row_bytes(spec)), np.uint8)
    compile_jit(isa, [kernel]).run(
        kernel.name, kernel.grid(len(x)), [x.reshape(-1), q.reshape(-1), len(x)]
    )
    codes, scale, _ = formats.quantize_activation(x, spec.activation)
    check(spec, q, codes.astype(np.int32) - spec.activation.format.qmin, scale)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_values_far_beyond_a_given_scale_are_clamped(isa: Isa) -> None:
    values = np.array([0, 1e-40, 1, 3e4, 4.2e6, 1e20, 3e38, np.inf], np.float32)
    x = np.tile(np.concatenate([values, -values]), (6, 10))
    scale = np.array([1e-40, 1e-20, 0.03, 1.7, 1e10, 2e37], np.float32)
    zero = np.full(6, 7, np.int32)
    spec = spec_of("a8", x.shape[1])
    kernel = STRATEGY.scaled_pack_kernel(spec)
    q = np.zeros((len(x), STRATEGY.row_bytes(spec)), np.uint8)
    compile_jit(isa, [kernel]).run(
        kernel.name, kernel.grid(len(x)), [x.reshape(-1), scale, zero, q.reshape(-1), len(x), 1]
    )
    with np.errstate(over="ignore"):
        steps = np.clip(np.rint(x / scale[:, None]), -1000, 1000)
    check(spec, q, np.clip(steps + 7, 0, 255).astype(np.int32), scale)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("activation", ["a8", "a8:token:sym", "a4:c80", "a1:token:sym"])
def test_large_samples_are_measured_in_pieces(isa: Isa, activation: str) -> None:
    """As by the kernel that measures them at once; one of three has a value that is not finite."""
    format = parse_scheme(activation).format
    pieces, whole = piece_kernels(format), measure_kernel(format)
    count = 2 * pieces.piece + 77
    x = np.random.default_rng(5).standard_normal((3, count), np.float32)
    x[0, -1], x[1, pieces.piece - 1], x[2, 3] = 7, -9, np.inf
    jit = compile_jit(isa, [pieces.ranges, pieces.scales, whole])
    ranges = np.zeros(3 * 3 * pieces.width, np.float32)
    found, expected = ((np.zeros(3, np.float32), np.zeros(3, np.int32)) for _ in range(2))
    jit.run(pieces.ranges.name, 9, [x.reshape(-1), ranges, count])
    jit.run(pieces.scales.name, 3, [ranges, *found, count, 3])
    jit.run(whole.name, 3, [x.reshape(-1), *expected, count])
    assert np.isnan(found[0][2])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6 if format.kind == "binary" else 0)
    np.testing.assert_array_equal(found[1][:2], expected[1][:2])
    jit.run(pieces.scales.name, 1, [ranges[-pieces.width :], *found, 0, 0])  # of other samples
    jit.run(whole.name, 1, [x.reshape(-1), *expected, 0])
    np.testing.assert_array_equal(found[0][0], expected[0][0])
