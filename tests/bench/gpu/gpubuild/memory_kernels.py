"""Kernels that copy and fill, for bandwidth and for operands.

copy_16      (to, from)            a block copies 16384 bytes
fill_bytes   (to, seed i32)        a block writes 4096 bytes that look random
fill_floats  (to, seed i32)        likewise f32 in [-1, 1)
"""

from __future__ import annotations

from functools import partial

from abqc.codegen.builder import Value, vec
from abqc.codegen.gpu.arch import GpuArch
from abqc.codegen.gpu.builder import POINTER, GpuBuilder, kernel
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir
from gpukit.device import FILL_BYTES
from gpukit.operands import GOLDEN, MIX
from gpukit.rates import COPY_BLOCK

THREADS, ITEM = 256, 16
FOUR = 4  # loads of a thread under way


def memory_kernels() -> list[Kernel]:
    return [
        Kernel("copy_16", (COPY_BLOCK,), _copy),
        Kernel("fill_bytes", (FILL_BYTES,), partial(_fill, False)),
        Kernel("fill_floats", (FILL_BYTES,), partial(_fill, True)),
    ]


def _copy(module: ir.Module, arch: GpuArch) -> None:
    with kernel(module, arch, "copy_16", [POINTER, POINTER], threads=THREADS) as (
        b,
        block,
        to,
        source,
    ):
        begin = b.wide(block) * COPY_BLOCK + b.wide(b.thread) * ITEM
        places = [begin + i * THREADS * ITEM for i in range(FOUR)]
        values = [b.load(source, vec(4, "i32"), place) for place in places]
        for value, place in zip(values, places, strict=True):
            b.store(value, to, place)


def _fill(floats: bool, module: ir.Module, arch: GpuArch) -> None:
    name = "fill_floats" if floats else "fill_bytes"
    with kernel(module, arch, name, [POINTER, "i32"], threads=THREADS) as (b, block, to, seed):
        number = block * THREADS + b.thread
        words = [hashed(b, number * 4 + i + seed * GOLDEN_I32) for i in range(4)]
        if floats:
            words = [b.to_float(word) * 2.0**-31 for word in words]
        b.store(b.vector(words), to, b.wide(number) * ITEM)


def hashed(b: GpuBuilder, index: Value) -> Value:
    """`gpukit.operands.hashed` of an i32."""
    x = index * GOLDEN_I32
    x = x ^ (x >> 15)
    x = x * MIX_I32
    return x ^ (x >> 13)


def _signed(bits: int) -> int:
    return bits - (1 << 32)


GOLDEN_I32, MIX_I32 = _signed(GOLDEN), _signed(MIX)
