"""Bulk copies of the PTX machine: runs of bytes and boxes of tensors, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx.tensor_map import BadTensorMap, TensorMap, encode_tiled
from bulk_kernel import (
    EXPECT,
    IN,
    INIT,
    LOAD,
    OUT,
    WAIT,
    box_load,
    box_store,
    coordinates,
    run,
)

STORE = """
    fence.proxy.async.shared::cta;
    bar.sync 0;
    {store}
    @%leader cp.async.bulk.commit_group;
    @%leader cp.async.bulk.wait_group.read 0;
"""


def test_bytes_to_shared_memory(rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, 512, np.uint8)
    body = INIT + EXPECT.format(bytes=512) + LOAD.format(bytes=512) + WAIT + OUT
    assert (run(body, 512, data, 512) == data).all()


def test_bytes_out_of_shared_memory(rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, 512, np.uint8)
    store = "@%leader cp.async.bulk.global.shared::cta.bulk_group [%out], [%s], 480;"
    out = run(IN + STORE.format(store=store), 512, data, 512)
    assert (out[:480] == data[:480]).all()
    assert not out[480:].any()


def turned(box: np.ndarray, swizzle: int) -> np.ndarray:
    """Rows of `swizzle` bytes, [rows, chunks, 16], as a swizzle lays them out."""
    row, chunk = np.ogrid[: len(box), : box.shape[1]]
    return box[row, chunk ^ (row * swizzle // 128 % (swizzle // 16))]


@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
@pytest.mark.parametrize("start", [(0, 0), (-8, -3), (24, 11), (64, 0), (-64, 2)])
def test_box_of_a_matrix(rng: np.random.Generator, swizzle: int, start: tuple[int, int]) -> None:
    """u16 [13, 40] of rows of 96 bytes; the box has 8 rows, as wide as the swizzle."""
    width = {0: 16, 1: 16, 2: 32, 3: 64}[swizzle]
    matrix = rng.integers(0, 1 << 16, (13, 48), np.uint16)
    tile = 8 * width * 2
    body = INIT + coordinates(*start) + "\n" + EXPECT.format(bytes=tile)
    body += box_load(2) + WAIT + OUT
    tensor = (1, (40, 13), (96,), (width, 8), (1, 1))
    found = run(body, tile, matrix, tile, tensor, swizzle=swizzle)
    padded = np.zeros((13 + 200, 40 + 200), np.uint16)
    padded[100:113, 100:140] = matrix[:, :40]
    x, y = start
    expected = padded[100 + y : 108 + y, 100 + x : 100 + x + width]
    chunks = np.ascontiguousarray(expected).view(np.uint8).reshape(8, -1, 16)
    if swizzle:
        chunks = turned(chunks, 16 << swizzle)
    assert (found == chunks.reshape(-1)).all()


def test_box_of_five_dimensions_with_steps(rng: np.random.Generator) -> None:
    """Every second element along dimension 2; bounds cut dimensions 1 and 4."""
    tensor = rng.integers(-99, 99, (3, 4, 6, 5, 32), np.int8)
    strides = tuple(tensor.strides[::-1][1:])
    box, steps = (16, 4, 5, 2, 2), (1, 1, 2, 1, 1)
    tile = 16 * 4 * 3 * 2 * 2
    body = INIT + coordinates(3, 2, 1, 1, 2) + "\n" + EXPECT.format(bytes=tile)
    body += box_load(5) + WAIT + OUT
    found = run(body, tile, tensor, tile, (0, (32, 5, 6, 4, 3), strides, box, steps))
    padded = np.pad(tensor, ((0, 4), (0, 4), (0, 4), (0, 4), (0, 0)))
    expected = padded[2:4, 1:3, 1:6:2, 2:6, 3:19]
    assert (found.view(np.int8).reshape(expected.shape) == expected).all()


@pytest.mark.parametrize("swizzle", [0, 3])
def test_box_to_a_matrix(rng: np.random.Generator, swizzle: int) -> None:
    """What lies beyond the matrix is not written."""
    data = rng.integers(0, 256, (8, 128), np.uint8)
    laid_out = turned(data.reshape(8, 8, 16), 128) if swizzle else data
    body = coordinates(16, 3) + IN + STORE.format(store=box_store(2))
    tensor = (2, (40, 9), (176,), (32, 8), (1, 1))
    image = np.ascontiguousarray(laid_out)
    out = run(body, 1024, image, 9 * 176, tensor, of_output=1, swizzle=swizzle)
    expected = np.zeros((9, 176), np.uint8)
    expected[3:, 64:160] = data[:6, :96]
    assert (out.reshape(9, 176) == expected).all()


def test_prefetches_and_hints(rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, 128, np.uint8)
    load = LOAD.format(bytes=128).replace("::bytes ", "::bytes.L2::cache_hint ")
    body = (
        "mov.b64 %wide, 0;\nprefetch.tensormap [%map];\n"
        "cp.async.bulk.prefetch.L2.global [%input], 128;\n"
        + INIT
        + EXPECT.format(bytes=128)
        + load.replace("[%m];", "[%m], %wide;")
        + WAIT
        + OUT
    )
    assert (run(body, 128, data, 128) == data).all()


def test_a_map_is_read_back_as_it_was_made() -> None:
    words = encode_tiled(6, 0x7F00_0000_1000, (64, 7), (128,), (64, 4), (1, 2), swizzle=3)
    assert len(words) == 128
    tensor = TensorMap.decode(np.frombuffer(words, np.uint8))
    assert tensor == TensorMap(0x7F00_0000_1000, 2, (64, 7), (128,), (64, 4), (1, 2), 128)
    assert tensor.box_bytes == 64 * 2 * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_type": 10},
        {"address": 8},
        {"strides": (40,)},
        {"box": (3, 1)},
        {"box": (512, 1)},
        {"box": (64, 1), "swizzle": 2},
        {"steps": (1, 9)},
        {"sizes": (0, 7)},
        {"interleave": 1},
        {"fill": 1},
    ],
)
def test_what_makes_no_map(wrong: dict) -> None:
    right = {
        "data_type": 1,
        "address": 256,
        "sizes": (64, 7),
        "strides": (128,),
        "box": (64, 4),
        "steps": (1, 1),
    }
    encode_tiled(**right)
    with pytest.raises(BadTensorMap):
        encode_tiled(**{**right, **wrong})
