"""Rows that are normalized and packed in one launch, in the PTX machine: to the bit what the
separate kernels give, and what numpy gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_80, SM_90A, GpuArch
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.packing.layout import FloatRows, Int8Rows
from abqc.codegen.gpu.packing.pack import PackKernel, pack_kernel, scaled_pack_kernel
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.gpu.rows.norm import norm_kernel
from abqc.codegen.gpu.rows.norm_pack import norm_pack_kernel
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects import formats, hadamard
from abqc.dialects.formats import parse_scheme
from abqc.dialects.norm_spec import NormSpec
from gpu_kernels import run, spills

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")

EPSILON = 1e-5
ALL_OPERANDS = NormSpec("layer", 0, bias=True, residual=True, keeps_sum=True)
RMS = NormSpec("rms", 0)
BARE = NormSpec("layer", 0, weight=False)


@dataclass(frozen=True)
class Way:
    """Rows of `kind` (int8, planes, f16, bf16) for weights and activations of these schemes."""

    kind: str
    weight: str
    activation: str | None = None
    block: int = 0

    def spec(self, k: int) -> MatmulSpec:
        activation = parse_scheme(self.activation) if self.activation else None
        return MatmulSpec(16, k, parse_scheme(self.weight), activation, hadamard_block=self.block)

    def layout(self, k: int) -> Int8Rows | PlaneRows | FloatRows:
        if self.kind in ("f16", "bf16"):
            return FloatRows.of(self.spec(k), self.kind)  # type: ignore[arg-type]
        return (PlaneRows if self.kind == "planes" else Int8Rows).of(self.spec(k))

    def kernel(self, k: int) -> PackKernel:
        return pack_kernel(self.spec(k), self.layout(k))


def fused(
    norm: NormSpec, packs: Sequence[PackKernel], arch: GpuArch = SM_80, *, keeps_row: bool = True
) -> Kernel:
    kernel = norm_pack_kernel(norm, [p.packing for p in packs], [arch], keeps_row=keeps_row)
    assert kernel is not None
    return kernel


@dataclass
class Operands:
    """Random rows, normalized and packed by either way."""

    norm: NormSpec
    packs: Sequence[PackKernel]
    rows: int

    def __post_init__(self) -> None:
        k, rng = self.norm.columns, np.random.default_rng(self.rows + self.norm.columns)
        self.inputs = {
            "x": rng.standard_normal((self.rows, k), np.float32) + np.float32(0.5),
            "residual": rng.standard_normal((self.rows, k), np.float32),
            "weight": 1 + rng.standard_normal(k, np.float32) / 4,
            "bias": rng.standard_normal(k, np.float32),
        }
        self.inputs["x"][self.rows // 2] = 0

    def launch(self, kernel: Kernel, names: list[str], rest: list) -> list[np.ndarray]:
        """The outputs among the arguments `names`, then those of `rest`."""
        arrays = [self.inputs.get(name, np.full_like(self.inputs["x"], 7)) for name in names]
        arguments = [*arrays, *rest, self.rows, EPSILON]
        results = run(kernel, kernel.grid(self.rows), arguments)
        read = sum(name in self.inputs for name in names)
        return results[read:]

    def packed_rows(self) -> list[np.ndarray]:
        return [
            np.full((self.rows, pack.packing.layout.row_bytes), 0x55, np.uint8)
            for pack in self.packs
        ]

    def separately(self) -> list[np.ndarray]:
        """y, perhaps the sum, then the packed rows."""
        y, *total = self.launch(norm_kernel(self.norm), self.norm.pointers(row=True), [])
        packed = [
            run(pack, pack.grid(self.rows), [y, q, self.rows])[1]
            for pack, q in zip(self.packs, self.packed_rows(), strict=True)
        ]
        return [y, *total, *packed]

    def at_once(self, *, keeps_row: bool) -> list[np.ndarray]:
        kernel = fused(self.norm, self.packs, keeps_row=keeps_row)
        return self.launch(kernel, self.norm.pointers(row=keeps_row), self.packed_rows())


def check(norm: NormSpec, k: int, ways: Sequence[Way], rows: int, *, keeps_row: bool) -> None:
    operands = Operands(replace(norm, columns=k), [way.kernel(k) for way in ways], rows)
    expected = operands.separately()
    actual = operands.at_once(keeps_row=keeps_row)
    for a, b in zip(actual, expected[not keeps_row :], strict=True):
        np.testing.assert_array_equal(a, b)


CASES = [
    (ALL_OPERANDS, 576, [Way("int8", "w4:g128:asym", "a8")], 3, True),
    (BARE, 1, [Way("int8", "w8:channel", "a8")], 5, False),
    (RMS, 1090, [Way("planes", "w4:g100:asym", "a4:token:sym")], 2, False),
    (ALL_OPERANDS, 151, [Way("int8", "w4:g33:asym", "a5")], 2, False),
    (BARE, 37, [Way("f16", "w8:channel")], 9, True),
    (RMS, 384, [Way("int8", "w4:g128", "a8", 384)], 3, False),
    (ALL_OPERANDS, 280, [Way("planes", "w4:g20", "a1", 28)], 3, True),
    (BARE, 136, [Way("bf16", "w4:g33", None, 8)], 3, False),
    (
        replace(RMS, residual=True, keeps_sum=True),
        576,
        [
            Way("int8", "w4:g128:asym", "a8"),
            Way("planes", "w4:g128:asym", "a8"),
            Way("int8", "w4:g33", "a8", 576),
        ],
        2,
        True,
    ),
]


@pytest.mark.parametrize(("norm", "k", "ways", "rows", "keeps_row"), CASES)
def test_all_bytes_are_those_of_separate_kernels(
    norm: NormSpec, k: int, ways: list[Way], rows: int, keeps_row: bool
) -> None:
    check(norm, k, ways, rows, keeps_row=keeps_row)


def random_case(seed: int) -> tuple[NormSpec, int, list[Way], int, bool]:
    """Any number of columns, formats, groups and rotations."""
    rng = np.random.default_rng(seed)
    k = int(rng.choice([rng.integers(1, 300), 12 * rng.integers(1, 90), rng.integers(300, 4500)]))
    flags = [bool(flag) for flag in rng.integers(0, 2, 5)]
    norm = NormSpec("layer" if rng.random() < 0.5 else "rms", k, *flags[:4])
    blocks = [size for size in hadamard.supported_sizes(k) if k % size == 0]
    ways = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        group = rng.choice(
            ["channel", f"g{rng.integers(1, k + 1)}", f"g{16 << rng.integers(0, 4)}"]
        )
        symmetry = rng.choice(["sym", "asym"])
        block = int(rng.choice(blocks)) if rng.random() < 0.5 else 0
        kind = str(rng.choice(["int8", "planes", "f16", "bf16"]))
        # One bit has a scale that depends on the number of threads: in the sample above.
        bits = rng.integers(2, 9)
        activation = f"a{bits}:token:{symmetry}" if kind in ("int8", "planes") else None
        ways.append(Way(kind, f"w4:{group}:{rng.choice(['sym', 'asym'])}", activation, block))
    return norm, k, ways, int(rng.integers(1, 7)), flags[4]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_rows(seed: int) -> None:
    norm, k, ways, rows, keeps_row = random_case(seed)
    check(norm, k, ways, rows, keeps_row=keeps_row)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "block"), [(11008, 256), (14336, 14336), (16384, 0), (16384, 4096)])
def test_long_rows(k: int, block: int) -> None:
    ways = [Way("int8", "w4:g128:asym", "a8", block), Way("planes", "w4:g100", "a4", block)]
    check(ALL_OPERANDS, k, ways, 2, keeps_row=False)


@pytest.mark.parametrize("block", [0, 24])
def test_against_numpy(block: int) -> None:
    k, rows = 600, 4
    way = Way("int8", "w4:g128:asym", "a8", block)
    operands = Operands(replace(ALL_OPERANDS, columns=k), [way.kernel(k)], rows)
    y, total, packed = operands.at_once(keeps_row=True)
    inputs = operands.inputs
    np.testing.assert_array_equal(total, inputs["x"] + inputs["residual"])
    exact = total.astype(np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis=1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(y, exact * inputs["weight"] + inputs["bias"], rtol=2e-6, atol=4e-6)
    scheme, layout = way.spec(k).activation, way.layout(k)
    assert scheme is not None and isinstance(layout, Int8Rows)
    turned = hadamard.transform(y, block) if block else y
    codes, scale, zero = formats.quantize_activation(turned, scheme)
    if not block:
        np.testing.assert_array_equal(packed, layout.pack_reference(codes, scale, zero))
    different = layout.grouped.unpad(packed[:, : layout.code_bytes]).astype(int) - codes.astype(int)
    assert abs(different).max() <= 1 and (different != 0).mean() < 0.01


def test_rows_with_nan() -> None:
    """Their scale is NaN; values past their end are none."""
    k = 133
    operands = Operands(
        replace(ALL_OPERANDS, columns=k),
        [Way("int8", "w8:channel", "a8").kernel(k), Way("f16", "w8:channel").kernel(k)],
        3,
    )
    operands.inputs["x"][0, 130], operands.inputs["x"][2, 0] = np.nan, np.inf
    for a, b in zip(operands.at_once(keeps_row=True), operands.separately(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_too_long_are_left_to_two_kernels() -> None:
    """Padded rows go through shared memory, and packed ones must fit into registers."""
    norm = replace(RMS, columns=16384)
    padded = Way("int8", "w4:g100", "a8").kernel(16384).packing
    assert norm_pack_kernel(norm, [padded], [SM_80, SM_75], keeps_row=False) is None
    assert norm_pack_kernel(norm, [padded], [SM_80], keeps_row=False) is not None
    longer = Way("planes", "w4:g5", "a8").kernel(16384).packing
    assert norm_pack_kernel(norm, [longer], [SM_80], keeps_row=False) is None


def test_scales_of_images_are_measured_before() -> None:
    target = CudaTarget.named("sm_80")
    assert target is not None
    way = Way("int8", "w4:g32", "a8:image")
    norm = NormSpec("rms", 64)
    pack = scaled_pack_kernel(way.spec(64), way.layout(64))
    assert target.norm_pack([pack], norm, keeps_row=False) is None
    own_scale = Way("int8", "w4:g32", "a8").kernel(64)
    assert target.norm_pack([own_scale], norm, keeps_row=False) is not None


def kernels(k: int, block: int) -> list[Kernel]:
    """The kernels that need most registers."""
    norm = replace(ALL_OPERANDS, columns=k)
    ways = [
        Way("int8", "w4:g128:asym", "a8", block),
        Way("planes", "w4:g128:asym", "a8", block),
        Way("int8", "w4:g100:asym", "a8", block),
        Way("f16", "w4:g128", None, block),
    ]
    single = [fused(norm, [way.kernel(k)]) for way in ways]
    return [*single, fused(norm, [way.kernel(k) for way in ways[:3]])]


@needs_ptxas
@pytest.mark.parametrize(
    ("k", "block"),
    [
        (576, 576),
        *(
            pytest.param(k, block, marks=pytest.mark.slow)
            for k, block in [
                (768, 768),
                (1536, 1536),
                (4096, 4096),
                (8192, 8192),
                (11008, 256),
                (16384, 16384),
            ]
        ),
    ],
)
def test_no_spills(k: int, block: int) -> None:
    for arch in (SM_80, SM_90A):
        assert not spills(arch, *kernels(k, 0), *kernels(k, block))
