"""Which threads of a batch execute an instruction.

A batch is a number of whole blocks; its *lanes* are their threads, block by block, each block
padded to whole warps, so that lane // 32 is a warp. Everywhere `None` stands for all lanes of the
batch, the fast path, in which registers are used whole.
"""

from __future__ import annotations

import numpy as np

WARP = 32


class Lanes:
    """Some lanes of a batch, as sorted indices and, when asked, as a mask."""

    __slots__ = ("_mask", "indices", "total")

    def __init__(self, indices: np.ndarray, total: int, mask: np.ndarray | None = None) -> None:
        self.indices = indices
        self.total = total
        self._mask = mask

    @staticmethod
    def where(mask: np.ndarray) -> Lanes:
        return Lanes(np.flatnonzero(mask), len(mask), mask)

    @property
    def mask(self) -> np.ndarray:
        if self._mask is None:
            self._mask = np.zeros(self.total, np.bool_)
            self._mask[self.indices] = True
        return self._mask

    @property
    def count(self) -> int:
        return len(self.indices)

    @property
    def is_dense(self) -> bool:
        """Whether computing all lanes and discarding some is cheaper than gathering."""
        return self.count * 4 > self.total


def take(array: np.ndarray, lanes: Lanes | None) -> np.ndarray:
    """The values that `lanes` hold; constants (of no dimension) stay as they are."""
    if lanes is None or array.ndim == 0:
        return array
    return array.take(lanes.indices)


def put(array: np.ndarray, lanes: Lanes | None, values: np.ndarray) -> None:
    """Writes one value per lane, or one for all of them."""
    if lanes is None:
        array[...] = values
    else:
        array[lanes.indices] = values


def spread(array: np.ndarray, count: int) -> np.ndarray:
    """A value per lane, also where there is one for all."""
    return array if array.ndim else np.broadcast_to(array, (count,))


def lane_number(lanes: Lanes | None, position: int) -> int:
    """The lane at a position among those that execute."""
    return int(position) if lanes is None else int(lanes.indices[position])
