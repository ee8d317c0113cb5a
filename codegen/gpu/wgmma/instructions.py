"""`wgmma.mma_async` with A in registers and B in shared memory.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". Warp w of the four
holds rows 16 w .. 16 w + 15 of A and of the accumulators, as fragments of `mma.sync` m16n8
(atoms.py); accumulators 4 j .. 4 j + 3 are those of columns 8 j .. 8 j + 7. The instructions of a
warp run in order; registers of A and accumulators are theirs until `wait_products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..atoms import ELEMENT_BITS, Element
from ..builder import GpuBuilder
from .barriers import MEMORY

WARPGROUP = 128  # threads
WARPGROUP_WARPS = 4
ROWS = 64  # of A
A_REGISTERS = 4
STEP_BYTES = 32  # of K
COLUMNS_STEP, MOST_COLUMNS = 8, 256

# Of rows of an atom: what bits 62-63 of a descriptor say of the swizzle.
SWIZZLES = {128: 1, 64: 2, 32: 3}
ATOM_ROWS = 8
CHUNK_BYTES = 16  # of a row, that descriptors count


@dataclass(frozen=True)
class Wgmma:
    """One form: `columns` (a multiple of 8, up to 256) of B, types of A and B."""

    columns: int
    types: tuple[Element, Element]
    transposed: bool = False  # B, of 16-bit floats: its columns are contiguous

    @property
    def is_float(self) -> bool:
        return self.types[0] in ("f16", "bf16")

    @property
    def accumulator(self) -> str:
        return "f32" if self.is_float else "i32"

    @property
    def accumulators(self) -> int:
        """Of a thread."""
        return self.columns // 2

    def emit(
        self,
        b: GpuBuilder,
        a: Sequence[Value],
        descriptor: Value,
        accumulators: Sequence[Value],
        adds: Value | bool,
    ) -> list[Value]:
        """Start D = A * B (+ D where `adds`, i1); D is ready after `wait`."""
        count = self.accumulators
        sums = ", ".join(f"${i}" for i in range(count))
        at = 2 * count
        registers = ", ".join(f"${at + i}" for i in range(A_REGISTERS))
        flag = f"${at + A_REGISTERS + 1}"
        k = 8 * STEP_BYTES // ELEMENT_BITS[self.types[0]]
        total = "f32" if self.is_float else "s32"
        name = f"wgmma.mma_async.sync.aligned.m{ROWS}n{self.columns}k{k}"
        name += f".{total}.{self.types[0]}.{self.types[1]}"
        name += ".and.popc" if self.types[0] == "b1" else ""
        immediates = f", 1, 1, {int(self.transposed)}" if self.is_float else ""  # no negation
        text = (
            f"{{ .reg .pred adds; setp.ne.b32 adds, {flag}, 0; {name} "
            f"{{{sums}}}, {{{registers}}}, ${at + A_REGISTERS}, adds{immediates}; }}"
        )
        kind = "f" if self.is_float else "r"
        constraints = [f"={kind}"] * count + [str(i) for i in range(count)]
        constraints += ["r"] * A_REGISTERS + ["l", "r", MEMORY]
        scale = b.const(int(adds), "i32") if isinstance(adds, bool) else b.zext(adds, "i32")
        operands = [*accumulators, *a, descriptor, scale]
        types = [self.accumulator] * count
        return b.asm(text, ",".join(constraints), types, *operands, effects=True)


def begin_products(b: GpuBuilder, registers: Sequence[Value]) -> list[Value]:
    """Before products that read or add to these registers, written since those before: they, to be
    used only so (copies of them must not come later)."""
    return _pass_through(b, "wgmma.fence.sync.aligned;", registers)


def commit_products(b: GpuBuilder) -> None:
    """End a group of products."""
    b.asm("wgmma.commit_group.sync.aligned;", MEMORY, [], effects=True)


def wait_products(b: GpuBuilder, pending: int) -> None:
    """Until at most `pending` groups of this warp's are under way."""
    b.asm(f"wgmma.wait_group.sync.aligned {pending};", MEMORY, [], effects=True)


def finished(b: GpuBuilder, accumulators: Sequence[Value]) -> list[Value]:
    """Wait for all products; the accumulators, to be read only so."""
    return _pass_through(b, "wgmma.wait_group.sync.aligned 0;", accumulators)


def _pass_through(b: GpuBuilder, text: str, registers: Sequence[Value]) -> list[Value]:
    types = [str(value.type) for value in registers]
    kinds = ["f" if type_ == "f32" else "r" for type_ in types]
    constraints = [f"={kind}" for kind in kinds] + [str(i) for i in range(len(types))]
    return b.asm(text, ",".join([*constraints, MEMORY]), types, *registers, effects=True)


def descriptor_bits(atom_bytes: int) -> int:
    """The upper word of a descriptor of B, K-major in atoms of 8 rows of so many bytes, one behind
    the other: the stride between atoms (bits 32-45, in 16 bytes) and the swizzle (62-63)."""
    return (ATOM_ROWS * atom_bytes >> 4) | SWIZZLES[atom_bytes] << 30


def descriptor(b: GpuBuilder, address: Value, atom_bytes: int, leading: int = 16) -> Value:
    """The descriptor (i64) of rows from byte `address` of shared memory on; `leading` bytes are
    between atoms along the rows of a transposed matrix, of others it says nothing."""
    upper = descriptor_bits(atom_bytes) << 32 | leading_bits(leading)
    return _descriptor(b, address, upper)


def descriptor_at(b: GpuBuilder, place: Value, atom_bytes: int) -> Value:
    """The same without `leading`, of a place (i32) in 16 bytes: to it as many may be added as fit,
    by one instruction, and what `leading_bits` gives."""
    upper = b.const(descriptor_bits(atom_bytes), "i32")
    return b.asm("mov.b64 $0, {$1, $2};", "=l,r,r", ["i64"], place, upper)[0]


def leading_bits(leading: int) -> int:
    return leading >> 4 << 16


def plain_descriptor(b: GpuBuilder, address: Value, leading: int) -> Value:
    """The descriptor of rows without swizzle: 16 bytes of eight rows are one behind the other, the
    next eight rows follow, and the next 16 bytes along K are `leading` bytes further on."""
    upper = (ATOM_ROWS * CHUNK_BYTES >> 4) << 32 | leading_bits(leading)
    return _descriptor(b, address, upper)


def _descriptor(b: GpuBuilder, address: Value, upper: int) -> Value:
    low = (address & 0x3FFFF) >> 4
    return b.wide(low) | b.const(upper, "i64")
