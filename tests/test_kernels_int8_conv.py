"""Convolutions of codes over planes: accumulators against numpy, results against products of
patches, to the bit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import pytest
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.int8_conv.kernel import OUTPUTS, SHORT
from abqc.codegen.cpu.int8_conv.strategy import Int8Conv
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.code_conv_spec import HEADER, SLACK, CodeConvSpec
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.formats import (
    QuantizedTensor,
    parse_scheme,
    quantize_activation,
    quantize_weight,
)
from kernel_cases import DOT_ISAS, ISAS, compile_jit, variant_for

STRATEGY = Int8Conv()
GARBAGE = 0x5A


@dataclass(frozen=True)
class Shape:
    """Images [batch, channels, *image], zeros around them (begins, then ends), and the window."""

    n: int
    channels: int
    image: tuple[int, int]
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    batch: int = 1

    @property
    def k(self) -> int:
        return self.channels * self.window[0] * self.window[1]

    @property
    def outputs(self) -> tuple[int, int]:
        sizes = []
        for axis, size in enumerate(self.image):
            around = self.pads[axis] + self.pads[2 + axis]
            span = size + around - self.dilations[axis] * (self.window[axis] - 1) - 1
            sizes.append(span // self.strides[axis] + 1)
        return sizes[0], sizes[1]

    def patches(self, x: np.ndarray, around: np.ndarray) -> np.ndarray:
        """[batch, outputs, C * window] of [batch, C, *image], with `around` [batch] beside it."""
        b, c, height, width = x.shape
        top, left, below, behind = self.pads
        padded = np.empty((b, c, top + height + below, left + width + behind), x.dtype)
        padded[:] = around[:, None, None, None]
        padded[:, :, top : top + height, left : left + width] = x
        rows, columns = (
            np.arange(size) * stride
            for size, stride in zip(self.outputs, self.strides, strict=True)
        )
        seen = [
            padded[:, :, dy * self.dilations[0] + rows[:, None], dx * self.dilations[1] + columns]
            for dy, dx in product(range(self.window[0]), range(self.window[1]))
        ]
        stacked = np.stack(seen, axis=2).reshape(b, self.k, -1)
        return np.ascontiguousarray(stacked.transpose(0, 2, 1))


PADDED = Shape(16, 5, (9, 13), (3, 3), pads=(1, 2, 0, 1), batch=2)
STRIDED = Shape(7, 3, (12, 33), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
FLAT = Shape(17, 20, (1, OUTPUTS + 37), (1, 1), batch=2)
SHAPES = [
    Shape(20, 9, (13, 40), (1, 1), strides=(2, 2)),  # phases that are not read
    Shape(2, 6, (9, 21), (1, 3), strides=(2, 2), pads=(0, 1, 0, 1)),
    Shape(4, 6, (9, 21), (3, 1), strides=(2, 2), pads=(1, 0, 1, 0)),
    PADDED,
    STRIDED,
    FLAT,
    Shape(40, 17, (23, 25)),
    Shape(1, 1, (6, 70), (5, 1), strides=(1, 3), pads=(2, 0, 2, 0), batch=2),
    Shape(16, 5, (7, 30), (2, 2), strides=(3, 2), dilations=(2, 3), pads=(0, 4, 1, 0)),
    Shape(7, 6, (11, 19), (5, 5), pads=(2, 2, 2, 2)),  # a loop over the window's rows
    Shape(24, 33, (30, 20), (3, 3), pads=(1, 1, 1, 1)),  # several indices, across rows
    Shape(9, 7, (35, 33), (3, 3), dilations=(18, 20), pads=(18, 20, 18, 20)),  # row by row
    Shape(3, 5, (3, 170), (1, 2), dilations=(1, 330), pads=(0, 330, 0, 330)),
    Shape(5, 4, (1, 700), (1, 4), strides=(1, 4)),  # more columns than are cut at a time
]
FORMATS = [
    ("w8", "a8", None),
    ("w8", "a8:tensor:sym", (0.021, 0)),
    ("w8:asym", "a7:token:sym", None),
    ("w4:channel", "a8", None),
    ("w4:g32", "a8:tensor", (0.013, 77)),  # whose groups begin inside of blocks
    ("w4:g12", "a8", None),
    ("w3:channel:asym", "a5", None),
    ("w1:channel", "a4", None),
    ("w5:channel", "a8", None),
    ("w6:channel", "a2", None),
    ("w7:channel", "a8:tensor:sym", (0.02, 0)),
    ("wt5", "a8", None),
    ("w2*:channel", "a1:token:sym", None),
    ("wfp4:g32:e8m0", "a8", None),
    ("wfp4:g16:e4m3", "a6", None),
]


@dataclass
class Case:
    isa: Isa
    shape: Shape
    product: MatmulSpec
    weight: QuantizedTensor
    x: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    measured: bool

    @staticmethod
    def random(isa: Isa, shape: Shape, weight: str, activation: str, static) -> Case:
        rng = np.random.default_rng(shape.k + shape.n)
        w_scheme, a_scheme = parse_scheme(weight), parse_scheme(activation)
        w = rng.standard_normal((shape.n, shape.k), np.float32)
        x = rng.standard_normal((shape.batch, shape.channels, *shape.image), np.float32) + 0.4
        x[0] *= 2
        x = x.astype(np.float32)
        bias = rng.standard_normal(shape.n, np.float32)
        if static is None:
            _, scale, zero = quantize_activation(x.reshape(len(x), -1), parse_scheme(activation))
        else:
            scale, zero = np.array([static[0]], np.float32), np.array([static[1]], np.int32)
        spec = MatmulSpec(shape.n, shape.k, w_scheme, a_scheme)
        quantized = quantize_weight(w, w_scheme)
        return Case(isa, shape, spec, quantized, x, bias, scale, zero, static is None)

    def spec(self, **changes: bool) -> CodeConvSpec:
        shape, made = self.shape, MatmulSpec(**{**vars(self.product), **changes})
        padded = any(shape.pads)
        return CodeConvSpec(made, shape.window, shape.strides, shape.dilations, padded)

    @property
    def zeros(self) -> np.ndarray:
        return np.broadcast_to(self.zero, self.shape.batch).astype(np.int32)

    def codes(self) -> np.ndarray:
        """q of x, [B, C, H, W]."""
        format = self.spec().activation.format
        scale = np.broadcast_to(self.scale, len(self.x))[:, None, None, None]
        if format.kind == "binary":
            return np.where(self.x < 0, -1, 1)
        q = np.rint(self.x / scale) + self.zeros[:, None, None, None]
        return np.clip(q, format.qmin, format.qmax).astype(np.int64)

    def run(
        self,
        *,
        stored: bool = False,
        accumulators: bool = False,
        epilogue: Epilogue | None = None,
        inputs: tuple[np.ndarray, ...] = (),
        parts: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """y or acc [batch, N, *outputs]; with `parts` of outputs and channels by
        vectors of channels."""
        shape = self.shape
        spec = self.spec(stored_codes=stored, accumulators=accumulators)
        assert STRATEGY.unsupported(spec) is None
        planes = STRATEGY.planes_kernel(spec, measured=self.measured)
        conv = STRATEGY.conv_kernel(spec)
        conv = conv if epilogue is None else conv.with_epilogue(epilogue)
        kernel = conv if parts is None else conv.patches
        assert kernel is not None
        jit = compile_jit(self.isa, [planes, kernel])
        (h, w), (top, left, below, behind) = shape.image, shape.pads
        rows = -(-(h + top + below) // shape.strides[0])
        pitch = -(-(w + left + behind) // shape.strides[1])
        blocks = -(-shape.channels // 4)
        size = shape.batch * (HEADER + 4 * blocks * spec.phases * rows * pitch)
        q = np.full(size + SLACK, GARBAGE, np.uint8)
        x = self.codes().astype(np.uint8) if stored else self.x
        shared = -(-shape.batch // len(self.scale))
        grid, geometry = planes.grid(shape.batch, blocks, rows), (h, w, rows, pitch, top, left)
        if spec.flat:
            grid, geometry = planes.grid(shape.batch, blocks, 1), (1, h * w, 1, h * w, 0, 0)
        jit.run(
            planes.name,
            grid,
            [x.reshape(-1), self.scale, self.zero, q, shared, shape.channels, *geometry],
        )
        assert (q[size:] == GARBAGE).all()
        height, width = shape.outputs
        count = shape.batch * shape.n * height * width
        stored_as = np.float32 if epilogue is None else ELEMENTS[epilogue.result]
        y = np.full(count + 64, GARBAGE, np.int32 if accumulators else stored_as)
        grid = kernel.grid(shape.batch, (height - 1) * pitch + width, shape.n)
        shares = () if parts is None else (shape.batch, *parts)
        jit.run(
            kernel.name,
            grid if parts is None else prod(parts),
            [
                *(q, STRATEGY.pack_weight(spec, self.weight), self.bias, *inputs, y),
                *(rows, pitch, height, width, *shares, shape.batch * height * width, shape.n),
            ],
        )
        assert (y[count:] == GARBAGE).all()
        return y[:count].reshape(shape.batch, shape.n, height, width)

    def accumulators(self) -> np.ndarray:
        """The exact sums of one group."""
        centred = self.codes() - self.zeros[:, None, None, None]
        patches = self.shape.patches(centred, np.zeros(len(self.x), np.int64))
        weight = self.weight
        w = weight.scheme.format.integers(weight.codes).astype(np.int64)
        if weight.zero is not None:
            w -= weight.zero.astype(np.int64)
        y = np.einsum("bpk,nk->bnp", patches, w)
        return y.reshape(len(y), self.shape.n, *self.shape.outputs)

    @property
    def exact_patches(self) -> bool:
        """Whether floats of zero around the image have the zero point as their code."""
        binary = self.spec().activation.format.kind == "binary"
        return not (binary and any(self.shape.pads))

    def of_patches(self) -> np.ndarray:
        """y by the matmul of strategy `int8`."""
        strategy, spec, shape = Int8Strategy(), self.product, self.shape
        patches = shape.patches(self.x, np.zeros(len(self.x), np.float32))
        rows = patches.shape[0] * patches.shape[1]
        pack = strategy.scaled_pack_kernel(spec)
        matmul = variant_for(strategy.matmul_kernels(spec), rows)
        jit = compile_jit(self.isa, [pack, matmul])
        q = np.zeros(rows * strategy.row_bytes(spec), np.uint8)
        shared = -(-rows // len(self.scale))
        jit.run(
            pack.name,
            pack.grid(rows),
            [patches.reshape(-1), self.scale, self.zero, q, rows, shared],
        )
        y = np.zeros(rows * spec.n, np.float32)
        blob = strategy.pack_weight(spec, self.weight)
        jit.run(matmul.name, matmul.grid(rows, spec.n), [q, blob, self.bias, y, rows, spec.n])
        channels_last = y.reshape(shape.batch, -1, shape.n)
        return channels_last.transpose(0, 2, 1).reshape(shape.batch, shape.n, *shape.outputs)


@pytest.mark.parametrize("isa", DOT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(isa: Isa, shape: Shape) -> None:
    case = Case.random(isa, shape, "w8", "a8", None)
    np.testing.assert_array_equal(case.run(accumulators=True), case.accumulators())
    np.testing.assert_array_equal(case.run(), case.of_patches())


# All formats with the best instruction set, one of each kind with the others.
KINDS = ("w8", "w4:channel", "w4:g12", "w3:channel:asym", "wt5", "wfp4:g16:e4m3")
CASES = [
    pytest.param(
        isa,
        shape,
        weight,
        *activation,
        marks=() if isa is ISAS[0] or weight in KINDS else pytest.mark.slow,
        id=f"{weight}-{activation[0]}-{isa.name}-{'flat' if shape is FLAT else 'padded'}",
    )
    for isa, shape in [*((isa, PADDED) for isa in DOT_ISAS), (ISAS[0], FLAT)]
    for weight, *activation in FORMATS
]


@pytest.mark.parametrize(("isa", "shape", "weight", "activation", "static"), CASES)
def test_formats(isa: Isa, shape: Shape, weight: str, activation: str, static) -> None:
    case = Case.random(isa, shape, weight, activation, static)
    if case.exact_patches:
        np.testing.assert_array_equal(case.run(), case.of_patches())
    else:
        np.testing.assert_array_equal(case.run(accumulators=True), case.accumulators())


ELEMENTS = {"f32": np.float32, "i8": np.uint8}
RESIDUAL = """func.func @epilogue(%x: f32, %residual: f32, %gate: f32) -> f32 {
  %sum = arith.addf %x, %residual : f32
  %y = arith.mulf %sum, %gate : f32
  return %y : f32
}"""
LONG = RESIDUAL.replace("%y = arith.mulf %sum, %gate", "\n".join(
    ["%a0 = arith.mulf %sum, %gate : f32"]
    + [f"%a{i} = arith.maximumf %a{i - 1}, %sum : f32" for i in range(1, SHORT)]
    + [f"%y = arith.minimumf %a{SHORT - 1}, %a0"]
))  # fmt: skip


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("body", [RESIDUAL, LONG], ids=["short", "long"])
def test_epilogues_of_flat_images(isa: Isa, body: str) -> None:
    case = Case.random(isa, FLAT, "w8", "a8", None)
    plain = case.run()
    rng = np.random.default_rng(1)
    residual = rng.standard_normal(plain.shape, np.float32)
    gate = rng.standard_normal(plain.shape[:2], np.float32)
    made = Epilogue(f"module {{ {body} }}", ("element", "sample channel"))
    y = case.run(epilogue=made, inputs=(residual.reshape(-1), gate.reshape(-1)))
    np.testing.assert_array_equal(y, (plain + residual) * gate[:, :, None, None])


# Integers of all kinds are read, and bytes stored.
TO_CODES = Epilogue(
    """func.func @epilogue(%x: f32, %residual: i8, %bias: i32) -> i8 {
      %low = arith.constant 0.0 : f32
      %high = arith.constant 255.0 : f32
      %other = arith.uitofp %residual : i8 to f32
      %offset = arith.sitofp %bias : i32 to f32
      %0 = arith.addf %x, %offset : f32
      %1 = math.roundeven %0 : f32
      %2 = arith.addf %1, %other : f32
      %3 = arith.maximumf %2, %low : f32
      %4 = arith.minimumf %3, %high : f32
      %5 = arith.fptosi %4 : f32 to i32
      %6 = arith.trunci %5 : i32 to i8
      return %6 : i8
    }""",
    ("element", "channel"),
    ("i8", "i8", "i32"),
)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", [STRIDED, FLAT], ids=["3x3", "1x1"])
def test_epilogues_of_codes(isa: Isa, shape: Shape) -> None:
    case = Case.random(isa, shape, "w8", "a8", None)
    plain = case.run()
    rng = np.random.default_rng(1)
    residual = rng.integers(0, 256, plain.shape, np.uint8)
    bias = rng.integers(-60, 60, plain.shape[1], np.int32)
    y = case.run(epilogue=TO_CODES, inputs=(residual.reshape(-1), bias))
    sums = np.round(plain + bias[:, None, None].astype(np.float32)) + residual
    np.testing.assert_array_equal(y, np.clip(sums, 0, 255).astype(np.uint8))


# Small images: of one panel and of several, parts that end within images and channels.
SMALL = Shape(37, 5, (3, 2), (3, 3), pads=(1, 1, 1, 1), batch=4)
PATCHES = [
    (SMALL, "w8", "a8", (2, 2)),
    (
        Shape(16, 9, (5, 20), (3, 2), dilations=(1, 2), pads=(1, 2, 1, 0)),
        "w4:channel",
        "a8",
        (3, 1),
    ),
    (Shape(70, 6, (7, 9), (3, 3), (2, 2), pads=(1, 1, 0, 1), batch=2), "wt5", "a6", (1, 2)),
]


@pytest.mark.parametrize("isa", DOT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("shape", "weight", "activation", "parts"), PATCHES)
def test_vectors_of_channels_give_the_same(
    isa: Isa, shape: Shape, weight: str, activation: str, parts: tuple[int, int]
) -> None:
    case = Case.random(isa, shape, weight, activation, None)
    np.testing.assert_array_equal(case.run(parts=parts), case.run())
    sums = case.run(parts=parts, accumulators=True)
    np.testing.assert_array_equal(sums, case.accumulators())


def test_names_of_kernels_say_how_many_channels_are_computed_at_once() -> None:
    """Of one convolution to 16 channels and one to 48, each has a body of its own."""
    names = []
    for n in (16, 48, 33):
        product = MatmulSpec(n, 54, parse_scheme("w8"), parse_scheme("a8"))
        kernel = STRATEGY.conv_kernel(CodeConvSpec(product, (3, 3), (1, 1), (1, 1))).patches
        assert kernel is not None
        names.append(kernel.name)
    assert names[0] != names[1] == names[2]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_vectors_of_channels_have_epilogues(isa: Isa) -> None:
    case = Case.random(isa, SMALL, "w8", "a8", None)
    rng = np.random.default_rng(1)
    shape = (SMALL.batch, SMALL.n, *SMALL.outputs)
    residual = rng.integers(0, 256, shape, np.uint8).reshape(-1)
    bias = rng.integers(-60, 60, SMALL.n, np.int32)
    given = {"epilogue": TO_CODES, "inputs": (residual, bias)}
    np.testing.assert_array_equal(case.run(parts=(2, 2), **given), case.run(**given))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("activation", ["a8:tensor", "a4:tensor:sym"])
@pytest.mark.parametrize("shape", [STRIDED, FLAT], ids=["3x3", "1x1"])
def test_stored_codes(isa: Isa, shape: Shape, activation: str) -> None:
    zero = 0 if activation.endswith("sym") else 100
    case = Case.random(isa, shape, "w8", activation, (0.02, zero))
    acc = case.run(stored=True, accumulators=True)
    np.testing.assert_array_equal(acc, case.accumulators())
    np.testing.assert_array_equal(acc, case.run(accumulators=True))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_one_image_with_nan_leaves_the_others_alone(isa: Isa) -> None:
    case = Case.random(isa, PADDED, "w8", "a8", None)
    whole = case.run()
    case.x[0, 0, 0, 0] = np.nan
    case.scale[0], case.zero[0] = np.nan, 0
    y = case.run()
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], whole[1])


@pytest.mark.parametrize(
    ("weight", "k", "why"),
    [
        ("wnf4", 64, "no integers|which .* has not"),
        ("w8", 32769, "64 bits"),
        ("w4:g32:asym", 64, "several groups"),
        ("w4:channel", 20000, "stack"),
    ],
)
def test_what_it_leaves_to_patches(weight: str, k: int, why: str) -> None:
    product = MatmulSpec(8, k, parse_scheme(weight), parse_scheme("a8"))
    spec = CodeConvSpec(product, (1, 1), (1, 1), (1, 1))
    assert re.search(why, str(STRATEGY.unsupported(spec)))


def test_long_strides_are_left_to_patches() -> None:
    """Each phase of columns is code of its own."""
    product = MatmulSpec(8, 256, parse_scheme("w8"), parse_scheme("a8"))
    for stride, patches in ((8, False), (128, True)):
        spec = CodeConvSpec(product, (1, 256), (1, stride), (1, 1))
        assert (STRATEGY.unsupported(spec) is not None) == patches
