"""Instruction sets that CPU kernels are emitted for, as data: one row of `ALL` for each.

An artifact holds its kernels once for each; the loader takes the best one that the CPU has.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from abqc.errors import AbqcError

# Tile registers; products of bytes added up in fours; products of bf16 added up in pairs.
Use = Literal["tiles", "dot", "bf16"]


@dataclass(frozen=True)
class Isa:
    """An instruction set, and how kernels are emitted for it.

    `llvm_cpu` and `llvm_features` select LLVM's code; `cpu_flags` are the names in Linux's
    /proc/cpuinfo that must all be present. `vector_bits` is the width of a register, `registers`
    their number.

    One that `extends` another has kernels of its own where these make use of what it `adds`; all
    others are those of the other one, which may extend a third.
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
    # LLVM intrinsics: two registers of i32 to the nearest i16, two of i16 to the nearest u8, those
    # of both side by side in every 128 bits (VPACKSSDW, VPACKUSWB)
    pack_i32: str
    pack_i16: str
    madd_u8i8: str | None = None  # products of u8 by i8, added in pairs to i16, saturating
    dot_u8i8: str | None = None  # products of u8 by i8, added in fours to i32 (VPDPBUSD)
    # LLVM intrinsic: products of bf16 pairs, added in pairs to f32 (VDPBF16PS)
    dot_bf16: str | None = None
    to_bf16: str | None = None  # f32 to the nearest bf16, subnormals to zero (VCVTNEPS2BF16)
    tiles: Literal["", "amx", "memory"] = ""  # tile registers, or what acts for them
    bf16_tiles: bool = False  # which multiply bf16 too
    extends: str | None = None
    adds: Use | None = None

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` bits a register holds."""
        return self.vector_bits // bits

    @property
    def feature_text(self) -> str:
        return ",".join(self.llvm_features)


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
    pack_i32="llvm.x86.avx2.packssdw",
    pack_i16="llvm.x86.avx2.packuswb",
    madd_u8i8="llvm.x86.avx2.pmadd.ub.sw",
)

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
        *AVX2.cpu_flags,
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
    ),
    vector_bits=512,
    registers=32,
    fma=True,
    f16c=True,
    madd_i16="llvm.x86.avx512.pmaddw.d.512",
    pack_i32="llvm.x86.avx512.packssdw.512",
    pack_i16="llvm.x86.avx512.packuswb.512",
    madd_u8i8="llvm.x86.avx512.pmaddubs.w.512",
    dot_u8i8="llvm.x86.avx512.vpdpbusd.512",
)

AVX512BF16 = replace(
    AVX512,
    name="avx512bf16",
    llvm_features=(*AVX512.llvm_features, "+avx512bf16"),
    cpu_flags=(*AVX512.cpu_flags, "avx512_bf16"),
    dot_bf16="llvm.x86.avx512bf16.dpbf16ps.512",
    to_bf16="llvm.x86.avx512bf16.cvtneps2bf16.512",
    extends="avx512",
    adds="bf16",
)

AMX = replace(
    AVX512,
    name="amx",
    llvm_features=(*AVX512.llvm_features, "+amx-tile", "+amx-int8"),
    cpu_flags=(*AVX512.cpu_flags, "amx_tile", "amx_int8"),
    tiles="amx",
    extends="avx512",
    adds="tiles",
)

AMXBF16 = replace(
    AMX,
    name="amxbf16",
    llvm_features=(*AMX.llvm_features, "+avx512bf16", "+amx-bf16"),
    cpu_flags=(*AMX.cpu_flags, "avx512_bf16", "amx_bf16"),
    dot_bf16=AVX512BF16.dot_bf16,
    to_bf16=AVX512BF16.to_bf16,
    bf16_tiles=True,
    extends="amx",
    adds="bf16",
)

AVXVNNI = replace(
    AVX2,
    name="avxvnni",
    llvm_features=(*AVX2.llvm_features, "+avxvnni"),
    cpu_flags=(*AVX2.cpu_flags, "avx_vnni"),
    dot_u8i8="llvm.x86.avx512.vpdpbusd.256",
    extends="avx2",
    adds="dot",
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
    pack_i32="llvm.x86.sse2.packssdw.128",
    pack_i16="llvm.x86.sse2.packuswb.128",
)

ALL = (AMXBF16, AMX, AVX512BF16, AVX512, AVXVNNI, AVX2, PLAIN)  # best first

# The best that all CPUs of a level of the x86-64 psABI have; of v4 only some have VNNI.
LEVELS = {"x86-64": PLAIN, "x86-64-v2": PLAIN, "x86-64-v3": AVX2, "x86-64-v4": AVX2}


def by_name(name: str) -> Isa:
    """The one called `name`; KeyError lists the known ones."""
    for isa in ALL:
        if isa.name == name:
            return isa
    raise KeyError(f"no instruction set '{name}'; known: {', '.join(i.name for i in ALL)}")


def of_cpu(text: str) -> tuple[Isa, ...]:
    """Those that `--cpu` asks for, best first: `native` (the best ones of this machine), `all`, a
    level of x86-64, or names of instruction sets with commas between them.

    What one extends comes with it. Raises AbqcError for other texts.
    """
    if text == "all":
        return ALL
    if text == "native":
        base = available()[0]
        return (*(isa for isa in extending() if base in lineage(isa)), base)
    if text in LEVELS:
        return (LEVELS[text],)
    try:
        named = [by_name(name.strip()) for name in text.split(",")]
    except KeyError:
        names = ", ".join(isa.name for isa in ALL)
        raise AbqcError(
            f"'{text}' names no CPU",
            hint=f"say native, all, one of {', '.join(LEVELS)}, or instruction sets: {names}",
        ) from None
    wanted = {ancestor.name for isa in named for ancestor in lineage(isa)}
    return tuple(isa for isa in ALL if isa.name in wanted)


def lineage(isa: Isa) -> tuple[Isa, ...]:
    """It, what it extends, what that extends, and so on; the last one has all kernels."""
    return (isa,) if isa.extends is None else (isa, *lineage(by_name(isa.extends)))


def available() -> tuple[Isa, ...]:
    """Those of all kernels that this machine can run, best first."""
    return tuple(isa for isa in ALL if isa.extends is None and _runs(isa))


def extending() -> tuple[Isa, ...]:
    """Those of some kernels that this machine can run, best first."""
    return tuple(isa for isa in ALL if isa.extends is not None and runs_here(isa))


def runs_here(isa: Isa) -> bool:
    """Whether this machine can run its kernels; asks the system for tile registers."""
    return _runs(isa) and (isa.tiles != "amx" or _tiles_permitted())


def tiled() -> tuple[Isa, ...]:
    """Those that have tiles, of which memory's run anywhere; asks the system for the others."""
    in_memory = replace(available()[0], name="tiles in memory", tiles="memory", bf16_tiles=True)
    return (in_memory, *(isa for isa in extending() if isa.tiles == "amx"))


def _runs(isa: Isa) -> bool:
    return _cpu_flags().issuperset(isa.cpu_flags)


def _tiles_permitted() -> bool:
    """Ask that this process may use tile registers (Linux 5.16, Documentation/arch/x86/xstate)."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
