"""wgmma in the PTX machine: every type, layout and source of operands, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault, PtxSyntaxError
from wgmma_kernel import BODY, descriptor, instruction, run

IMMEDIATES = {True: ", 1, 1, 0, 0", False: ""}


def place_k_major(rows: np.ndarray, swizzle: int) -> tuple[np.ndarray, int, int]:
    """Rows of 32 bytes as the descriptor's K-major layouts have them: bytes, LBO, SBO."""
    count = len(rows)
    if not swizzle:
        parts = rows.reshape(count // 8, 8, 2, 16).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(parts).reshape(-1), 128, 256
    image = np.random.default_rng(1).integers(0, 256, count * swizzle, np.uint8)
    for row in range(count):
        for chunk in range(2):
            turned = chunk ^ (row * swizzle // 128 % (swizzle // 16))
            at = row * swizzle + turned * 16
            image[at : at + 16] = rows[row, chunk * 16 : chunk * 16 + 16]
    return image, 16, 8 * swizzle


def place_mn_major(rows: np.ndarray, swizzle: int) -> tuple[np.ndarray, int, int]:
    """Rows of 16 elements of 16 bits as the MN-major layouts have them: bytes, LBO, SBO."""
    elements = rows.view(np.uint16)  # [mn, 16]
    count = len(elements)
    width = (swizzle or 16) // 2  # elements of mn that follow each other
    blocks = -(-count // width)
    block_bytes = 8 * (swizzle or 16)
    image = np.zeros(2 * blocks * block_bytes, np.uint8)
    halves = image.view(np.uint16)
    for mn in range(count):
        for k in range(16):
            chunk = mn % width // 8
            turned = chunk ^ (k % 8 * swizzle // 128 % (swizzle // 16)) if swizzle else chunk
            block = mn // width * 2 + k // 8
            at = block * block_bytes + k % 8 * (swizzle or 16) + turned * 16 + mn % 8 * 2
            halves[at // 2] = elements[mn, k]
    k_step, mn_step = block_bytes, 2 * block_bytes
    return (image, mn_step, k_step) if swizzle else (image, k_step, mn_step)


def together(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
    """A and B behind it at a multiple of 1024 bytes, and where that is."""
    at = -(-a.nbytes // 1024) * 1024
    image = np.zeros(at + -(-b.nbytes // 16) * 16, np.uint8)
    image[: a.nbytes], image[at : at + b.nbytes] = a, b
    return image, at


def rows_of(rng: np.random.Generator, count: int, type: str) -> np.ndarray:
    if type == "f16":
        return rng.standard_normal((count, 16)).astype(np.float16).view(np.uint8)
    if type == "bf16":
        bits = rng.standard_normal((count, 16)).astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16).view(np.uint8)
    return rng.integers(0, 256, (count, 32), np.uint8)


def values(rows: np.ndarray, type: str) -> np.ndarray:
    if type == "bf16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if type == "b1":
        return np.unpackbits(rows, axis=1, bitorder="little").astype(np.float64)
    return rows.view({"f16": np.float16, "s8": np.int8, "u8": np.uint8}[type]).astype(np.float64)


def check(found: np.ndarray, expected: np.ndarray, is_float: bool) -> None:
    if is_float:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.view(np.float32), expected, rtol=0, atol=1e-6 * scale)
    else:
        assert (found == expected.astype(np.int64).astype(np.uint32)).all()


FORMS = [
    (8, 16, "f32.f16.f16"),
    (40, 16, "f32.f16.f16"),
    (16, 16, "f32.bf16.bf16"),
    (24, 32, "s32.s8.s8"),
    (48, 32, "s32.u8.s8"),
    (8, 32, "s32.s8.u8"),
    (256, 32, "s32.u8.u8"),
    (96, 256, "s32.b1.b1.and.popc"),
]


@pytest.mark.parametrize(("n", "k", "types"), FORMS)
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_k_major(rng: np.random.Generator, n: int, k: int, types: str, swizzle: int) -> None:
    _, a_type, b_type = types.split(".")[:3]
    is_float = types.startswith("f")
    a_rows, b_rows = rows_of(rng, 64, a_type), rows_of(rng, n, b_type)
    (a, leading, stride), (b, *_) = place_k_major(a_rows, swizzle), place_k_major(b_rows, swizzle)
    image, at = together(a, b)
    first, second = (descriptor(start, leading, stride, swizzle) for start in (0, at))
    body = BODY.format(wgmma=instruction(n, k, types, rest=IMMEDIATES[is_float]))
    found = run(n, image, body, first, second)[0]
    check(found, values(a_rows, a_type) @ values(b_rows, b_type).T, is_float)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(0, 1), (1, 0), (1, 1)])
def test_mn_major(
    rng: np.random.Generator, swizzle: int, transpose_a: int, transpose_b: int
) -> None:
    n = 72 if swizzle == 0 else 128
    a_rows, b_rows = rows_of(rng, 64, "f16"), rows_of(rng, n, "f16")
    place = (place_k_major, place_mn_major)
    a, a_leading, a_stride = place[transpose_a](a_rows, swizzle)
    b, b_leading, b_stride = place[transpose_b](b_rows, swizzle)
    image, at = together(a, b)
    rest = f", 1, 1, {transpose_a}, {transpose_b}"
    body = BODY.format(wgmma=instruction(n, 16, "f32.f16.f16", rest=rest))
    found = run(
        *(n, image, body, descriptor(0, a_leading, a_stride, swizzle)),
        descriptor(at, b_leading, b_stride, swizzle),
    )[0]
    check(found, values(a_rows, "f16") @ values(b_rows, "f16").T, True)


def test_steps_along_k_of_a_swizzled_tile(rng: np.random.Generator) -> None:
    """Tiles with rows of 128 bytes, as bulk copies put them: a step along K starts 32 further."""
    a, b = (rng.integers(-128, 128, (rows, 128), np.int8) for rows in (64, 32))

    def place(tile: np.ndarray) -> np.ndarray:
        chunks = tile.view(np.uint8).reshape(-1, 8, 16)
        row = np.arange(len(chunks))[:, None]
        return chunks[row, np.arange(8) ^ row % 8].reshape(-1)

    image, at = together(place(a), place(b))
    first, second = descriptor(0, 16, 1024, 128), descriptor(at, 16, 1024, 128)
    step = instruction(32, 32, "s32.s8.s8")
    steps = "\n    add.u64 %da, %da, 2; add.u64 %db, %db, 2;\n    ".join([step] * 4)
    found = run(32, image, BODY.format(wgmma=steps), first, second, start=7)[0]
    check(found, a.astype(np.float64) @ b.T.astype(np.float64) + 7, False)


@pytest.mark.parametrize(("k", "types"), [(16, "f32.f16.f16"), (32, "s32.s8.u8")])
def test_a_from_registers(rng: np.random.Generator, k: int, types: str) -> None:
    """Two warpgroups with rows of their own."""
    _, a_type, b_type = types.split(".")
    is_float = types.startswith("f")
    a_rows, b_rows = rows_of(rng, 128, a_type), rows_of(rng, 16, b_type)
    words = a_rows.view(np.uint32).reshape(2, 4, 2, 8, 2, 4)  # group, warp, low, row, half, word
    fragments = np.ascontiguousarray(words.transpose(0, 1, 3, 5, 4, 2)).reshape(256, 4)
    b, leading, stride = place_k_major(b_rows, 0)
    rest = ", 1, 1, 0" if is_float else ""
    step = instruction(16, k, types, "{%a0, %a1, %a2, %a3}", rest)
    body = BODY.format(wgmma=step)
    found = run(16, b, body, 0, descriptor(0, leading, stride), fragments, threads=256)
    check(found.reshape(128, 16), values(a_rows, a_type) @ values(b_rows, b_type).T, is_float)


def test_scales(rng: np.random.Generator) -> None:
    """scale-d false forgets D, imm-scale -1 negates."""
    a_rows, b_rows = rows_of(rng, 64, "f16"), rows_of(rng, 8, "f16")
    (a, leading, stride), (b, *_) = place_k_major(a_rows, 0), place_k_major(b_rows, 0)
    image, at = together(a, b)
    first, second = descriptor(0, leading, stride), descriptor(at, leading, stride)
    step = instruction(8, 16, "f32.f16.f16", rest=", -1, 1, 0, 0")
    product = values(a_rows, "f16") @ values(b_rows, "f16").T
    start = int(np.float32(3).view(np.uint32))
    found = run(8, image, BODY.format(wgmma=step), first, second, start=start)[0]
    check(found, 3 - product, True)
    step = step.replace("%on", "%off").replace("-1, 1", "-1, -1")
    found = run(8, image, BODY.format(wgmma=step), first, second, start=start)[0]
    check(found, product, True)


@pytest.mark.parametrize(
    "line",
    [
        instruction(12, 16, "f32.f16.f16", rest=", 1, 1, 0, 0"),
        instruction(40, 32, "s32.s8.s8"),
        instruction(8, 16, "s32.s8.s8"),
        instruction(8, 32, "satfinite.s32.s8.s8"),
        instruction(8, 32, "s32.s8.s8", rest=", 1, 1, 0, 0"),
        instruction(8, 256, "s32.b1.b1.xor.popc"),
        instruction(8, 16, "f32.f16.f16", rest=", 2, 1, 0, 0"),
    ],
)
def test_what_the_machine_refuses(line: str) -> None:
    with pytest.raises(PtxSyntaxError):
        run(64, np.zeros(4096, np.uint8), BODY.format(wgmma=line), 0, 0)


def test_several_warpgroups_of_many_blocks_share_no_state() -> None:
    """A block of 384 threads of which one warpgroup multiplies."""
    image = np.full(4096, 1, np.uint8)
    step = instruction(8, 32, "s32.s8.s8")
    body = f"""
    setp.ge.u32 %p, %t, 128;
    @%p bra done;
    {BODY.format(wgmma=step)}
done:
"""
    word = descriptor(0, 128, 256)
    found = run(8, image, body, word, word, threads=384)
    assert (found[0] == 32).all()
    assert (found[1:] == 0).all()


def test_the_kernel_must_wait_before_it_ends() -> None:
    image = np.full(4096, 1, np.uint8)
    body = """
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%d0, %d1, %d2, %d3}, %da, %db, %on;
    ret;
"""
    word = descriptor(0, 128, 256)
    with pytest.raises(PtxFault, match="ends while this wgmma"):
        run(8, image, body, word, word)
