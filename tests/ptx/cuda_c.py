"""Runs kernels of CUDA C in the PTX machine: nvcc, buffers, launches, and data for them."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from abqc.runtime.ptx import Device, Kernel, parse
from abqc.runtime.ptx.counters import Counters

SOURCES = Path(__file__).parent / "cuda"
NVCC = shutil.which("nvcc")
N = 300  # elements that tests work on; not a multiple of a block

# Reads a buffer byte by byte: a fault where one was never written.
READ_BACK = parse("""
.version 8.0
.target sm_80
.address_size 64
.visible .entry read_back(.param .u64 buffer, .param .u32 bytes)
{
    .reg .pred %p;
    .reg .b32 %r<6>;
    .reg .b64 %rd<3>;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %tid.x;
    mad.lo.u32 %r3, %r1, 256, %r2;
    ld.param.u32 %r4, [bytes];
    setp.ge.u32 %p, %r3, %r4;
    @%p exit;
    ld.param.u64 %rd1, [buffer];
    cvt.u64.u32 %rd2, %r3;
    add.u64 %rd1, %rd1, %rd2;
    ld.global.u8 %r5, [%rd1];
    ret;
}
""").kernels["read_back"]


@dataclass(frozen=True)
class Output:
    """A buffer that nobody has written before the launch; the kernel must write all of it."""

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
        kernel = self.module.kernels[name]
        return self.run(kernel, grid, block, *arguments, shared_bytes=shared_bytes)

    def run(self, kernel: Kernel, grid, block, *arguments, shared_bytes: int = 0):
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
            kernel,
            grid=_three(grid),
            block=_three(block),
            parameters=parameters,
            shared_bytes=shared_bytes,
            counters=counters,
        )
        if counters:
            assert counters.counts().warps["control"] > 0
        for address, array in outputs:
            blocks = -(-array.nbytes // 256)
            device.launch(READ_BACK, (blocks, 1, 1), (256, 1, 1), [address, array.nbytes])
        results = [
            np.asarray(device.read(address, array.nbytes)).view(array.dtype).reshape(array.shape)
            for address, array in (*outputs, *inputs)
        ]
        return results[0] if len(outputs) == 1 else results


def _three(extent: int | tuple[int, ...]) -> tuple[int, ...]:
    extents = (extent,) if isinstance(extent, int) else extent
    return (*extents, 1, 1)[:3]


def compile_cuda(name: str, directory: Path) -> CudaFile:
    target = directory / f"{name}.ptx"
    command = [str(NVCC), "-ptx", "-arch=sm_80", "-o", str(target), str(SOURCES / f"{name}.cu")]
    subprocess.run(command, check=True)
    return CudaFile(target.read_text())


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def integers(rng: np.random.Generator, low: int, high: int, *shape: int, dtype: Any = np.int32):
    return rng.integers(low, high, shape, dtype)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, halves to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
