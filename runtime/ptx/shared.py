"""Shared memory of the blocks of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes
from .memory import WindowMemory

if TYPE_CHECKING:
    from .batch import Batch
    from .device import Device


class SharedMemory(WindowMemory):
    """One window for each block."""

    name = "shared"

    def __init__(self, nbytes: int, batch: Batch, device: Device) -> None:
        super().__init__(nbytes, batch.block_of_lane, batch.blocks, device.check_unwritten)

    def synchronized(self, blocks: np.ndarray | None) -> None:
        """A barrier opened in the blocks of a mask (None: in all)."""

    def warps_synchronized(self, lanes: Lanes | None) -> None:
        """The warps of these lanes passed a `bar.warp.sync`."""
