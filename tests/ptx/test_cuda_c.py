"""The PTX machine on PTX that this project did not write: CUDA C through nvcc, against numpy."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abqc.runtime.ptx import Device, PtxSyntaxError, parse
from abqc.runtime.ptx.counters import Counters

SOURCES = Path(__file__).parent / "cuda"
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

N = 300  # not a multiple of a block


@dataclass(frozen=True)
class Output:
    """A buffer that nobody has written before the launch: the kernel must write all of it."""

    shape: tuple[int, ...]
    dtype: Any = np.float32

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def output(*shape: int, dtype: Any = np.float32) -> Output:
    return Output(shape, dtype)


class CudaFile:
    """The kernels of one file under cuda/; `mode` is how the machine is to run them."""

    def __init__(self, ptx: str) -> None:
        self.module = parse(ptx)
        self.mode = "whole"

    def __call__(self, name: str, grid, block, *arguments, shared_bytes: int = 0):
        """Launches once; the contents of outputs, then of arrays, in order, as new arrays."""
        batch_lanes = 64 if self.mode == "small batches" else 1 << 14
        device = Device(capability=(8, 0), memory_bytes=1 << 24, batch_lanes=batch_lanes)
        counters = Counters() if self.mode == "counted" else None
        parameters, outputs, inputs = [], [], []
        for argument in arguments:
            if isinstance(argument, Output):
                parameters.append(device.allocate(argument.nbytes))
                outputs.append((parameters[-1], argument))
            elif isinstance(argument, np.ndarray):
                parameters.append(device.allocate(argument.nbytes))
                device.write(parameters[-1], argument)
                inputs.append((parameters[-1], argument))
            else:
                parameters.append(argument)
        device.launch(
            self.module.kernels[name],
            grid=_three(grid),
            block=_three(block),
            parameters=parameters,
            shared_bytes=shared_bytes,
            counters=counters,
        )
        if counters:
            assert counters.counts().warps["control"] > 0
        results = [
            np.asarray(device.read(address, array.nbytes)).view(array.dtype).reshape(array.shape)
            for address, array in (*outputs, *inputs)
        ]
        return results[0] if len(outputs) == 1 else results


def _three(extent: int | tuple[int, ...]) -> tuple[int, ...]:
    extents = (extent,) if isinstance(extent, int) else extent
    return (*extents, 1, 1)[:3]


def _compile(name: str, directory: Path) -> CudaFile:
    target = directory / f"{name}.ptx"
    command = [str(NVCC), "-ptx", "-arch=sm_80", "-o", str(target), str(SOURCES / f"{name}.cu")]
    subprocess.run(command, check=True)
    return CudaFile(target.read_text())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, CudaFile]:
    directory = tmp_path_factory.mktemp("ptx")
    names = ("elementwise", "collective", "control", "matrix")
    return {name: _compile(name, directory) for name in names}


@pytest.fixture(params=["whole", "small batches", "counted"])
def mode(request) -> str:
    """All blocks at once, two warps at a time, and with counters: to the same result."""
    return request.param


@pytest.fixture
def elementwise(compiled, mode) -> CudaFile:
    return _in_mode(compiled["elementwise"], mode)


@pytest.fixture
def collective(compiled, mode) -> CudaFile:
    return _in_mode(compiled["collective"], mode)


@pytest.fixture
def control(compiled, mode) -> CudaFile:
    return _in_mode(compiled["control"], mode)


@pytest.fixture
def matrix(compiled, mode) -> CudaFile:
    return _in_mode(compiled["matrix"], mode)


def _in_mode(file: CudaFile, mode: str) -> CudaFile:
    file.mode = mode
    return file


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2024)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def integers(rng: np.random.Generator, low: int, high: int, *shape: int, dtype: Any = np.int32):
    return rng.integers(low, high, shape, dtype)


# -- elementwise.cu ---------------------------------------------------------------------------


def test_vector_add(elementwise, rng) -> None:
    a, b = floats(rng, N), floats(rng, N)
    total = elementwise("vector_add", 3, 128, a, b, output(N), N)
    np.testing.assert_array_equal(total, a + b)


def test_saxpy_grid_stride(elementwise, rng) -> None:
    x, y = floats(rng, N), floats(rng, N)
    _, result = elementwise("saxpy", 2, 64, 2.5, x, y, N)
    np.testing.assert_allclose(result, y + np.float32(2.5) * x, rtol=1e-5, atol=1e-6)


def test_scale_vectors(elementwise, rng) -> None:
    x, w = floats(rng, N, 4), integers(rng, 0, 256, N, 4, dtype=np.uint8)
    y = elementwise("scale_vectors", 3, 128, x, w, output(N, 4), N)
    np.testing.assert_array_equal(y, x * w.astype(np.float32))


def test_divide_integers(elementwise, rng) -> None:
    a = integers(rng, -(1 << 31), 1 << 31, N)
    b = integers(rng, -5000, 5000, N) | 1
    c = integers(rng, -(1 << 62), 1 << 62, N, dtype=np.int64)
    d = integers(rng, -(1 << 40), 1 << 40, N, dtype=np.int64) | 1
    d[::2] = d[::2] % 1000 + 1
    as_int, as_long = output(N, dtype=np.int32), output(N, dtype=np.int64)
    quotients, remainders, unsigned, long_quotients, long_remainders, *_ = elementwise(
        "divide_integers", 3, 128, a, b, c, d, as_int, as_int, output(N, dtype=np.uint32),
        as_long, as_long, N,
    )  # fmt: skip
    expected = [divmod_c(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(np.stack([quotients, remainders], 1), expected)
    np.testing.assert_array_equal(unsigned, a.view(np.uint32) // b.view(np.uint32))
    expected = [divmod_c(int(x), int(y)) for x, y in zip(c, d, strict=True)]
    np.testing.assert_array_equal(np.stack([long_quotients, long_remainders], 1), expected)


def divmod_c(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero, and its remainder."""
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def test_divide_by_constants(elementwise, rng) -> None:
    a = integers(rng, -(1 << 31), 1 << 31, N)
    b = integers(rng, -(1 << 62), 1 << 62, N, dtype=np.int64)
    as_int = output(N, dtype=np.int32)
    by_seven, by_minus_ten, by_thousand, *_ = elementwise(
        "divide_by_constants", 3, 128, a, b, as_int, as_int, output(N, dtype=np.int64), N
    )
    assert by_seven.tolist() == [divmod_c(int(x), 7)[0] for x in a]
    assert by_minus_ten.tolist() == [divmod_c(int(x), -10)[0] for x in a]
    assert by_thousand.tolist() == [divmod_c(int(x), 1000)[0] for x in b]


def test_wide_arithmetic(elementwise, rng) -> None:
    a, b = integers(rng, 0, 1 << 64, 2, N, dtype=np.uint64)
    word = output(N, dtype=np.uint64)
    high, low, carry, shifted, *_ = elementwise(
        "wide_arithmetic", 3, 128, a, b, word, word, word, word, N
    )
    mask = (1 << 64) - 1
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        total = x * y + (x << 64 | y)
        assert high[i] == total >> 64 & mask
        assert low[i] == total & mask
        assert carry[i] == x * y >> 64
        signed = x - (1 << 64) if x >> 63 else x
        assert shifted[i] == (signed >> (y & 63) ^ x << (y & 31)) & mask


def test_bit_tricks(elementwise, rng) -> None:
    a, b = integers(rng, 0, 1 << 32, 2, N, dtype=np.uint32)
    c = integers(rng, 0, 1 << 64, N, dtype=np.uint64)
    a[:3], c[:3] = [0, 1, 0x80000000], [0, 1, 1 << 63]
    rows = elementwise("bit_tricks", 3, 128, a, b, c, output(N, 12, dtype=np.uint32), N)
    expected = [
        bit_tricks(x, y, z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(rows, expected)


def bit_tricks(a: int, b: int, c: int) -> list[int]:
    octets = (a | b << 32).to_bytes(8, "little")

    def signed(x: int) -> int:
        return x - (1 << 32) if x >> 31 else x

    return [
        a.bit_count(),
        32 - a.bit_length(),
        (a & -a).bit_length(),
        int(f"{a:032b}"[::-1], 2),
        (b << 32 | a) << (b & 31) >> 32 & 0xFFFFFFFF,
        (b << 32 | a) >> (b & 15) & 0xFFFFFFFF,
        int.from_bytes(bytes(octets[s] for s in (2, 7, 1, 6)), "little"),
        c.bit_count(),
        64 - c.bit_length(),
        a >> 5 & 0x3FF,
        (a & b | ~a & c) & 0xFFFFFFFF,
        (min(a, b) + max(signed(a), signed(b)) + abs(signed(a) >> 1)) & 0xFFFFFFFF,
    ]


def test_byte_dot_products(elementwise, rng) -> None:
    a, b = integers(rng, -(1 << 31), 1 << 31, 2, N)
    dots, unsigned, sums, *_ = elementwise(
        "byte_dot_products", 3, 128, a, b, output(N, dtype=np.int32),
        output(N, dtype=np.uint32), output(N, dtype=np.int32), N,
    )  # fmt: skip
    left, right = a.view(np.int8).reshape(N, 4), b.view(np.int8).reshape(N, 4)
    expected = (left.astype(np.int64) * right).sum(1) + np.arange(N)
    np.testing.assert_array_equal(dots, expected)
    products = left.view(np.uint8).astype(np.int64) * right.view(np.uint8)
    np.testing.assert_array_equal(unsigned, products.sum(1) + 7)
    difference = np.abs(a.astype(np.int64) - b) + 3
    np.testing.assert_array_equal(sums.view(np.uint32), difference)


def test_half_arithmetic(elementwise, rng) -> None:
    a, b = floats(rng, N, 2).astype(np.float16), floats(rng, N, 2).astype(np.float16)
    out, wide, *_ = elementwise(
        "half_arithmetic", 3, 128, a, b, output(N, 2, dtype=np.float16), output(N), N
    )
    product = (a.astype(np.float64) * b + 0.5).astype(np.float16)
    np.testing.assert_array_equal(out, np.maximum(product, a - b))
    expected = (a[:, 0] * a[:, 0]).astype(np.float32) + b[:, 1].astype(np.float32)
    np.testing.assert_array_equal(wide, np.where(a[:, 0] > b[:, 0], -expected, expected))


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, halves to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_bfloat_conversion(elementwise, rng) -> None:
    x = floats(rng, N)
    x[0] = np.array(0x3F808000, np.uint32).view(np.float32)  # a half, to even
    narrow, back, pairs, *_ = elementwise(
        "bfloat_conversion", 3, 128, x, output(N, dtype=np.uint16), output(N),
        output(N, 2, dtype=np.uint16), N,
    )  # fmt: skip
    np.testing.assert_array_equal(narrow, to_bfloat16(x))
    np.testing.assert_array_equal(back, from_bfloat16(to_bfloat16(x)) * np.float32(3))
    value = from_bfloat16(to_bfloat16(np.stack([x, x + np.float32(1)], 1))).astype(np.float64)
    np.testing.assert_array_equal(pairs, to_bfloat16(value * value + value))


def test_conversions(elementwise, rng) -> None:
    x = floats(rng, N) * 100
    x[:4] = [0.5, 1.5, -0.5, 2.5]
    k = integers(rng, -(1 << 31), 1 << 31, N)
    out, values, octets, *_ = elementwise(
        "conversions", 3, 128, x, k, output(N, 5, dtype=np.int32), output(N),
        output(N, dtype=np.uint8), N,
    )  # fmt: skip
    expected = [np.rint(x), np.trunc(x), np.floor(x), np.ceil(x)]
    np.testing.assert_array_equal(out[:, :4], np.stack(expected, 1).astype(np.int32))
    np.testing.assert_array_equal(out[:, 4].view(np.float32), np.rint(x))
    sums = k.astype(np.float32) + k.view(np.uint32).astype(np.float32) * np.float32(0.25)
    np.testing.assert_allclose(values, sums + k.astype(np.int16).astype(np.float32), rtol=1e-6)
    np.testing.assert_array_equal(octets, (k >> 3).astype(np.uint8))


def test_math_functions(elementwise, rng) -> None:
    x = floats(rng, N) * 3
    out = elementwise("math_functions", 3, 128, x, output(12, N), N)
    wide = x.astype(np.float64)
    positive = (np.abs(x) + np.float32(0.01)).astype(np.float64)
    expected = [
        np.exp(wide),
        np.sin(wide),
        np.cos((x * np.float32(1e5)).astype(np.float64)),
        np.sqrt(positive),
        1 / np.sqrt(positive),
        [math.erf(value) for value in wide],
        np.log(positive),
        np.tanh(wide),
        positive**wide,
        wide / positive,
        np.fmod(wide, np.float64(np.float32(0.7))),
        np.exp2(wide) + np.log2(positive) + np.floor(wide) + np.copysign(2, wide),
    ]
    np.testing.assert_allclose(out, np.array(expected), rtol=5e-6, atol=2e-6)
    np.testing.assert_array_equal(out[9], x / (np.abs(x) + np.float32(0.01)))


def test_fast_functions(elementwise, rng) -> None:
    x = floats(rng, N)
    out = elementwise("fast_functions", 3, 128, x, output(6, N), N)
    expected = [
        np.exp(x),
        np.sin(x),
        np.log(np.abs(x) + np.float32(0.5)),
        1 / (x * x + 1),
        x.clip(0, 1),
        x.clip(-0.5, 0.5),
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_double_precision(elementwise, rng) -> None:
    x, y = rng.standard_normal((2, N)) * 5
    out = elementwise("double_precision", 3, 128, x, y, output(6, N, dtype=np.float64), N)
    expected = [
        x * y - 1,
        x / y,
        np.sqrt(np.abs(x)),
        np.exp(x),
        x.astype(np.float32) + np.trunc(y * 1e6) + np.floor(x),
        np.sin(y),
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-15)


def test_constant_polynomial(elementwise, rng) -> None:
    x = floats(rng, N)
    y, count, *_ = elementwise(
        "constant_polynomial", 3, 128, x, output(N), output(1, dtype=np.int32), 5, N
    )
    expected = np.polynomial.polynomial.polyval(x, [1, -0.5, 0.25, -0.125, 0.0625, 3])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert count == 5


# -- collective.cu ----------------------------------------------------------------------------


def test_block_sum(collective, rng) -> None:
    x = floats(rng, N)
    sums = collective("block_sum", 2, 256, x, output(2), N)
    np.testing.assert_allclose(sums, [x[:256].sum(), x[256:].sum()], rtol=1e-5, atol=1e-5)


def test_warp_sum(collective, rng) -> None:
    x = floats(rng, 256)
    sums = collective("warp_sum", 2, 128, x, output(8))
    np.testing.assert_allclose(sums, x.reshape(8, 32).sum(1), rtol=1e-5, atol=1e-5)


def test_inclusive_scan(collective, rng) -> None:
    x = integers(rng, -50, 50, 200)
    y = collective("inclusive_scan", 1, 256, x, output(200, dtype=np.int32), 200, shared_bytes=2048)
    np.testing.assert_array_equal(y, np.cumsum(x))


def test_histogram(collective, rng) -> None:
    data = integers(rng, 0, 256, 1000, dtype=np.uint8)
    _, bins = collective("histogram", 3, 96, data, np.zeros(64, np.uint32), 1000)
    np.testing.assert_array_equal(bins, np.bincount(data & 63, minlength=64))


def test_softmax(collective, rng) -> None:
    x = floats(rng, 3, 75) * 4
    y = collective("softmax", 3, 64, x, output(3, 75), 75)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)


def test_layer_norm(collective, rng) -> None:
    x, gain, bias = floats(rng, 3, 75), floats(rng, 75), floats(rng, 75)
    y = collective("layer_norm", 3, 64, x, gain, bias, output(3, 75), 75, 1e-5)
    centred = x - x.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + bias
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_bitonic_sort(collective, rng) -> None:
    keys = integers(rng, -1000, 1000, 2, 128)
    (result,) = collective("bitonic_sort", 2, 128, keys)
    np.testing.assert_array_equal(result, np.sort(keys, 1))


def test_divergent_prefix(collective, rng) -> None:
    x = integers(rng, -300, 1000, 128)
    y = collective("divergent_prefix", 2, 64, x, output(128, dtype=np.int32))
    expected = np.zeros(128, np.int32)
    for i in range(128):
        upto = x[i & ~31 : i + 1]
        large = np.flatnonzero(upto > 900)
        counted = upto[: large[0]] if large.size else upto
        expected[i] = counted[counted >= 0].sum()
    np.testing.assert_array_equal(y, np.roll(expected.reshape(4, 32), -1, axis=1).ravel())


def test_compact_positive(collective, rng) -> None:
    x = integers(rng, -100, 100, N)
    _, kept, count = collective(
        "compact_positive", 3, 128, x, np.zeros(N, np.int32), np.zeros(1, np.int32), N
    )
    positive = x[x > 0]
    assert count == positive.size
    np.testing.assert_array_equal(np.sort(kept[: positive.size]), np.sort(positive))


def test_atomic_largest(collective, rng) -> None:
    x = np.abs(floats(rng, N))
    _, largest = collective("atomic_largest", 3, 128, x, np.zeros(1, np.int32), N)
    assert largest.view(np.float32) == x.max()


def test_atomic_operations(collective, rng) -> None:
    x = integers(rng, -1000, 1000, N)
    cells = np.array([-5000, 5000, 0, 0, -1, 1000, 0], np.int32)
    result, _, total, wide = collective(
        "atomic_operations", 3, 128, cells, x, np.zeros(1, np.float32), np.zeros(1, np.uint64), N
    )
    bits = int(np.bitwise_or.reduce(np.uint32(1) << (x & 31).astype(np.uint32)))
    expected = [x.max(), x.min(), bits, np.bitwise_xor.reduce(x), -1 << 16, 400, N % 10]
    np.testing.assert_array_equal(result, np.array(expected, np.int64).astype(np.int32))
    assert total == N / 2
    assert wide == N << 33


def test_warp_votes(collective, rng) -> None:
    x = integers(rng, -20, 1000, 64)
    rows = collective("warp_votes", 1, 64, x, output(64, 8, dtype=np.int32))
    for i in range(64):
        lane, warp = i % 32, x[i // 32 * 32 : i // 32 * 32 + 32]
        same = sum(1 << j for j in range(32) if warp[j] & 3 == x[i] & 3)
        expected = [
            (warp > 900).any(),
            (warp > -10).all(),
            warp.sum(),
            warp.max(),
            warp[lane - 3] if lane >= 3 else x[i],
            warp[lane ^ 5],
            same - (1 << 32) if same >> 31 else same,
            warp[8 + (lane + 1) % 12] if 8 <= lane < 20 else -1,
        ]
        np.testing.assert_array_equal(rows[i], expected)


def test_sum_in_one_launch(collective, rng) -> None:
    x = integers(rng, -1000, 1000, 5 * 128)
    total = output(1, dtype=np.int32)
    _, result, _ = collective("sum_in_one_launch", 5, 128, x, output(5, dtype=np.int32), total)
    assert result == x.sum()


# -- control.cu -------------------------------------------------------------------------------


def test_collatz(control, rng) -> None:
    x = integers(rng, 1, 300, N, dtype=np.uint32)
    steps = control("collatz", 3, 128, x, output(N, dtype=np.int32), N)

    def length(value: int) -> int:
        count = 0
        while value != 1:
            value = 3 * value + 1 if value % 2 else value // 2
            count += 1
        return count

    assert steps.tolist() == [length(int(value)) for value in x]


def test_dispatch(control, rng) -> None:
    operation, x = integers(rng, -1, 10, N), integers(rng, 0, 50, N)
    y = control("dispatch", 3, 128, operation, x, output(N, dtype=np.int32), N)

    def repeated(v: int) -> int:
        for k in range(x[1]):
            v = v * 3 + k
        return v

    choices = {
        0: lambda v: v + 17,
        1: lambda v: v * v - int(x[0]),
        2: lambda v: v ^ 0x5A5A,
        3: lambda v: abs(v - 10) << 3,
        4: lambda v: v << 3,
        5: repeated,
        6: lambda v: v.bit_count(),
        7: lambda v: -v,
    }
    zero = lambda v: 0  # noqa: E731
    expected = [
        choices.get(int(o), zero)(int(v)) & 0xFFFFFFFF for o, v in zip(operation, x, strict=True)
    ]
    assert y.view(np.uint32).tolist() == expected


def test_mandelbrot(control) -> None:
    width, height, limit = 20, 12, 30
    counts = control(
        "mandelbrot", (2, 2), (16, 8), output(height, width, dtype=np.int32), width, height, limit
    )
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    c = (-2 + 2.5 * x / width) + 1j * (-1.25 + 2.5 * y / height)
    z, expected = np.zeros_like(c), np.zeros(c.shape, np.int32)
    for _ in range(limit):
        inside = np.abs(z) < 2
        expected += inside
        z = np.where(inside, z * z + c, z)
    # Rounding may decide a point that comes close to the circle.
    assert (counts == expected).mean() > 0.98


def test_common_divisors(control, rng) -> None:
    a, b = integers(rng, 0, 10000, 2, N, dtype=np.uint32)
    out = control("common_divisors", 3, 128, a, b, output(N, dtype=np.uint32), N)
    np.testing.assert_array_equal(out, np.gcd(a, b))


def test_true_recursion_is_refused(control) -> None:
    """Device functions are inlined: the error names the one that calls itself."""
    with pytest.raises(PtxSyntaxError, match=r"recursion through .*binomial"):
        control("binomials", 1, 32, output(32, dtype=np.int32))


def test_local_array(control, rng) -> None:
    x = integers(rng, 0, 100, N)
    y = control("local_array", 3, 128, x, output(N, dtype=np.int32), N)
    for i in range(N):
        counts = np.bincount(x[(i + np.arange(24) * 7) % N] & 15, minlength=16)
        assert y[i] == counts.argmax() * 100 + counts.max()


def test_first_zero(control, rng) -> None:
    x = integers(rng, 0, 12, 64, 5, 7)
    found = control("first_zero", 1, 64, x, output(64, dtype=np.int32), 5, 7)
    for i in range(64):
        zeros = np.argwhere(x[i] == 0)
        assert found[i] == (zeros[0] @ [1000, 1] if zeros.size else -1)


# -- matrix.cu --------------------------------------------------------------------------------


def test_tiled_matmul(matrix, rng) -> None:
    m, n, k = 21, 37, 45
    a, b = floats(rng, m, k), floats(rng, k, n)
    c = matrix("tiled_matmul", (3, 2), (16, 16), a, b, output(m, n), m, n, k)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)


def test_transpose(matrix, rng) -> None:
    x = floats(rng, 45, 70)
    y = matrix("transpose", (3, 2), (32, 4), x, output(70, 45), 45, 70)
    np.testing.assert_array_equal(y, x.T)


def test_stencil(matrix, rng) -> None:
    x = floats(rng, 20, 37)
    y = matrix("stencil", (3, 3), (16, 8), x, output(20, 37), 37, 20)
    p = np.pad(x, 1)
    around = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
    np.testing.assert_allclose(y, 0.5 * x + 0.125 * around, rtol=1e-5, atol=1e-6)


def test_pipelined_sum(matrix, rng) -> None:
    x = floats(rng, 2, 5, 64, 4)
    sums = matrix("pipelined_sum", 2, 64, x, output(2, 64), 5)
    expected = (x.sum(1) @ np.arange(1, 5, dtype=np.float32))[:, ::-1]
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-4)


def test_copy_with_zeros(matrix, rng) -> None:
    x = integers(rng, -100, 100, 54)
    y = matrix("copy_with_zeros", 1, 32, x, output(128, dtype=np.int32), 54)
    np.testing.assert_array_equal(y, np.roll(np.pad(x, (0, 74)), -1))


def test_mma_b1(matrix, rng) -> None:
    a, b = (
        integers(rng, 0, 256, 16, 64, dtype=np.uint8),
        integers(rng, 0, 256, 8, 64, dtype=np.uint8),
    )
    c = matrix("mma_b1", 1, 32, a, b, output(16, 8, dtype=np.int32), 2)
    np.testing.assert_array_equal(c, np.unpackbits(a[:, None] & b[None], axis=2).sum(2))


def test_mma_s4(matrix, rng) -> None:
    a, b = integers(rng, -8, 8, 16, 128), integers(rng, 0, 16, 8, 128)

    def pack(codes: np.ndarray) -> np.ndarray:
        return (codes[:, ::2] & 15 | (codes[:, 1::2] & 15) << 4).astype(np.uint8)

    c = matrix("mma_s4", 1, 32, pack(a), pack(b), output(16, 8, dtype=np.int32), 2)
    np.testing.assert_array_equal(c, a @ b.T)


def test_mma_s8(matrix, rng) -> None:
    a = integers(rng, 0, 256, 16, 96, dtype=np.uint8)
    b = integers(rng, -128, 128, 8, 96, dtype=np.int8)
    c = matrix("mma_s8", 1, 32, a, b, output(16, 8, dtype=np.int32), 3)
    np.testing.assert_array_equal(c, a.astype(np.int32) @ b.T.astype(np.int32))


def test_mma_f16(matrix, rng) -> None:
    a, b = floats(rng, 16, 48).astype(np.float16), floats(rng, 8, 48).astype(np.float16)
    c = matrix("mma_f16", 1, 32, a, b, output(16, 8), 3)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.T, rtol=1e-5, atol=1e-5)


def test_mma_bf16(matrix, rng) -> None:
    a, b = to_bfloat16(floats(rng, 16, 48)), to_bfloat16(floats(rng, 8, 48))
    c = matrix("mma_bf16", 1, 32, a, b, output(16, 8), 3)
    np.testing.assert_allclose(c, from_bfloat16(a) @ from_bfloat16(b).T, rtol=1e-5, atol=1e-5)


def test_mma_tf32(matrix, rng) -> None:
    a, b = floats(rng, 16, 24), floats(rng, 8, 24)
    c = matrix("mma_tf32", 1, 32, a, b, output(16, 8), 3)
    a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    np.testing.assert_allclose(c, a @ b.T, rtol=1e-5, atol=1e-5)


def test_mma_through_shared(matrix, rng) -> None:
    a, b = floats(rng, 16, 16).astype(np.float16), floats(rng, 16, 8).astype(np.float16)
    c = matrix("mma_through_shared", 1, 32, a, b, output(16, 8))
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)
