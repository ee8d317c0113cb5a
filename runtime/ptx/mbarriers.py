"""mbarrier objects of a batch (PTX ISA, "Parallel Synchronization: mbarrier").

An object counts arrivals and transactions (bytes) of a phase; a phase is complete when no arrivals
and no transactions are pending. Bulk copies bring their bytes as late as they may: when no thread
of the batch can do anything but wait. What each thread knows of the others is handed on by
`ClockRaces`: an arrival releases, a successful test acquires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .clocks import ClockRaces, join
from .deliveries import Deliveries
from .errors import LaneFault
from .lanes import Lanes, spread

if TYPE_CHECKING:
    from .batch import Batch

BYTES = 8
MOST = (1 << 20) - 1  # arrivals or transactions of a phase
_PHASE = 32  # of a state: the phase above it, pending arrivals below

Key = tuple[int, int]  # block and address


@dataclass
class Mbarrier:
    """`phase` is the number of complete ones. `told`: what arrivals know; `complete`: those of the
    phases that are complete."""

    expected: int
    pending: int
    column: int
    creator: int  # the lane
    clock: int  # of the creator, at the initialization
    line: int
    transactions: int = 0
    phase: int = 0
    told: np.ndarray | None = None
    complete: np.ndarray | None = None

    @property
    def state(self) -> int:
        return self.phase << _PHASE | self.pending

    def look(self) -> bool:
        """Completes the phase where nothing is pending."""
        if self.pending or self.transactions:
            return False
        self.phase += 1
        self.pending = self.expected
        self.complete = self.told
        return True


class Mbarriers:
    """All objects of a batch. `events` counts what may let somebody go on."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        self.objects: dict[Key, Mbarrier] = {}
        self.deliveries = Deliveries(self)
        self.events = 0

    @property
    def clocks(self) -> ClockRaces | None:
        return self.batch.shared.clocks

    # -- instructions; `addresses` has one for each lane

    def init(self, addresses: np.ndarray, counts: np.ndarray, lanes: Lanes | None) -> None:
        counts = spread(counts, len(addresses))
        for key, positions, indices in self._groups(addresses, lanes):
            if len(indices) > 1:
                self._fault(f"{len(indices)} threads initialize one mbarrier", indices)
            count = int(counts[positions[0]])
            if key in self.objects:
                self._fault("an mbarrier is initialized that already is one", indices)
            if not 1 <= count <= MOST:
                self._fault(f"an mbarrier for {count} arrivals, of 1 to {MOST}", indices)
            creator, clock, column = int(indices[0]), 0, 0
            if self.clocks is not None:
                what = "a bulk copy writes it, of which this thread has not yet seen the mbarrier"
                column = self.clocks.column(
                    ("mbarrier", key[1]), f"{what} complete the phase, issued at"
                )
                clock = int(self.clocks.clock[creator])
            line = self.batch.line
            self.objects[key] = Mbarrier(count, count, column, creator, clock, line)
        self._own(addresses, lanes, claim=True)

    def inval(self, addresses: np.ndarray, lanes: Lanes | None) -> None:
        for key, _, indices in self._groups(addresses, lanes):
            self.at(key, indices)
            if any(delivery.key == key for delivery in self.deliveries.underway):
                self._fault("an mbarrier is invalidated while a bulk copy counts to it", indices)
            del self.objects[key]
        self._own(addresses, lanes, claim=False)

    def arrive(
        self,
        addresses: np.ndarray,
        counts: np.ndarray,
        lanes: Lanes | None,
        *,
        transactions: np.ndarray | None = None,
        completes: bool = True,
        drops: bool = False,
        releases: bool = True,
    ) -> np.ndarray:
        """The states before. `transactions`: expected first. `completes` false: the phase must not
        end by it. `drops`: later phases expect so many arrivals less."""
        states = np.zeros(len(addresses), np.uint64)
        counts = spread(counts, len(addresses)).astype(np.int64)
        nbytes = None if transactions is None else spread(transactions, len(addresses))
        for key, positions, indices in self._groups(addresses, lanes):
            found = self.at(key, indices)
            while len(positions):  # as many as belong to one phase
                before = np.cumsum(counts[positions]) - counts[positions]
                fit = int(np.count_nonzero(before + counts[positions] <= found.pending))
                if not fit or int(counts[positions].min()) < 1:
                    self._fault(
                        f"{counts[positions[0]]} arrivals at an mbarrier that has {found.pending} "
                        f"pending in phase {found.phase}",
                        indices,
                    )
                here, some = positions[:fit], indices[:fit]
                states[here] = found.state - before[:fit]
                if nbytes is not None:
                    self._expect(found, int(nbytes[here].astype(np.int64).sum()), some)
                if releases and self.clocks is not None:
                    told = self.clocks.release(some)
                    found.told = told if found.told is None else join(found.told, told)
                total = int(counts[here].sum())
                found.pending -= total
                found.expected -= total if drops else 0
                if found.look() and not completes:
                    self._fault("an arrival with .noComplete completes the phase", some)
                positions, indices = positions[fit:], indices[fit:]
        self.events += 1
        return states

    def raise_pending(self, addresses: np.ndarray, lanes: Lanes | None) -> None:
        """Each lane adds one to the arrivals that its object waits for in this phase."""
        for key, _, indices in self._groups(addresses, lanes):
            found = self.at(key, indices)
            found.pending += len(indices)
            if found.pending > MOST:
                self._fault(f"more than {MOST} arrivals are pending", indices)

    def expect(self, addresses: np.ndarray, nbytes: np.ndarray, lanes: Lanes | None) -> None:
        """`expect_tx`, and `complete_tx` with bytes below 0."""
        nbytes = spread(nbytes, len(addresses)).astype(np.int64)
        for key, positions, indices in self._groups(addresses, lanes):
            found = self.at(key, indices)
            self._expect(found, int(nbytes[positions].sum()), indices)
            found.look()
        self.events += 1

    def test(
        self,
        addresses: np.ndarray,
        values: np.ndarray,
        lanes: Lanes | None,
        *,
        is_parity: bool,
        acquires: bool = True,
    ) -> np.ndarray:
        """Whether the phase of a state, or the last one of a parity, is complete."""
        values = spread(values, len(addresses)).astype(np.int64)
        complete = np.zeros(len(addresses), np.bool_)
        for key, positions, indices in self._groups(addresses, lanes):
            found = self.at(key, indices)
            mine = values[positions]
            if is_parity:
                if (mine >> 1).any():
                    self._fault(f"{int(mine.max())} is no parity of a phase", indices)
                done = mine != found.phase & 1
            else:
                done = mine >> _PHASE < found.phase
            complete[positions] = done
            knows = indices[done]
            if self.clocks is not None and acquires and len(knows):
                if found.complete is not None:
                    self.clocks.acquire(knows, found.complete)
                self.clocks.reach(knows, found.column, found.phase)
        return complete

    # -- parts

    def _groups(
        self, addresses: np.ndarray, lanes: Lanes | None
    ) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
        """The objects: block and address, positions among the lanes, and these lanes."""
        indices = np.arange(self.batch.lanes) if lanes is None else lanes.indices
        wide = addresses.astype(np.int64)
        wrong = np.flatnonzero((wide % BYTES != 0) | (wide < 0) | (wide > self._last))
        if len(wrong):
            address = int(wide[wrong[0]])
            self._fault(
                f"an mbarrier at {address:#x}, which is no multiple of 8 within shared memory",
                indices[wrong[:1]],
            )
        keys = self.batch.block_of_lane[indices] << 32 | wide
        if (keys == keys[0]).all():
            yield self._key(int(keys[0])), np.arange(len(keys)), indices
            return
        for key in np.unique(keys).tolist():
            positions = np.flatnonzero(keys == key)
            yield self._key(key), positions, indices[positions]

    @property
    def _last(self) -> int:
        return self.batch.shared.bytes - BYTES

    @staticmethod
    def _key(packed: int) -> Key:
        return packed >> 32, packed & 0xFFFF_FFFF

    def at(self, key: Key, indices: np.ndarray) -> Mbarrier:
        """The object that lanes use; LaneFault where they must not know of one there."""
        found = self.objects.get(key)
        if found is None:
            self._fault(f"no mbarrier was initialized at shared address {key[1]:#x}", indices)
        if self.clocks is not None:
            creator = found.creator % self.batch.padded
            unaware = indices[self.clocks.known[indices, creator] < found.clock]
            if len(unaware):
                self._fault(
                    f"the mbarrier's initialization (PTX line {found.line}) is not ordered before "
                    "this: a barrier is missing",
                    unaware,
                )
        return found

    def _expect(self, found: Mbarrier, nbytes: int, indices: np.ndarray) -> None:
        found.transactions += nbytes
        if abs(found.transactions) > MOST:
            self._fault(
                f"{found.transactions} transactions are pending, of {MOST} at most", indices
            )

    def _own(self, addresses: np.ndarray, lanes: Lanes | None, claim: bool) -> None:
        """The bytes become an object's, or memory like any other."""
        shared = self.batch.shared
        units = shared.offsets(addresses, BYTES, lanes) // BYTES
        if self.clocks is not None:
            change = self.clocks.claim if claim else self.clocks.disclaim
            change(units, BYTES, lanes, self.batch.line)

    def _fault(self, reason: str, indices: np.ndarray) -> NoReturn:
        raise LaneFault(reason, int(indices[0]))

    def describe(self, address: int, lane: int) -> str:
        """What an object waits for, for messages."""
        found = self.objects.get((int(self.batch.block_of_lane[lane]), address))
        if found is None:
            return "is no longer there"
        return (
            f"has {found.pending} of {found.expected} arrivals and {found.transactions} bytes "
            f"pending in phase {found.phase}"
        )
