"""What it takes that blocks share tiles along K (codegen/gpu/wgmma/stream_k.py).

Blocks stay; what whole waves of tiles leave over, and one of these waves, is cut along K so that
each of them has the same share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .hardware_gpu import Gpu

Numbers = NDArray[Any]  # of each kernel

# Latencies of L2 until sums are written and seen by all; then, for each block that gives some,
# until that is noticed and the first of them are there.
GIVE_LATENCIES, TAKE_LATENCIES = 6, 2


@dataclass(frozen=True)
class SharedTiles:
    """Of kernels whose tiles are each one block's, `active` is false and nothing else counts.

    `all` tiles of `tile_bytes` sums, each cut among at most `most` blocks; `slots` blocks run at
    once.
    """

    active: NDArray[np.bool_]
    all: Numbers
    most: Numbers
    slots: Numbers
    tile_bytes: Numbers

    @cached_property
    def blocks(self) -> Numbers:
        """Those that share."""
        return np.maximum(1, np.minimum(self.all * self.most, self.slots))

    @cached_property
    def cut(self) -> Numbers:
        """Tiles that are cut."""
        waves = self.all // self.blocks
        left = self.all - waves * self.blocks
        return left + np.where((waves > 0) & (left > 0), self.blocks, 0)

    @property
    def whole_waves(self) -> Numbers:
        """Of tiles that are not cut."""
        return (self.all - self.cut) // self.blocks

    @property
    def waves(self) -> Numbers:
        """Parts of tiles are parts of a wave."""
        return self.whole_waves + self.cut / self.blocks

    @property
    def starts(self) -> Numbers:
        """Of tiles, or parts of them, one after another in a block."""
        parts = np.where(self.cut > 0, np.ceil(self.cut / self.blocks) + 1, 0)
        return self.whole_waves + parts

    @property
    def given_bytes(self) -> Numbers:
        """Sums that all blocks together give to others."""
        blocks, cut = self.blocks.astype(np.int64), self.cut.astype(np.int64)
        return (blocks - np.gcd(blocks, cut)) * self.tile_bytes

    def hand_over(self, gpu: Gpu, bandwidth: Numbers, port: float) -> Numbers:
        """Seconds in which a block gives a tile's sums away, and adds those of others to its own:
        one, or of few tiles all that share it. `bandwidth` is that of the memory where given sums
        lie, `port` that of a multiprocessor to L2."""
        others = np.maximum(1, np.ceil(self.blocks / np.maximum(1, self.cut)) - 1)
        busiest = np.ceil(self.blocks / gpu.sms)
        moved = busiest * (1 + others) * self.tile_bytes / port
        waits = (GIVE_LATENCIES + TAKE_LATENCIES * others) * gpu.l2_latency
        seconds = np.maximum(moved, 2 * self.given_bytes / bandwidth) + waits
        return np.where(self.active & (self.cut > 0), seconds, 0.0)
