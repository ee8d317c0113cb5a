"""GPU kernels that quantize and pack activations, in the PTX machine, against numpy to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A, GpuArch
from abqc.codegen.gpu.assembly.compile import assemble, compile_ptx
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.packing.layout import FloatRows, Int8Rows
from abqc.codegen.gpu.packing.measure import measure_kernel
from abqc.codegen.gpu.packing.pack import fused_pack_kernel, pack_kernel, scaled_pack_kernel
from abqc.codegen.gpu.packing.row import RowLayout
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects import formats, hadamard
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import ir
from abqc.runtime.ptx import run_kernel

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
ACTIVATIONS = [
    *(f"a{bits}" for bits in range(1, 9)),
    *(f"a{bits}:token:sym" for bits in range(1, 9)),
]


def compiled(kernel: Kernel, arch: GpuArch = SM_80):
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, arch)
        return compile_ptx(module, arch)


def run(kernel: Kernel, grid: int, arguments: list, arch: GpuArch = SM_80) -> list[np.ndarray]:
    """The array arguments after the launch."""
    ptx = compiled(kernel, arch)
    shape = ptx.kernels[kernel.name]
    return run_kernel(
        ptx.text, kernel.name, grid, shape.threads, arguments, shared_bytes=shape.shared
    )


def spec_of(weight: str, activation: str | None, k: int, block: int = 0) -> MatmulSpec:
    scheme = parse_scheme(activation) if activation else None
    return MatmulSpec(16, k, parse_scheme(weight), scheme, hadamard_block=block)


def rows(m: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, k), np.float32) + np.float32(0.3)
    x[m // 2] = 0
    return x


def packed(spec: MatmulSpec, layout: RowLayout, x: np.ndarray) -> np.ndarray:
    m = len(x)
    kernel = pack_kernel(spec, layout)
    q = np.full(m * layout.row_bytes, 0x55, np.uint8)
    return run(kernel, kernel.grid(m), [x, q, m])[1].reshape(m, -1)


def check(layout: Int8Rows | PlaneRows, spec: MatmulSpec, m: int, seed: int = 0) -> None:
    x = rows(m, spec.k, seed)
    got = packed(spec, layout, x)
    assert spec.activation is not None
    codes, scale, zero = formats.quantize_activation(x, spec.activation)
    expected = layout.pack_reference(codes, scale, zero)
    if spec.activation.format.kind == "binary":  # its scale is a mean, in any order
        at = slice(layout.scale_offset, layout.scale_offset + 4)
        ours = np.ascontiguousarray(got[:, at]).view(np.float32)[:, 0]
        np.testing.assert_allclose(ours, scale, rtol=1e-5)
        expected[:, at] = got[:, at]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_format_packs_bytes_and_planes(activation: str) -> None:
    spec = spec_of("w4:g64:asym", activation, 200)
    check(Int8Rows.of(spec), spec, 3)
    check(PlaneRows.of(spec), spec, 3)


@pytest.mark.parametrize("activation", ["a8", "a3", "a8:token:sym", "a4:token:sym:c37"])
def test_divisions_are_exact_at_every_magnitude(activation: str) -> None:
    """Codes near the middle between two, of rows from subnormal numbers to the end of the range."""
    rng = np.random.default_rng(3)
    exponents = np.linspace(-149, 126, 56).astype(int)[:, None]
    x = np.ldexp(rng.integers(-255, 256, (56, 128)) * np.float32(0.5), exponents - 7)
    x = x * np.where(rng.integers(0, 2, x.shape) == 1, 1, 1 + rng.integers(-3, 4, x.shape) * 2**-23)
    x = x.astype(np.float32)
    spec = spec_of("w4:g64:asym", activation, 128)
    layout = Int8Rows.of(spec)
    codes, scale, zero = formats.quantize_activation(x, spec.activation)
    np.testing.assert_array_equal(
        packed(spec, layout, x), layout.pack_reference(codes, scale, zero)
    )


SHAPES = [
    ("w8:channel:asym", 1),
    ("w8:channel:asym", 129),
    ("w8:channel:asym", 1024),
    ("w4:g128:asym", 1280),
    ("w4:g32:asym", 640),
    ("w4:g33:asym", 150),
    ("w4:g16:asym", 100),
    ("w4:g300:asym", 1000),
    ("w4:g96:asym", 1920),
    ("w4:g128", 512),
    ("w1:g20", 90),
]


@pytest.mark.parametrize(("weight", "k"), SHAPES)
def test_ragged_rows_and_groups(weight: str, k: int) -> None:
    spec = spec_of(weight, "a5", k)
    check(Int8Rows.of(spec), spec, 5, k)
    check(PlaneRows.of(spec), spec, 5, k)


def test_rows_longer_than_registers_are_read_again() -> None:
    spec = spec_of("w4:g128:asym", "a8", 33000)
    check(Int8Rows.of(spec), spec, 1)


@pytest.mark.parametrize("activation", ["a8", "a4:token:sym", "a4:c80", "a1", "a1:token:sym"])
def test_broken_rows_get_a_scale_of_nan(activation: str) -> None:
    spec = spec_of("w4:g64:asym", activation, 130)
    layout = PlaneRows.of(spec)
    x = rows(5, spec.k)
    x[0, 129], x[1, 3], x[3, 0] = np.nan, np.inf, -np.inf
    got = packed(spec, layout, x)
    at = slice(layout.scale_offset, layout.scale_offset + 4)
    scale = np.ascontiguousarray(got[:, at]).view(np.float32)[:, 0]
    np.testing.assert_array_equal(np.isnan(scale), [True, True, False, True, False])
    whole = packed(spec, layout, x[[2, 4]])
    np.testing.assert_array_equal(got[[2, 4]], whole)


@pytest.mark.parametrize("element", ["f16", "bf16"])
@pytest.mark.parametrize(("weight", "k"), [("w4:g128", 256), ("w4:g33", 70), ("w8:channel", 37)])
def test_float_rows(element, weight: str, k: int) -> None:
    spec = spec_of(weight, None, k)
    layout = FloatRows.of(spec, element)
    x = rows(3, k)
    x[0, :3] = 7e4, -1e-7, 65519.0
    np.testing.assert_array_equal(packed(spec, layout, x), layout.pack_reference(x))


@pytest.mark.parametrize("activation", ["a8:image", "a4:image:sym:c70", "a1:image", "a1:image:sym"])
def test_measured_scales(activation: str) -> None:
    images, image_rows, k = 3, 4, 70
    spec = spec_of("w4:g32:asym", activation, k)
    x = rows(images * image_rows, k)
    x[:image_rows] *= 3
    x[-1, 7] = np.nan
    scheme = spec.activation
    assert scheme is not None
    measure = measure_kernel(scheme.format)
    scale, zero = np.zeros(images, np.float32), np.zeros(images, np.int32)
    _, scale, zero = run(measure, images, [x, scale, zero, image_rows * k])[:3]
    codes, scales, zeros = formats.quantize_activation(x, scheme, image_rows=image_rows)
    np.testing.assert_allclose(np.repeat(scale, image_rows), scales, rtol=1e-6)
    np.testing.assert_array_equal(np.repeat(zero, image_rows), zeros)
    layout = Int8Rows.of(spec)
    kernel = scaled_pack_kernel(spec, layout)
    q = np.zeros(len(x) * layout.row_bytes, np.uint8)
    got = run(kernel, kernel.grid(len(x)), [x, scale, zero, q, len(x), image_rows])[3]
    expected = layout.pack_reference(codes, np.repeat(scale, image_rows), zeros)
    whole = slice(0, (images - 1) * image_rows)
    np.testing.assert_array_equal(got.reshape(len(x), -1)[whole], expected[whole])


@pytest.mark.parametrize("layout", [Int8Rows.of, PlaneRows.of])
def test_measured_scales_are_those_of_rotated_rows(layout) -> None:
    """Whole numbers in blocks of 16, whose transform is exact."""
    rotated, plain = (spec_of("w8:channel", "a4:tensor", 48, block) for block in (16, 0))
    x = np.random.default_rng(0).integers(-9, 10, (3, 48)).astype(np.float32)
    packed = []
    for spec, values in ((rotated, x), (plain, hadamard.transform(x, 16))):
        kernel, row_bytes = scaled_pack_kernel(spec, layout(spec)), layout(spec).row_bytes
        q = np.zeros(3 * row_bytes, np.uint8)
        scale, zero = np.array([1.7], np.float32), np.array([7], np.int32)
        packed.append(run(kernel, kernel.grid(3), [values, scale, zero, q, 3, 3])[3])
    np.testing.assert_array_equal(*packed)


PROLOGUE = Epilogue(
    """module { func.func @f(%x: f32, %y: f32, %c: f32) -> f32 {
      %one = arith.constant 1.0 : f32
      %a = arith.addf %x, %one : f32
      %b = arith.mulf %a, %y : f32
      %z = arith.addf %b, %c : f32
      func.return %z : f32
    } }""",
    ("element", "channel"),
)


@pytest.mark.parametrize(
    ("weight", "activation", "k", "block"),
    [
        ("w4:g64:asym", "a8", 200, 0),
        ("w4:g33:asym", "a5", 150, 0),
        ("w8:channel", "a4:token:sym", 48, 16),
        ("w4:g128:asym", "a8", 33000, 0),
        ("w4:g128", None, 70, 0),
    ],
)
def test_rows_that_are_made_first(weight: str, activation: str | None, k: int, block: int) -> None:
    """Of elements and channels; what is 1 of zeros is not packed behind a row's end."""
    spec = spec_of(weight, activation, k, block)
    layout = Int8Rows.of(spec) if activation else FloatRows.of(spec, "f16")
    m = 1 if k > 32768 else 3
    x, y, channels = rows(m, k), rows(m, k, 1), rows(1, k, 2)[0] + np.float32(1)
    kernel = fused_pack_kernel(pack_kernel(spec, layout), PROLOGUE)
    q = np.full(m * layout.row_bytes, 0x55, np.uint8)
    got = run(kernel, kernel.grid(m), [x, y, channels, q, m])[3].reshape(m, -1)
    made = (x + np.float32(1)) * y + channels
    np.testing.assert_array_equal(got, packed(spec, layout, made))


@needs_ptxas
@pytest.mark.parametrize("k", [4096, 11008, 32768])
def test_no_spills(k: int) -> None:
    for weight in ("w4:g128:asym", "w8:channel"):
        spec = spec_of(weight, "a8", k)
        for layout in (Int8Rows.of(spec), PlaneRows.of(spec)):
            kernel = pack_kernel(spec, layout)
            for arch in (SM_80, SM_90A):
                used = assemble(compiled(kernel, arch).text, arch).resources[kernel.name]
                assert used.spill_stores == 0 and used.stack == 0, (weight, k, used)
