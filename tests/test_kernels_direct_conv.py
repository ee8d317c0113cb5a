"""Convolutions over planes against sums of products in numpy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.direct_conv import OUTPUTS
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.conv_spec import ConvSpec
from abqc.dialects.epilogue import Epilogue
from kernel_cases import ISAS, Kernels, compile_jit

# The specification, batch, height and width, zeros around: begins, then ends.
CASES = [
    (ConvSpec(1, 13, 5, (3, 3), (1, 1), (1, 1)), (2, 19, 33), (1, 2, 0, 1)),
    (ConvSpec(1, 8, 3, (3, 3), (1, 1), (1, 1)), (1, 30, 80), (1, 1, 1, 1)),
    (ConvSpec(1, 20, 7, (1, 1), (1, 1), (1, 1)), (1, 1, OUTPUTS + 5), (0, 0, 0, 0)),
    (ConvSpec(2, 15, 7, (1, 1), (1, 1), (1, 1)), (2, 1, OUTPUTS + 50), (0, 0, 0, 0)),
    # A pixel beside a tile, and one where there is none.
    (ConvSpec(1, 9, 5, (1, 1), (1, 1), (1, 1)), (2, 1, 49), (0, 0, 0, 0)),
    (ConvSpec(1, 8, 6, (1, 1), (1, 1), (1, 1)), (1, 1, 33), (0, 0, 0, 0)),
    # A last tile of every width.
    *(
        (ConvSpec(1, outputs, 3, (1, 1), (1, 1), (1, 1)), (1, 1, 16 * k + 3), (0, 0, 0, 0))
        for outputs in (1, 9)
        for k in range(9)
    ),
    # More outputs than a grid index has, which no step of a tile divides.
    (ConvSpec(1, 4, 3, (3, 3), (1, 1), (1, 1)), (1, 31, 31), (0, 0, 0, 0)),
    (ConvSpec(2, 1, 1, (3, 3), (1, 1), (1, 1)), (1, 40, 31), (1, 1, 1, 1)),
    (ConvSpec(6, 1, 1, (5, 5), (2, 2), (1, 1)), (1, 9, 11), (2, 3, 2, 3)),
    *(
        (ConvSpec(2, n, 3, (2, 2), (1, 1), (1, 1)), (1, 9, 11), (1, 0, 0, 1))
        for n in (3, 5, 10, 12)
    ),
    (ConvSpec(3, 1, 1, (3, 2), (3, 2), (2, 3)), (1, 70, 80), (1, 0, 2, 1)),
    (ConvSpec(2, 1, 1, (9, 9), (1, 1), (1, 1)), (1, 21, 37), (4, 4, 4, 4)),
    # More channels than a vector has lanes, of narrow images that are several strips high.
    (ConvSpec(19, 1, 1, (3, 3), (1, 1), (1, 1)), (2, 37, 9), (1, 1, 1, 1)),
    (ConvSpec(33, 1, 1, (3, 5), (2, 3), (2, 1)), (1, 41, 40), (0, 2, 1, 1)),
    # More columns than fit a scratch.
    (ConvSpec(2, 1, 1, (1, 5), (1, 1), (1, 1)), (1, 1, 1100), (0, 2, 0, 2)),
    (ConvSpec(2, 1, 1, (3, 3), (7, 8), (16, 1)), (1, 70, 600), (2, 1, 1, 1)),
    (ConvSpec(3, 4, 2, (3, 3), (2, 1), (2, 1)), (1, 12, 9), (1, 1, 1, 1)),
    (ConvSpec(1, 9, 3, (3, 3), (2, 2), (1, 1)), (1, 21, 37), (1, 1, 1, 1)),
    # Windows that are smaller than strides read some phases alone.
    (ConvSpec(1, 9, 3, (1, 1), (2, 2), (1, 1)), (2, 21, 37), (0, 0, 0, 0)),
    (ConvSpec(2, 3, 3, (2, 2), (3, 4), (1, 1)), (1, 21, 37), (1, 0, 1, 1)),
    (ConvSpec(1, 3, 4, (1, 7), (1, 3), (1, 2)), (2, 2, 40), (0, 3, 0, 1)),
    # Few channels: several blocks of outputs, of which several pieces are one wide.
    (ConvSpec(1, 11, 1, (3, 5), (2, 2), (1, 1)), (2, 13, 700), (1, 2, 1, 2)),
    (ConvSpec(1, 4, 4, (5, 5), (4, 4), (2, 1)), (1, 30, 99), (0, 0, 0, 0)),
    # Rows that fill vectors, by which they are done.
    (ConvSpec(1, 9, 3, (7, 7), (2, 2), (1, 1)), (1, 11, 64), (3, 3, 3, 3)),
    # Winograd's algorithm: blocks of all widths, tiles and channels that fill nothing.
    (ConvSpec(1, 45, 33, (3, 3), (1, 1), (1, 1)), (2, 17, 35), (1, 1, 1, 1)),
    (ConvSpec(1, 150, 32, (3, 3), (1, 1), (1, 1)), (1, 8, 40), (0, 2, 1, 0)),
    (ConvSpec(1, 32, 257, (3, 3), (1, 1), (1, 1)), (3, 5, 6), (0, 0, 0, 0)),
    (ConvSpec(1, 13, 8, (3, 3), (1, 1), (1, 1)), (5, 3, 9), (1, 1, 1, 1)),
    # Images without columns.
    (ConvSpec(6, 1, 1, (5, 5), (2, 2), (1, 1)), (1, 9, 0), (2, 3, 2, 3)),
    (ConvSpec(1, 32, 16, (3, 3), (1, 1), (1, 1)), (1, 3, 0), (2, 2, 2, 2)),
]


# tanh(y + e) * s + c * b - one: inputs of all kinds.
EPILOGUE = Epilogue(
    """func.func @epilogue(%y: f32, %e: f32, %s: f32, %c: f32, %b: f32, %one: f32) -> f32 {
      %half = arith.constant 0.5 : f32
      %1 = arith.addf %y, %e : f32
      %2 = math.tanh %1 : f32
      %3 = arith.mulf %2, %s : f32
      %4 = arith.mulf %c, %b : f32
      %5 = arith.addf %3, %4 : f32
      %small = arith.cmpf olt, %5, %half : f32
      %6 = arith.select %small, %5, %half : f32
      %7 = arith.subf %6, %one : f32
      return %7 : f32
    }""",
    ("element", "sample channel", "channel", "sample", "one"),
)


# Without an epilogue depthwise kernels are the same but for its last step: one case of two.
WITH_EPILOGUES = [
    pytest.param(*case, epilogue, id=f"{case}-{'epilogue' if epilogue else 'alone'}")
    for number, case in enumerate(CASES)
    for epilogue in (None, EPILOGUE)
    if epilogue or not case[0].depthwise or number % 2
]


@cache
def jit(isa: Isa, spec: ConvSpec, epilogue: Epilogue | None = None) -> Kernels:
    return compile_jit(isa, [kernel_of(spec, epilogue)])


def kernel_of(spec: ConvSpec, epilogue: Epilogue | None) -> Kernel:
    kernel = CpuTarget().direct_conv(spec, epilogue)
    assert kernel is not None
    return kernel


def planes_of(x: np.ndarray, spec: ConvSpec, pads: tuple[int, int, int, int]) -> np.ndarray:
    """Images [B, C, H, W] as the kernel reads them: [B, C, phases, rows, pitch]."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    (sy, sx), size = spec.strides, padded.shape[2:]
    padded = np.pad(padded, ((0, 0), (0, 0), (0, -size[0] % sy), (0, -size[1] % sx)))
    phases = [padded[:, :, y::sy, x::sx] for y, x in product(*map(range, spec.phases))]
    return np.ascontiguousarray(np.stack(phases, axis=2))


def convolved(
    x: np.ndarray, w: np.ndarray, spec: ConvSpec, pads: tuple[int, int, int, int]
) -> np.ndarray:
    """In f64, without a bias."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [d * (v - 1) for d, v in zip(spec.dilations, spec.window, strict=True)]
    height, width = (
        (size - over - 1) // stride + 1
        for size, over, stride in zip(padded.shape[2:], reach, spec.strides, strict=True)
    )
    y = np.zeros((len(x), spec.groups, spec.outputs, height, width))
    grouped = padded.reshape(len(x), spec.groups, spec.channels, *padded.shape[2:])
    weights = w.astype(np.float64).reshape(spec.groups, spec.outputs, spec.channels, *spec.window)
    for dy, dx in product(*map(range, spec.window)):
        rows = dy * spec.dilations[0] + np.arange(height) * spec.strides[0]
        columns = dx * spec.dilations[1] + np.arange(width) * spec.strides[1]
        seen = grouped[:, :, :, rows[:, None], columns]
        y += np.einsum("bgchw,gnc->bgnhw", seen, weights[..., dy, dx])
    return y.reshape(len(x), -1, height, width)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("spec", "size", "pads", "epilogue"), WITH_EPILOGUES)
def test_agrees(
    isa: Isa,
    spec: ConvSpec,
    size: tuple[int, int, int],
    pads: tuple[int, int, int, int],
    epilogue: Epilogue | None,
) -> None:
    rng = np.random.default_rng(0)
    batch, *image = size
    n = spec.groups * spec.outputs
    x = rng.standard_normal((batch, spec.groups * spec.channels, *image), np.float32)
    w = rng.standard_normal((n, spec.channels, *spec.window), np.float32)
    bias = rng.standard_normal(n, np.float32)
    expected = convolved(x, w, spec, pads) + bias[:, None, None]
    allowed = 1e-6 * (convolved(abs(x), abs(w), spec, pads) + abs(bias)[:, None, None])
    inputs: list[np.ndarray] = []
    if epilogue is not None:
        shapes = (expected.shape, (batch, n, 1, 1), (n, 1, 1), (batch, 1, 1, 1), (1,))
        inputs = [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]
        e, s, c, b, one = inputs
        expected = np.minimum(np.tanh(expected + e) * s + c * b, 0.5) - one
        allowed += 1e-6
    if spec.reads_images:
        spec, planes = replace(spec, before=pads[:2]), x[:, :, None]
    else:
        planes = planes_of(x, spec, pads)
    rows, pitch = planes.shape[3:]
    height, width = expected.shape[2:]
    by_rows = spec.depthwise or spec.few_channels
    reach = height if by_rows else (height - 1) * pitch + width
    kernel = kernel_of(spec, epilogue)
    parts: tuple[int, ...] = ()
    if spec.winograd:
        reach = batch * -(-height // 2) * -(-width // 2)
        parts = batch, -(-reach // kernel.block[1]), -(-spec.blocks // kernel.block[2])
        if epilogue is not None and reach:  # parts of a block; the last ones have no tiles
            parts = batch, parts[1] + 9, spec.blocks
    y = np.full(expected.size + 16, np.nan, np.float32)
    counts = spec.groups, spec.outputs, spec.channels
    jit(isa, spec, epilogue).run(
        kernel.name,
        prod(parts[1:]) if parts else kernel.grid(batch, reach, spec.blocks),
        [
            *(planes.reshape(-1), spec.pack_weight(w), bias),
            *(each.reshape(-1) for each in inputs),
            *(y[:-16], *counts, pitch, rows * pitch, height, width, *parts),
            batch * height * width,
        ],
    )
    assert np.isnan(y[-16:]).all()
    assert (np.abs(y[:-16].reshape(expected.shape) - expected) <= allowed).all()


# As above.
PATCH_CASES = [
    (ConvSpec(1, 37, 5, (3, 3), (2, 2), (1, 1)), (3, 7, 9), (1, 1, 0, 1)),
    (ConvSpec(1, 16, 3, (1, 1), (3, 2), (1, 1)), (2, 13, 8), (0, 0, 0, 0)),
    (ConvSpec(1, 23, 4, (2, 3), (1, 1), (2, 1)), (1, 6, 40), (0, 0, 1, 1)),
]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("epilogue", [None, EPILOGUE], ids=["alone", "epilogue"])
@pytest.mark.parametrize(("spec", "size", "pads"), PATCH_CASES)
def test_patches_give_the_same(
    isa: Isa,
    spec: ConvSpec,
    size: tuple[int, int, int],
    pads: tuple[int, int, int, int],
    epilogue: Epilogue | None,
) -> None:
    """As the kernel over the same planes, which they stand in for."""
    rng = np.random.default_rng(1)
    batch, *image = size
    n = spec.outputs
    planes = planes_of(rng.standard_normal((batch, spec.channels, *image), np.float32), spec, pads)
    w = spec.pack_weight(rng.standard_normal((n, spec.channels, *spec.window), np.float32))
    rows, pitch = planes.shape[3:]
    height, width = (
        (extent + pads[axis] + pads[axis + 2] - reach - 1) // stride + 1
        for axis, (extent, reach, stride) in enumerate(
            zip(image, spec.reach, spec.strides, strict=True)
        )
    )
    shapes = ((batch, n, height, width), (batch, n), (n,), (batch,), (1,))
    inputs = [rng.uniform(-1, 1, prod(shape)).astype(np.float32) for shape in shapes]
    given = [planes.reshape(-1), w, rng.standard_normal(n, np.float32)]
    given += inputs if epilogue is not None else []
    outputs = batch * height * width
    direct, patches = kernel_of(spec, epilogue), CpuTarget().patch_conv(spec, epilogue)
    assert patches is not None and spec.reads_images is False
    parts = -(-outputs // patches.block[1]) + (3 if epilogue is not None else 0)
    block_parts = 1 if epilogue is None else patches.block[2]
    reach = (height - 1) * pitch + width
    jit, made = compile_jit(isa, [direct, patches]), []
    for kernel, grid, cut in (
        (direct, direct.grid(batch, reach, spec.blocks), ()),
        (patches, parts * block_parts, (batch, parts, block_parts)),
    ):
        y = np.full(n * outputs + 16, np.nan, np.float32)
        sizes = 1, n, spec.channels, pitch, rows * pitch, height, width, *cut, outputs
        jit.run(kernel.name, grid, [*given, y[:-16], *sizes])
        assert np.isnan(y[-16:]).all()
        made.append(y[:-16])
    np.testing.assert_allclose(made[1], made[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_samples_have_weights(isa: Isa) -> None:
    rng = np.random.default_rng(3)
    spec = ConvSpec(2, 11, 5, (1, 3), (1, 1), (1, 1), weights_by_sample=True)
    x = rng.standard_normal((3, 10, 9, 12), np.float32)
    w = rng.standard_normal((3, 22, 5, 1, 3), np.float32)
    packed = np.stack([spec.pack_weight(each) for each in w])
    pads = (0, 0, 0, 0)
    expected = np.concatenate(
        [convolved(x[i : i + 1], each, spec, pads) for i, each in enumerate(w)]
    )
    y, kernel = np.zeros(expected.size, np.float32), kernel_of(spec, None)
    jit(isa, spec).run(
        kernel.name,
        kernel.grid(3, 8 * 12 + 10, spec.blocks),
        [
            *(x.reshape(-1), packed.reshape(-1), np.zeros(22, np.float32), y),
            *(spec.groups, spec.outputs, spec.channels, 12, 9 * 12, 9, 10, 3 * 9 * 10),
        ],
    )
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
