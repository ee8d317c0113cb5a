"""The registers that a block's warps share out among each other by `setmaxnreg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .errors import LaneFault
from .lanes import WARP, Lanes
from .warpgroup import THREADS

_WARPS = THREADS // WARP
_UNIT = 8
_MOST = 255


class RegisterPool:
    """Registers a thread of each warp. A block starts with as many as ptxas gives it: those of
    `.maxnreg`, or as `.minnctapersm` blocks of `.maxntid` (or `.reqntid`) threads may have each."""

    def __init__(
        self, bounds: Mapping[str, Sequence[int]], registers_per_sm: int, lanes_per_block: int
    ):
        self.warps_per_block = lanes_per_block // WARP
        self.start = _registers_at_start(bounds, registers_per_sm)

    def reset(self, blocks: int) -> None:
        self.held = np.full(blocks * self.warps_per_block, self.start)

    def change(self, count: int, more: bool, lanes: Lanes) -> np.ndarray:
        """Which of `lanes` have their registers now; the others must wait for some."""
        if not self.start:
            raise LaneFault(
                "setmaxnreg in a kernel whose registers nothing bounds, so that ptxas ignores it: "
                ".maxnreg is missing, or .minnctapersm with .maxntid or .reqntid",
                int(lanes.indices[0]),
            )
        given = np.zeros(len(lanes.indices), np.bool_)
        groups = lanes.indices // THREADS
        for group in np.unique(groups).tolist():
            held = self.held[group * _WARPS : (group + 1) * _WARPS]
            now = int(held[0])
            if count < now if more else count > now:
                word = "inc" if more else "dec"
                raise LaneFault(
                    f"setmaxnreg.{word} from {now} to {count} registers", group * THREADS
                )
            block = group * _WARPS // self.warps_per_block * self.warps_per_block
            all_held = int(self.held[block : block + self.warps_per_block].sum())
            if all_held + _WARPS * (count - now) <= self.start * self.warps_per_block:
                held[...] = count
                given |= groups == group
        return given


def _registers_at_start(bounds: Mapping[str, Sequence[int]], registers_per_sm: int) -> int:
    if "maxnreg" in bounds:
        return bounds["maxnreg"][0]
    threads = bounds.get("reqntid") or bounds.get("maxntid")
    if not threads or "minnctapersm" not in bounds:
        return 0
    share = registers_per_sm // (int(np.prod(threads)) * bounds["minnctapersm"][0])
    return min(share, _MOST + 1) // _UNIT * _UNIT
