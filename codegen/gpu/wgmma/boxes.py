"""The warp that copies by a tensor map: stages of rows as boxes, which the hardware swizzles.

    rows      a box for each atom along K: cp.async.bulk.tensor
    weights   as they are stored: a bulk copy for each tile

All of a stage reports to its barrier by bytes, so that no thread waits for copies, and as many
stages are under way as are empty. What a box has beyond the last row or code is zeros.
"""

from __future__ import annotations

from abqc.codegen.builder import Value
from abqc.runtime.tensor_parameter import Extent, TensorParameter

from .context import WgmmaContext
from .copy import WeightCopies
from .plan import WgmmaPlan
from .producer import CopyState
from .ring import Place, Ring

ROWS_SLOT, M_SLOT = 0, 4  # of the kernel's arguments


def rows_tensor(plan: WgmmaPlan) -> TensorParameter:
    """Codes of packed rows; a box is an atom of all rows of a block."""
    return TensorParameter(
        ROWS_SLOT,
        "u8",
        (Extent(plan.code_bytes), Extent(1, M_SLOT)),
        (Extent(plan.row_bytes),),
        (plan.atom_bytes, plan.schedule.block_m),
        plan.atom_bytes,
    )


class BoxCopies(WeightCopies):
    """A thread's part of a block's stages: lanes of the first copying warp, of which the first
    starts the boxes."""

    def __init__(self, ring: Ring, context: WgmmaContext, tensor: Value) -> None:
        super().__init__(ring, context)
        self.tensor, self.first_row = tensor, context.first_row

    def run(self, begin: Value, end: Value, state: CopyState) -> CopyState:
        """Copy the stages of turns `begin` to `end`, after those of the tile before."""
        with self.b.loop(begin, end, carry=state.values) as loop:
            state = CopyState.of(self.ring, loop.args)
            place = state.place
            self.ring.empty.wait(place.stage, place.phase ^ 1)
            self.copy_weights(loop.i, place)
            with self.b.when(self.thread == 0):
                self.copy_rows(loop.i, place)
            loop.carry(*CopyState(self.ring.next(place), state.started).values)
        return CopyState.of(self.ring, loop.results)

    def copy_rows(self, turn: Value, place: Place) -> None:
        """By one thread."""
        plan = self.plan
        stage = self.ring.base + self.ring.offset(place)
        size = plan.schedule.block_m * plan.atom_bytes
        for atom in range(plan.atoms):
            along = turn * plan.stage_row_bytes + atom * plan.atom_bytes
            target = stage + atom * size
            self.ring.full.copy_box(place.stage, target, self.tensor, [along, self.first_row])
