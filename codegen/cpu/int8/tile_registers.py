"""Tile registers (Intel AMX), and the same in memory, for machines that have none.

Eight registers of up to 16 rows of 64 bytes:

    C0..C3   accumulators, i32 [height, 16]
    A0, A1   u8 [height, depth], four consecutive k in 4 bytes
    B0, B1   i8 [depth / 4, 16, 4]

or, of bf16, C f32, A [height, depth / 2] and B [depth / 4, 16, 2], `depth` being bytes.

A kernel configures them, and releases them at its end: whoever runs on the thread next may not know
of tiles. (Intel Architecture Instruction Set Extensions, chapter on AMX.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from abqc.codegen.builder import Builder, Value, vec

HEIGHT = 16  # rows of a register
WIDTH = 16  # accumulators in a row
ROW_BYTES = 64
C, A, B = (0, 1, 2, 3), (4, 5), (6, 7)
REGISTERS = 8


@dataclass(frozen=True)
class Tiles(ABC):
    """The registers as a kernel configures them. `height` (index) is at most HEIGHT, `depth` at
    most 64 and a multiple of 4. Registers are called by their numbers."""

    b: Builder
    height: Value
    depth: int

    def rows(self, register: int) -> Value:
        return self.b.index(self.depth // 4) if register in B else self.height

    def columns(self, register: int) -> int:
        """Bytes of a row."""
        return self.depth if register in A else ROW_BYTES

    @abstractmethod
    def zero(self, register: int) -> None: ...

    @abstractmethod
    def load(self, register: int, source: Value, at: Value, pitch: int | Value) -> None:
        """Load rows from byte `at` of a buffer on, which are `pitch` bytes apart."""

    @abstractmethod
    def store(self, register: int, target: Value, at: Value, pitch: int) -> None: ...

    @abstractmethod
    def dot(self, c: int, a: int, b: int) -> None:
        """C[m, n] += sum over k of A[m, k] B[k / 4, n, k % 4]."""

    @abstractmethod
    def dot_bf16(self, c: int, a: int, b: int) -> None:
        """C[m, n] += sum over k of A[m, k] B[k / 2, n, k % 2]: of f32, A and B having bf16."""

    @abstractmethod
    def release(self) -> None: ...


def tiles(b: Builder, height: Value, depth: int) -> Tiles:
    """Configured registers of the instruction set for which `b` builds; call it once a kernel."""
    if b.isa.tiles == "memory":
        return MemoryTiles(b, height, depth, b.alloca(REGISTERS * HEIGHT * ROW_BYTES, "i8"))
    made = HardwareTiles(b, height, depth)
    made.configure()
    return made


@dataclass(frozen=True)
class HardwareTiles(Tiles):
    """Instructions of AMX, by LLVM's intrinsics that name registers themselves."""

    def configure(self) -> None:
        """Palette 1; rows in bytes 48.., bytes of their rows in words from 16 on."""
        b = self.b
        memory = b.alloca(64, "i8")
        b.store(b.const(0, vec(64, "i8")), memory, 0)
        b.store(b.const(1, "i8"), memory, 0)
        columns = [self.columns(register) for register in range(REGISTERS)]
        b.store_as(b.consts(columns, "i16"), memory, 16)
        for register in range(REGISTERS):
            b.store(b.from_index(self.rows(register), "i8"), memory, 48 + register)
        b.effect("llvm.x86.ldtilecfg", b.address(memory, 0))

    def zero(self, register: int) -> None:
        self.b.effect("llvm.x86.tilezero", self._name(register))

    def load(self, register: int, source: Value, at: Value, pitch: int | Value) -> None:
        self._move("llvm.x86.tileloadd64", register, source, at, pitch)

    def store(self, register: int, target: Value, at: Value, pitch: int) -> None:
        self._move("llvm.x86.tilestored64", register, target, at, pitch)

    def dot(self, c: int, a: int, b: int) -> None:
        self.b.effect("llvm.x86.tdpbusd", *map(self._name, (c, a, b)))

    def dot_bf16(self, c: int, a: int, b: int) -> None:
        self.b.effect("llvm.x86.tdpbf16ps", *map(self._name, (c, a, b)))

    def release(self) -> None:
        self.b.effect("llvm.x86.tilerelease")

    def _move(
        self, intrinsic: str, register: int, buffer: Value, at: Value, pitch: int | Value
    ) -> None:
        b = self.b
        pointer = b.address(buffer, at)
        b.effect(intrinsic, self._name(register), pointer, b.from_index(b.index(pitch), "i64"))

    def _name(self, register: int) -> Value:
        return self.b.const(register, "i8")


@dataclass(frozen=True)
class MemoryTiles(Tiles):
    """The same on the stack, integers to the bit. Slow."""

    memory: Value

    def zero(self, register: int) -> None:
        b = self.b
        with b.loop(0, self.rows(register)) as rows:
            b.store_as(b.const(0, vec(WIDTH, "i32")), self.memory, self._at(register, rows.i))

    def load(self, register: int, source: Value, at: Value, pitch: int | Value) -> None:
        b, row = self.b, vec(self.columns(register), "i8")
        with b.loop(0, self.rows(register)) as rows:
            loaded = b.load_as(source, at + rows.i * pitch, row)
            b.store_as(loaded, self.memory, self._at(register, rows.i))

    def store(self, register: int, target: Value, at: Value, pitch: int) -> None:
        b, row = self.b, vec(self.columns(register), "i8")
        with b.loop(0, self.rows(register)) as rows:
            stored = b.load_as(self.memory, self._at(register, rows.i), row)
            b.store_as(stored, target, at + rows.i * pitch)

    def dot(self, c: int, a: int, b: int) -> None:
        build, line = self.b, vec(WIDTH, "i32")
        with build.loop(0, self.height) as rows, build.loop(0, self.depth // 4) as quads:
            at = self._at(c, rows.i)
            total = build.load_as(self.memory, at, line)
            four = build.load_as(self.memory, self._at(a, rows.i) + quads.i * 4, "i32")
            weights = build.load_as(self.memory, self._at(b, quads.i), line)
            for byte in range(4):
                code = build.splat((four >> 8 * byte) & 0xFF, WIDTH)
                total = total + code * (weights << (24 - 8 * byte)).sar(24)
            build.store_as(total, self.memory, at)

    def dot_bf16(self, c: int, a: int, b: int) -> None:
        build, line = self.b, vec(WIDTH, "i32")
        with build.loop(0, self.height) as rows, build.loop(0, self.depth // 4) as pairs:
            at = self._at(c, rows.i)
            total = build.load_as(self.memory, at, vec(WIDTH, "f32"))
            pair = build.load_as(self.memory, self._at(a, rows.i) + pairs.i * 4, "i32")
            factors = build.splat(pair, WIDTH)
            weights = build.load_as(self.memory, self._at(b, pairs.i), line)
            for half in range(2):
                x, w = (
                    build.bitcast((v << (16 - 16 * half)) & 0xFFFF0000, total.type)
                    for v in (factors, weights)
                )
                total = total + x * w
            build.store_as(total, self.memory, at)

    def release(self) -> None:
        pass

    def _at(self, register: int, row: Value) -> Value:
        return (row + register * HEIGHT) * ROW_BYTES
