"""Tiles of keys and values as `wgmma` reads them: rows of atoms with the swizzle of 128 bytes."""

from __future__ import annotations

from abqc.codegen.builder import Value

from ..wgmma.instructions import COLUMNS_STEP
from .halves import TileShape

STAGE_LIMIT = 200 * 1024
ATOM = 64  # columns
ATOM_BYTES = 128
STEP_BYTES = 16 * ATOM_BYTES  # of 16 keys of an atom
# Registers of queries and sums beside 128 keys, by masks: ptxas 13.0 then spills nothing.
MOST_BESIDE_MANY = {"none": 96, "add": 48, "replace": 0}


class SwizzledShape(TileShape):
    """Tiles of whole atoms: all keys of 64 columns, then the next columns."""

    @property
    def name(self) -> str:
        return "swizzled_halves"

    @property
    def k_pitch(self) -> int:
        return -(-self.head // ATOM) * ATOM_BYTES

    @property
    def v_pitch(self) -> int:
        return -(-self.value_head // ATOM) * ATOM_BYTES

    @property
    def keys(self) -> int:
        """As many as registers hold scores and weights of, beside queries and sums; what reads a
        mask takes some, too."""
        few = self.parts == 2 or self.resident > MOST_BESIDE_MANY[self.spec.mask]
        return 64 if few else 128

    @property
    def sum_columns(self) -> int:
        """Of f16 behind one full atom of values: a second one is not in the tile, but is the same
        ones for all (wgmma.py). So the tensor cores do what would be an instruction for each score,
        of which narrow heads have many."""
        return COLUMNS_STEP if self.parts == 1 and self.value_head == ATOM else 0

    @property
    def stages(self) -> int:
        return min(4, STAGE_LIMIT // self.bytes)

    @property
    def atom_bytes(self) -> int:
        """From atoms to those of the next columns."""
        return self.keys * ATOM_BYTES

    def place(self, row: Value, column: Value, pitch: int) -> Value:
        inside = row * ATOM_BYTES + column % ATOM * 2
        return column // ATOM * self.atom_bytes + (inside ^ ((inside & 0x380) >> 3))
