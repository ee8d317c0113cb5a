"""The registers that a block's warps share out among each other by `setmaxnreg`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import LaneFault
from .lanes import WARP, Lanes

_UNIT = 8
_MOST = 255


class RegisterPool:
    """Registers a thread of each warp. A block starts with as many as its launch gives it: those of
    `.maxnreg`, or as `.maxntid` (or `.reqntid`) and `.minnctapersm` allow."""

    def __init__(
        self, bounds: dict[str, Sequence[int]], registers_per_sm: int, lanes_per_block: int
    ):
        self.warps_per_block = lanes_per_block // WARP
        self.start = _registers_at_start(bounds, registers_per_sm)

    def reset(self, blocks: int) -> None:
        self.held = np.full(blocks * self.warps_per_block, self.start)

    def change(self, count: int, more: bool, lanes: Lanes) -> np.ndarray:
        """Which of `lanes` have their registers now; the others' warps must wait for some."""
        if not self.start:
            raise LaneFault(
                "setmaxnreg in a kernel whose registers nothing bounds: .maxnreg, .maxntid or "
                ".reqntid is missing",
                int(lanes.indices[0]),
            )
        given = np.zeros(len(lanes.indices), np.bool_)
        warp_of_lane = lanes.indices // WARP
        for warp in np.unique(warp_of_lane).tolist():
            here = warp_of_lane == warp
            if count < self.held[warp] if more else count > self.held[warp]:
                word = "inc" if more else "dec"
                raise LaneFault(
                    f"setmaxnreg.{word} from {self.held[warp]} to {count} registers",
                    int(lanes.indices[here][0]),
                )
            block = warp // self.warps_per_block * self.warps_per_block
            others = self.held[block : block + self.warps_per_block].sum() - self.held[warp]
            if others + count <= self.start * self.warps_per_block:
                self.held[warp] = count
                given |= here
        return given


def _registers_at_start(bounds: dict[str, Sequence[int]], registers_per_sm: int) -> int:
    if "maxnreg" in bounds:
        return bounds["maxnreg"][0]
    threads = bounds.get("reqntid") or bounds.get("maxntid")
    if not threads:
        return 0
    blocks = bounds.get("minnctapersm", (1,))[0]
    share = registers_per_sm // (int(np.prod(threads)) * blocks)
    return min(share, _MOST + 1) // _UNIT * _UNIT
