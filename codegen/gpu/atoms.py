"""The forms of `mma.sync`: shapes, who holds what, and how they are emitted.

All forms follow one scheme (PTX ISA, "Matrix Fragments for mma"): with e elements in a 32-bit
register, lane l = 4 g + q holds elements e q .. e q + e - 1 of a row; further registers are 8 rows
down, then 4 e elements along K. Accumulators are pairs of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..builder import Value, vec
from .arch import GpuArch
from .builder import GpuBuilder
from .layout import Layout, ThreadValue

Element = Literal["b1", "s8", "u8", "f16", "bf16"]

ELEMENT_BITS: dict[str, int] = {"b1": 1, "s8": 8, "u8": 8, "f16": 16, "bf16": 16}
_QUAD, _GROUPS = 4, 8  # lanes that share a row, and rows of a register


@dataclass(frozen=True)
class MmaAtom:
    """`C[m, n] += A[m, k] * B[k, n]` by the 32 lanes of a warp.

    Fragments are indexed by (lane, value); tiles are A (m, k), B (k, n) and C (m, n).
    """

    family: Literal["b1", "s8", "f16", "bf16"]
    m: int
    n: int
    k: int

    @property
    def form(self) -> str:
        """As in `GpuArch.mma`."""
        return f"{self.family}.m{self.m}n{self.n}k{self.k}"

    @property
    def accumulator(self) -> str:
        return "f32" if self.family in ("f16", "bf16") else "i32"

    @property
    def per_register(self) -> int:
        """Elements of A or B in a register."""
        return 32 // ELEMENT_BITS[self.family]

    @property
    def _rows(self) -> int:
        return self.m // _GROUPS

    @property
    def _steps(self) -> int:
        return self.k // (_QUAD * self.per_register)

    @property
    def a_registers(self) -> int:
        return self._rows * self._steps

    @property
    def b_registers(self) -> int:
        return self._steps

    @property
    def c_registers(self) -> int:
        return 2 * self._rows

    @cached_property
    def a(self) -> ThreadValue:
        e, m = self.per_register, self.m
        values = Layout((e, self._rows, self._steps), (m, _GROUPS, _QUAD * e * m))
        return _fragment((self.m, self.k), (e * m, 1), values)

    @cached_property
    def b(self) -> ThreadValue:
        e = self.per_register
        return _fragment((self.k, self.n), (e, self.k), Layout((e, self._steps), (1, _QUAD * e)))

    @cached_property
    def c(self) -> ThreadValue:
        values = Layout((2, self._rows), (self.m, _GROUPS))
        return _fragment((self.m, self.n), (2 * self.m, 1), values)

    def emit(
        self,
        b: GpuBuilder,
        a_registers: Sequence[Value],
        b_registers: Sequence[Value],
        accumulators: Sequence[Value],
        signs: tuple[Element, Element] = ("s8", "s8"),
    ) -> list[Value]:
        """The new accumulators. A and B are i32 registers; `signs` counts for 8-bit integers."""
        operands = [*a_registers, *b_registers]
        if self.family == "f16":
            operands = [b.from_bits(register, vec(2, "f16")) for register in operands]
        name = f"llvm.nvvm.mma.m{self.m}n{self.n}k{self.k}.row.col.{self._types(signs)}"
        if self.family == "b1":
            name = name.replace("mma.", "mma.and.popc.", 1)
        results = [self.accumulator] * self.c_registers
        return b.calls(name, results, *operands, *accumulators)

    def _types(self, signs: tuple[Element, Element]) -> str:
        """How LLVM spells the operand types in an intrinsic's name."""
        if self.family == "s8":
            return signs[0] if signs[0] == signs[1] else ".".join(signs)
        return "f32.f32" if self.family == "f16" else self.family


def _fragment(tile: tuple[int, int], lanes: tuple[int, int], values: Layout) -> ThreadValue:
    shape = ((_QUAD, _GROUPS), values.shape)
    return ThreadValue(tile, Layout(shape, (lanes, values.stride)))


ATOMS: dict[str, MmaAtom] = {
    atom.form: atom
    for atom in (
        MmaAtom("b1", 16, 8, 256),
        MmaAtom("b1", 16, 8, 128),
        MmaAtom("s8", 16, 8, 32),
        MmaAtom("s8", 8, 8, 16),
        MmaAtom("f16", 16, 8, 16),
        MmaAtom("f16", 16, 8, 8),
        MmaAtom("bf16", 16, 8, 16),
    )
}


@dataclass(frozen=True)
class MmaStep:
    """The product of `atom`'s shape by native forms: the atom itself, or several smaller ones.

    Registers of the smaller fragments are registers of the larger ones, so that a caller sees
    `atom` alone.
    """

    atom: MmaAtom
    native: MmaAtom
    signs: tuple[Element, Element] = ("s8", "s8")

    @property
    def instructions(self) -> int:
        """Native instructions of one step."""
        atom, native = self.atom, self.native
        return (atom.m // native.m) * (atom.k // native.k)

    def emit(
        self,
        b: GpuBuilder,
        a_registers: Sequence[Value],
        b_registers: Sequence[Value],
        accumulators: Sequence[Value],
    ) -> list[Value]:
        """As `MmaAtom.emit` of `atom`."""
        atom, native = self.atom, self.native
        rows_per_step = atom.m // _GROUPS
        native_rows, native_steps = native.m // _GROUPS, native.b_registers
        result = list(accumulators)
        for step in range(0, atom.b_registers, native_steps):
            for row in range(0, rows_per_step, native_rows):
                a_part = [
                    a_registers[s * rows_per_step + r]
                    for s in range(step, step + native_steps)
                    for r in range(row, row + native_rows)
                ]
                c_part = slice(2 * row, 2 * (row + native_rows))
                b_part = b_registers[step : step + native_steps]
                result[c_part] = native.emit(b, a_part, b_part, result[c_part], self.signs)
        return result


# What a step is made of, the best form first.
_FORMS: dict[str, tuple[str, ...]] = {
    "s8": ("s8.m16n8k32", "s8.m8n8k16"),
    "f16": ("f16.m16n8k16", "f16.m16n8k8"),
    "bf16": ("bf16.m16n8k16",),
    "b1": ("b1.m16n8k256",),
}


def mma_step(
    arch: GpuArch, family: str, signs: tuple[Element, Element] = ("s8", "s8")
) -> MmaStep | None:
    """The step of a family of operands on `arch`; None where no form of it is native."""
    forms = _FORMS[family]
    for form in forms:
        if arch.has(form):
            return MmaStep(ATOMS[forms[0]], ATOMS[form], signs)
    return None
