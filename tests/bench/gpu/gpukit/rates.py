"""Part `rates`: operations a second of the tensor cores' instructions, copied bytes a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import KitDevice
from .kit import Kit, RateJob
from .operands import hashed

COPY_KERNEL, COPY_DRIVER = "copy by a kernel", "copy by the driver"
COPY_BLOCK = 16384  # bytes that a block of the copying kernel copies: 256 threads x 4 x 16
HALF_TOLERANCE = 1e-2

# The rate that operations of a unit are held against.
INSTRUCTION = {
    "b1": "mma.sync b1.m16n8k256",
    "s8": "mma.sync s8.m16n8k32",
    "f16": "mma.sync f16.m16n8k16",
    "wgmma_s8": "wgmma s8.m64n128k32",
    "wgmma_f16": "wgmma f16.m64n128k16",
}


def names(kit: Kit) -> list[str]:
    return [COPY_KERNEL, COPY_DRIVER, *(job.name for job in kit.rates)]


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    if index < 2:
        return _copy(device, names(device.kit)[index], device.kit.copy_bytes)
    job = device.kit.rates[index - 2]
    grid = job.blocks_per_sm * device.multiprocessors
    threads = device.kit.kernels[job.kernel].threads
    out = device.buffer("rates", 4 * grid * threads * 128)
    launch = device.launch_of(job.kernel, grid, out, job.turns, 1)
    seconds, runs = device.seconds([launch])
    return {
        "family": job.family,
        "seconds": seconds,
        "clock": device.clock(),
        "repetitions": runs,
        "operations_per_second": job.operations * job.turns * grid / seconds,
        **({"values_agree": agrees(device, job)} if job.name.startswith("wgmma") else {}),
    }


def _copy(device: KitDevice, name: str, nbytes: int) -> dict[str, Any]:
    nbytes = nbytes // COPY_BLOCK * COPY_BLOCK
    source = device.buffer("copy from", nbytes, "fill_bytes")
    to = device.buffer("copy to", nbytes)
    if name == COPY_KERNEL:
        launch = device.launch_of("copy_16", nbytes // COPY_BLOCK, to, source)
        seconds = min(device.time_graph([launch], 20))
    else:
        seconds = device.copy_seconds(to, source, nbytes)
    ends = (0, nbytes - COPY_BLOCK)
    whole = all(
        np.array_equal(device.read(to + at, COPY_BLOCK), device.read(source + at, COPY_BLOCK))
        for at in ends
    )
    return {
        "seconds": seconds,
        "bytes": nbytes,
        # Read and written, as a copy does both.
        "bytes_per_second": 2 * nbytes / seconds,
        "values_agree": whole,
    }


def agrees(device: KitDevice, job: RateJob) -> bool:
    """Whether one turn of a wgmma kernel gives what numpy makes of the operands: the descriptors
    and the layout of the accumulators are as they should be."""
    m, n, _ = job.shape
    threads = device.kit.kernels[job.kernel].threads
    out = device.buffer("rates", 4 * threads * 128)
    device.run(device.launch_of(job.kernel, 1, out, 1, 5))
    words = device.read(out, 4 * threads * (n // 2)).view(np.uint32)
    found = words.reshape(-1, 4, 8, 4, n // 8, 2, 2)  # group, warp, row, pair, column, low, parity
    found = found.transpose(0, 1, 5, 2, 4, 3, 6).reshape(-1, m, n)
    steps = job.instructions // (threads // 128)
    expected = steps * wgmma_product(job, seed=5)
    if job.family in ("b1", "s8"):
        return bool((found == expected.astype(np.int64).astype(np.uint32)).all())
    error = np.abs(found.view(np.float32) - expected).max()
    return bool(error <= HALF_TOLERANCE * np.abs(expected).max())


def wgmma_product(job: RateJob, seed: int) -> np.ndarray:
    """A times B, f64 [m, n], of the operands that a wgmma kernel puts into shared memory."""
    m, n, _ = job.shape
    words = hashed(np.arange((m + n) * 8, dtype=np.uint32) + np.uint32(seed))
    if job.family == "f16":
        words = (words & np.uint32(0x83FF83FF)) | np.uint32(0x3C003C00)
    # Rows of 32 bytes; 8 rows x 16 bytes follow each other, then the other half of these rows.
    tiles = words.view(np.uint8).reshape(-1, 2, 8, 16).transpose(0, 2, 1, 3).reshape(-1, 32)
    if job.family == "b1":
        values = np.unpackbits(tiles, axis=1, bitorder="little")
    else:
        values = tiles.view(np.int8 if job.family == "s8" else np.float16)
    a, b = values[:m].astype(np.float64), values[m:].astype(np.float64)
    return a @ b.T
