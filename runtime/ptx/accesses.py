"""Addresses as operations compute them, and accesses as counters are told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes, take
from .operands import Source

if TYPE_CHECKING:
    from .batch import Batch


@dataclass(frozen=True)
class Access:
    """One access of an instruction: `addresses[k]` is that of the k-th lane that executes it.

    `space` is "global", "shared", "local" or "generic"; `size` is in bytes, per lane. `lanes` has
    the lanes where only some of those that execute the instruction make the access.
    """

    space: str
    addresses: np.ndarray
    size: int
    is_write: bool
    lanes: np.ndarray | None = None


@dataclass(frozen=True)
class AddressSource:
    """`[base + offset]`; without a base the offset is the address."""

    base: Source | None
    offset: int

    def bind(self, batch: Batch) -> Callable[[Lanes | None], np.ndarray]:
        """A function of the lanes that gives an address for each."""
        if self.base is None:
            constant = np.asarray(np.uint64(self.offset))
            return lambda lanes: _repeated(constant, batch, lanes)
        base = self.base.array(batch)
        offset = base.dtype.type(self.offset & int(np.iinfo(base.dtype).max))
        if base.ndim == 0:
            fixed = np.asarray(base + offset)
            return lambda lanes: _repeated(fixed, batch, lanes)
        if self.offset == 0:
            return lambda lanes: take(base, lanes)
        return lambda lanes: take(base, lanes) + offset


def _repeated(address: np.ndarray, batch: Batch, lanes: Lanes | None) -> np.ndarray:
    return np.full(batch.lanes if lanes is None else lanes.count, address)
