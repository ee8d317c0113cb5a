"""Kernels that repeat one `mma.sync`: what the tensor cores can do when nothing else is done."""

from __future__ import annotations

from functools import partial

from abqc.codegen.builder import Value
from abqc.codegen.gpu.arch import GpuArch
from abqc.codegen.gpu.atoms import ATOMS, MmaAtom
from abqc.codegen.gpu.builder import POINTER, GpuBuilder, kernel
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import ir
from gpukit.kit import RateJob

from .memory_kernels import hashed

THREADS = 256
CHAINS = 8  # independent accumulators of a warp
REPEATS = 4  # of all chains in a turn of the loop
BLOCKS_PER_SM = 2

# Signs at random, exponents of 1: sums stay finite, and operands switch as many wires as real ones.
_MASKS = {
    "f16": (0x83FF83FF - (1 << 32), 0x3C003C00),
    "bf16": (0x807F807F - (1 << 32), 0x3F803F80),
}


def mma_rates(arch: GpuArch, turns: int) -> list[tuple[Kernel, RateJob]]:
    """A kernel for each native form of `mma.sync`."""
    made = []
    for form, atom in ATOMS.items():
        if not arch.has(form):
            continue
        name = "rate_mma_" + form.replace(".", "_")
        instructions = CHAINS * REPEATS * THREADS // 32
        job = RateJob(
            *(f"mma.sync {form}", atom.family, name, (atom.m, atom.n, atom.k)),
            *(instructions, turns, BLOCKS_PER_SM),
        )
        made.append((Kernel(name, (1,), partial(_emit, name, atom)), job))
    return made


def _emit(name: str, atom: MmaAtom, module: ir.Module, arch: GpuArch) -> None:
    arguments = [POINTER, "i32", "i32"]
    with kernel(module, arch, name, arguments, threads=THREADS) as (b, block, out, turns, seed):
        place = block * THREADS + b.thread
        a = [_operand(b, atom, place * 8 + seed + i) for i in range(atom.a_registers)]
        w = [_operand(b, atom, place * 8 + seed + 64 + i) for i in range(atom.b_registers)]
        # Chains begin differently, so that none is computed for another.
        start = [_start(b, atom, place + chain) for chain in range(CHAINS)]
        width = atom.c_registers
        begin = [value for value in start for _ in range(width)]
        with b.loop(0, turns, carry=begin) as loop:
            sums = list(loop.args)
            for _ in range(REPEATS):
                for chain in range(0, CHAINS * width, width):
                    sums[chain : chain + width] = atom.emit(b, a, w, sums[chain : chain + width])
            loop.carry(*sums)
        total = loop.results[0]
        for value in loop.results[1:]:
            total = total + value
        b.store(total, out, b.wide(place) * 4)


def _operand(b: GpuBuilder, atom: MmaAtom, index: Value) -> Value:
    word = hashed(b, index)
    if atom.family in _MASKS:
        keep, exponent = _MASKS[atom.family]
        word = (word & keep) | exponent
    return word


def _start(b: GpuBuilder, atom: MmaAtom, index: Value) -> Value:
    return b.to_float(index) if atom.accumulator == "f32" else index
