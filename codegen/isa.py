"""Instruction sets that CPU kernels are emitted for, as data.

An artifact holds its kernels once per form; the loader takes the best one the CPU has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Isa:
    """One form of the CPU kernels.

    `llvm_cpu` and `llvm_features` select LLVM's code; `cpu_flags` are the names in Linux's
    /proc/cpuinfo that must all be present. `vector_bits` is the width of a register, `registers`
    their number.
    """

    name: str
    llvm_cpu: str
    llvm_features: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    vector_bits: int
    registers: int
    fma: bool
    f16c: bool  # converts between f16 and f32
    madd_i16: str  # LLVM intrinsic: products of i16 pairs, added in pairs to i32 (VPMADDWD)
    madd_u8i8: str | None = None  # products of u8 by i8, added in pairs to i16, saturating
    dot_u8i8: str | None = None  # products of u8 by i8, added in fours to i32 (VPDPBUSD)

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` bits a register holds."""
        return self.vector_bits // bits

    @property
    def feature_text(self) -> str:
        return ",".join(self.llvm_features)


AVX512 = Isa(
    name="avx512",
    llvm_cpu="x86-64-v4",
    llvm_features=(
        "+avx512vnni",
        "+avx512vbmi",
        "+avx512vbmi2",
        "+avx512vpopcntdq",
        "+avx512bitalg",
        "-prefer-256-bit",  # the matmul kernels are written for zmm registers
    ),
    cpu_flags=(
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
        "avx512vbmi",
        "avx512_vbmi2",
        "avx512_vpopcntdq",
        "avx512_bitalg",
        "avx2",
        "fma",
        "f16c",
        "bmi2",
    ),
    vector_bits=512,
    registers=32,
    fma=True,
    f16c=True,
    madd_i16="llvm.x86.avx512.pmaddw.d.512",
    madd_u8i8="llvm.x86.avx512.pmaddubs.w.512",
    dot_u8i8="llvm.x86.avx512.vpdpbusd.512",
)

AVX2 = Isa(
    name="avx2",
    llvm_cpu="x86-64",
    llvm_features=("+avx2", "+fma", "+f16c", "+bmi", "+bmi2", "+lzcnt", "+popcnt"),
    cpu_flags=("avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "popcnt"),
    vector_bits=256,
    registers=16,
    fma=True,
    f16c=True,
    madd_i16="llvm.x86.avx2.pmadd.wd",
    madd_u8i8="llvm.x86.avx2.pmadd.ub.sw",
)

PLAIN = Isa(
    name="plain",
    llvm_cpu="x86-64",
    llvm_features=(),
    cpu_flags=(),
    vector_bits=128,
    registers=16,
    fma=False,
    f16c=False,
    madd_i16="llvm.x86.sse2.pmadd.wd",
)

ALL = (AVX512, AVX2, PLAIN)


def by_name(name: str) -> Isa:
    """The form called `name`; KeyError lists the known ones."""
    for isa in ALL:
        if isa.name == name:
            return isa
    raise KeyError(f"no instruction set '{name}'; known: {', '.join(i.name for i in ALL)}")


def available() -> tuple[Isa, ...]:
    """The forms that this machine can run, best first."""
    flags = _cpu_flags()
    return tuple(isa for isa in ALL if flags.issuperset(isa.cpu_flags))


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
