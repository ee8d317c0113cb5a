"""Bulk copies between global and shared memory (PTX ISA, "cp.async.bulk").

The bytes move at once, but who touches what is still under way races with it (clocks.py): a copy
into shared memory until its mbarrier's phase is seen to be complete, one out of it until the bulk
group of the thread that issued it is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import LaneFault
from .lanes import Lanes
from .memory import Memory
from .tensor_map import BOX_ALIGNMENT, Box, TensorMap, box_at
from .warpgroup import CHUNK, swizzled

if TYPE_CHECKING:
    from .batch import Batch


class BulkGroups:
    """The groups of bulk copies out of shared memory: of each lane, how many are committed and how
    many of them have read shared memory, and the last that a copy was issued in."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        self.committed = np.zeros(self.batch.lanes, np.int64)
        self.complete = np.zeros(self.batch.lanes, np.int64)
        self.issued = np.zeros(self.batch.lanes, np.int64)
        self.line = 0

    def commit(self, lanes: Lanes | None) -> None:
        self.committed[slice(None) if lanes is None else lanes.indices] += 1

    def wait(self, lanes: Lanes | None, pending: int) -> None:
        indices = np.arange(self.batch.lanes) if lanes is None else lanes.indices
        done = np.maximum(self.complete[indices], self.committed[indices] - pending)
        self.complete[indices] = done
        clocks = self.batch.shared.clocks
        if clocks is not None:
            for lane in indices[self.issued[indices] > 0].tolist():
                clocks.reach(np.array([lane]), self.column(lane), self.complete[lane])

    def column(self, lane: int) -> int:
        clocks = self.batch.shared.clocks
        assert clocks is not None
        thread = lane % self.batch.padded
        kind = "a bulk copy reads it, with no wait_group yet that covers the one of"
        return clocks.column(("bulk", thread), kind)

    def unfinished(self) -> int | None:
        """A lane that ended although a copy may still read shared memory."""
        lanes = np.flatnonzero(self.issued > self.complete)
        return int(lanes[0]) if len(lanes) else None


# -- plain runs of bytes --------------------------------------------------------------------------


def load_bytes(batch: Batch, to: int, origin: int, size: int, barrier: int, lane: int) -> None:
    """`size` bytes from global to shared memory, counted to an mbarrier."""
    _check_run("the source", origin, size, lane)
    _check_run("the destination", to, size, lane)
    steps = np.arange(0, size, CHUNK)
    rows = _read_global(batch, origin + steps, CHUNK, lane)
    _into_shared(batch, to + steps, rows, barrier, size, lane)


def store_bytes(batch: Batch, to: int, origin: int, size: int, lane: int) -> None:
    """`size` bytes from shared to global memory, in the lane's bulk group."""
    _check_run("the source", origin, size, lane)
    _check_run("the destination", to, size, lane)
    steps = np.arange(0, size, CHUNK)
    rows = _out_of_shared(batch, origin + steps, lane)
    _write_global(batch, to + steps, CHUNK, rows, lane)


def _check_run(what: str, address: int, size: int, lane: int) -> None:
    if size % CHUNK or not size:
        raise LaneFault(f"a bulk copy of {size} bytes, which is no multiple of 16", lane)
    if address % CHUNK:
        raise LaneFault(f"{what} of a bulk copy, {address:#x}, is no multiple of 16", lane)


# -- boxes of tensors -----------------------------------------------------------------------------


def load_box(
    batch: Batch, to: int, tensor: TensorMap, coordinates: list[int], barrier: int, lane: int
) -> None:
    """A box of a tensor to shared memory; what lies outside of the tensor becomes 0."""
    box = _checked_box(tensor, coordinates, to, lane)
    octets = np.zeros(tensor.box_bytes, np.uint8)
    if len(box.addresses):
        rows = _read_global(batch, box.addresses, box.unit, lane)
        octets.reshape(-1, box.unit)[box.places // box.unit] = rows
    places = _places(tensor, to)
    _into_shared(batch, places, octets.reshape(-1, CHUNK), barrier, tensor.box_bytes, lane)


def store_box(
    batch: Batch, tensor: TensorMap, coordinates: list[int], origin: int, lane: int
) -> None:
    """A box from shared memory to a tensor; what lies outside of it is not written."""
    box = _checked_box(tensor, coordinates, origin, lane)
    octets = _out_of_shared(batch, _places(tensor, origin), lane).reshape(-1, box.unit)
    if len(box.addresses):
        _write_global(batch, box.addresses, box.unit, octets[box.places // box.unit], lane)


def _checked_box(tensor: TensorMap, coordinates: list[int], place: int, lane: int) -> Box:
    if len(coordinates) != len(tensor.sizes):
        raise LaneFault(
            f"{len(coordinates)} coordinates in a tensor of {len(tensor.sizes)} dimensions", lane
        )
    if place % BOX_ALIGNMENT:
        raise LaneFault(
            f"a box at shared address {place:#x}, which is no multiple of {BOX_ALIGNMENT}", lane
        )
    return box_at(tensor, coordinates)


def _places(tensor: TensorMap, start: int) -> np.ndarray:
    """Shared addresses of a box's chunks."""
    plain = start + np.arange(0, tensor.box_bytes, CHUNK)
    return swizzled(plain, tensor.swizzle) if tensor.swizzle else plain


# -- both ends ------------------------------------------------------------------------------------


def _of_lane(batch: Batch, lane: int, count: int) -> Lanes:
    """The same lane for each of several accesses."""
    return Lanes(np.full(count, lane), batch.lanes)


def _read_global(batch: Batch, addresses: np.ndarray, unit: int, lane: int) -> np.ndarray:
    """Octets, [n, unit]."""
    some = _of_lane(batch, lane, len(addresses))
    rows = _global(batch, addresses, unit, False, lane).load(addresses.view(np.uint64), unit, some)
    return np.ascontiguousarray(rows).view(np.uint8).reshape(-1, unit)


def _write_global(
    batch: Batch, addresses: np.ndarray, unit: int, octets: np.ndarray, lane: int
) -> None:
    some = _of_lane(batch, lane, len(addresses))
    words = np.ascontiguousarray(octets).view(f"u{min(unit, 8)}")
    rows = words.reshape(-1) if unit <= 8 else words.reshape(-1, unit // 8)
    memory = _global(batch, addresses, unit, True, lane)
    memory.store(addresses.view(np.uint64), unit, rows, some)


def _global(batch: Batch, addresses: np.ndarray, unit: int, is_write: bool, lane: int) -> Memory:
    batch.note_async("global", addresses, unit, is_write, lane)
    return batch.global_memory


def _into_shared(
    batch: Batch, places: np.ndarray, octets: np.ndarray, barrier: int, size: int, lane: int
) -> None:
    key = (int(batch.block_of_lane[lane]), barrier)
    target = batch.mbarriers.deliveries.target(key, lane)
    some = _of_lane(batch, lane, len(places))
    batch.note_async("shared", places, CHUNK, True, lane)
    rows = np.ascontiguousarray(octets).view(np.uint64).reshape(-1, 2)
    batch.shared.async_store(places, rows, some, target.column, target.phase + 1)
    batch.mbarriers.deliveries.add(key, size, lane, batch.line)


def _out_of_shared(batch: Batch, places: np.ndarray, lane: int) -> np.ndarray:
    """Octets, [n, 16]."""
    groups = batch.bulk_groups
    groups.issued[lane] = groups.committed[lane] + 1
    groups.line = batch.line
    some = _of_lane(batch, lane, len(places))
    batch.note_async("shared", places, CHUNK, False, lane)
    columns = clocks = np.zeros(len(places), np.int64)
    if batch.shared.clocks is not None:
        columns = np.full(len(places), groups.column(lane))
        clocks = np.full(len(places), groups.issued[lane])
    rows = batch.shared.async_load(places, some, columns, clocks)
    return np.ascontiguousarray(rows).view(np.uint8).reshape(-1, CHUNK)
