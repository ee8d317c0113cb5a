"""Memory that knows of each byte whether it exists and whether it was written.

Addresses are 64 bits wide. Global memory (with constants, variables and kernel parameters) starts
at GLOBAL_BASE; the windows of shared and local memory lie below, so that a generic address says
what it points to. Allocations have gaps between them: one step too far lands in none.
"""

from __future__ import annotations

import bisect

import numpy as np

from .dependents import Dependence
from .errors import LaneFault, PtxFault
from .handovers import Handovers
from .lanes import Lanes, lane_number, take

GLOBAL_BASE = 0x7F00_0000_0000
SHARED_BASE = 0x7E00_0000_0000
LOCAL_BASE = 0x7D00_0000_0000
WINDOW_BYTES = 1 << 32

_WORD = 4
# States of a byte: a bit for "exists", a bit for "was written".
POISON = 0xFF  # of bytes that nobody wrote: NaN in every format of floats
_EXISTS = 0x01
_WRITTEN = 0x03
_EXISTS_8 = 0x0101_0101_0101_0101
WRITTEN_8 = 0x0303_0303_0303_0303
_ROW_TYPES: dict[int, type[np.unsignedinteger]] = {
    1: np.uint8,
    2: np.uint16,
    4: np.uint32,
    8: np.uint64,
    16: np.uint64,
    32: np.uint64,
}
_LIMIT_OF_ROWS = 32


def _rows(data: np.ndarray) -> dict[int, np.ndarray]:
    """The same bytes as rows of 1, 2, 4, 8 bytes, and of 16 and 32 as two and four words."""
    rows = {size: data.view(dtype) for size, dtype in _ROW_TYPES.items()}
    rows[16] = rows[8].reshape(-1, 2)
    rows[32] = rows[8].reshape(-1, 4)
    return rows


class Memory:
    """A flat store that a batch reads and writes at many places at once.

    `check_unwritten`: reading a byte that nobody wrote is a fault.
    """

    name = "global"
    # All places that `offsets` lets through exist and are written: states need no look.
    complete = False

    def __init__(self, nbytes: int, check_unwritten: bool = True) -> None:
        size = -(-nbytes // _LIMIT_OF_ROWS) * _LIMIT_OF_ROWS
        self.size = size
        self.data = np.zeros(size, np.uint8)
        self.state = np.zeros(size, np.uint8)
        self.rows = _rows(self.data)
        self.states = _rows(self.state)
        self.check_unwritten = check_unwritten

    def offsets(self, addresses: np.ndarray, size: int, lanes: Lanes | None) -> np.ndarray:
        """Places in `data`; LaneFault where an access leaves the memory or is misaligned."""
        raise NotImplementedError

    def describe(self, address: int, size: int) -> str:
        """What lies at an address, for messages."""
        raise NotImplementedError

    def load(self, addresses: np.ndarray, size: int, lanes: Lanes | None) -> np.ndarray:
        """`size` bytes for each address: one number, or a row of 8-byte words beyond 8 bytes."""
        units = self.offsets(addresses, size, lanes) >> (size.bit_length() - 1)
        if not self.complete:
            states = self.states[size].take(units, axis=0, mode="clip")
            if not self._all(states, size, WRITTEN_8):
                self._fault(addresses, states, size, lanes, "read")
        self.reading(units, size, lanes)
        return self.rows[size].take(units, axis=0, mode="clip")

    def store(
        self, addresses: np.ndarray, size: int, values: np.ndarray, lanes: Lanes | None
    ) -> None:
        """Writes rows as `load` returns them."""
        units = self.offsets(addresses, size, lanes) >> (size.bit_length() - 1)
        self.mark(addresses, units, size, lanes)
        self.writing(units, size, values, lanes)
        self.rows[size][units] = values
        self.wrote(addresses, units, size, values, lanes)

    def claim(self, addresses: np.ndarray, size: int, lanes: Lanes | None) -> np.ndarray:
        """Places of atomic operations, as numbers of rows of `size` bytes."""
        units = self.offsets(addresses, size, lanes) >> (size.bit_length() - 1)
        states = self.states[size].take(units, axis=0, mode="clip")
        if not self._all(states, size, WRITTEN_8):
            self._fault(addresses, states, size, lanes, "read")
        self.atomic(units, size, lanes)
        return units

    def mark(
        self, addresses: np.ndarray, units: np.ndarray, size: int, lanes: Lanes | None
    ) -> None:
        """Notes that the bytes are written; LaneFault where some do not exist."""
        states = self.states[size].take(units, axis=0, mode="clip")
        if self._all(states, size, WRITTEN_8):
            return
        if not (states & self._pattern(size, _EXISTS_8) == self._pattern(size, _EXISTS_8)).all():
            self._fault(addresses, states, size, lanes, "write")
        self.states[size][units] = self._pattern(size, WRITTEN_8)

    def reading(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        """Called for each read, before it happens."""

    def writing(
        self, units: np.ndarray, size: int, values: np.ndarray, lanes: Lanes | None
    ) -> None:
        """Called for each write, before it happens."""

    def wrote(
        self,
        addresses: np.ndarray,
        units: np.ndarray,
        size: int,
        values: np.ndarray,
        lanes: Lanes | None,
    ) -> None:
        """Called for each write, after it happened."""

    def atomic(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        """Called for each atomic operation, before it happens."""

    @staticmethod
    def _pattern(size: int, word: int) -> np.unsignedinteger:
        width = min(size, 8)
        return _ROW_TYPES[size](word & (1 << 8 * width) - 1)

    def _all(self, states: np.ndarray, size: int, word: int) -> bool:
        if not self.check_unwritten:
            word = _EXISTS_8
            states = states & self._pattern(size, word)
        return bool((states == self._pattern(size, word)).all())

    def _fault(
        self,
        addresses: np.ndarray,
        states: np.ndarray,
        size: int,
        lanes: Lanes | None,
        verb: str,
    ) -> None:
        """Names the first lane whose access touches bytes that do not exist, or are not written."""
        by_byte = np.ascontiguousarray(states).view(np.uint8).reshape(-1, size)
        missing = ~((by_byte & _EXISTS) != 0).all(axis=1)
        bad = missing if missing.any() else ~(by_byte == _WRITTEN).all(axis=1)
        position = int(np.flatnonzero(bad)[0])
        address = int(addresses[position])
        if missing.any():
            what = f"{verb} of {size} bytes outside of any allocation"
        else:
            byte = int(np.flatnonzero(by_byte[position] != _WRITTEN)[0])
            what = f"read of {size} bytes of which byte {byte} was never written"
        raise LaneFault(
            f"{self.name} memory: {what}: {self.describe(address, size)}",
            lane_number(lanes, position),
        )

    def _misaligned(
        self, addresses: np.ndarray, offsets: np.ndarray, size: int, lanes: Lanes | None
    ) -> None:
        position = int(np.flatnonzero(offsets & (size - 1))[0])
        raise LaneFault(
            f"{self.name} memory: access of {size} bytes, misaligned: "
            f"{self.describe(int(addresses[position]), size)}",
            lane_number(lanes, position),
        )

    def _outside(
        self, addresses: np.ndarray, bad: np.ndarray, size: int, lanes: Lanes | None
    ) -> None:
        position = int(np.flatnonzero(bad)[0])
        raise LaneFault(
            f"{self.name} memory: access of {size} bytes out of bounds: "
            f"{self.describe(int(addresses[position]), size)}",
            lane_number(lanes, position),
        )


class GlobalMemory(Memory):
    """Allocations in one address range, with gaps."""

    GAP = 256
    ALIGNMENT = 512

    def __init__(
        self, nbytes: int, check_unwritten: bool = True, check_conflicts: bool = True
    ) -> None:
        # Addresses are not scarce: gaps and holes must not make an allocation fail that would fit.
        super().__init__(2 * nbytes + (1 << 20), check_unwritten)
        self.capacity = nbytes
        self.check_conflicts = check_conflicts
        self.used = 0
        # By word of 4 bytes the number of the launch that last wrote it, and the launch that runs.
        self.writers = np.zeros(self.size // _WORD, np.uint32)
        self._writers_of = {
            size: self.writers.reshape(-1, max(size // _WORD, 1)) for size in _ROW_TYPES
        }
        self.dependence: Dependence | None = None
        self.handovers: Handovers | None = None
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._names: dict[int, str] = {}

    def allocate(self, nbytes: int, name: str = "") -> int:
        """The address of `nbytes` that nobody wrote yet; PtxFault where memory is used up."""
        if nbytes < 0 or self.used + nbytes > self.capacity:
            raise PtxFault(
                f"out of device memory: {nbytes} bytes asked for, "
                f"{self.capacity - self.used} of {self.capacity} left"
            )
        start = self._hole(nbytes)
        bisect.insort(self._starts, start)
        self._sizes[start] = nbytes
        self._names[start] = name
        self.used += nbytes
        self.state[start : start + nbytes] = _EXISTS
        self.data[start : start + nbytes] = POISON
        return GLOBAL_BASE + start

    def _hole(self, nbytes: int) -> int:
        """The first place that is large enough."""
        step = self.ALIGNMENT
        place = step
        for start in self._starts:
            if place + nbytes + self.GAP <= start:
                return place
            place = -(-(start + self._sizes[start] + self.GAP) // step) * step
        if place + nbytes + self.GAP > self.size:
            raise PtxFault(f"out of device addresses: {nbytes} bytes asked for")
        return place

    def free(self, address: int) -> None:
        start = address - GLOBAL_BASE
        if start not in self._sizes:
            raise PtxFault(f"freed {address:#x}, which is no allocation")
        nbytes = self._sizes.pop(start)
        self._starts.remove(start)
        del self._names[start]
        self.used -= nbytes
        self.state[start : start + nbytes] = 0

    def write(self, address: int, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        place = self._range(address, len(data), "written")
        self.data[place : place + len(data)] = data
        self.state[place : place + len(data)] = _WRITTEN
        self.writers[place // _WORD : -(-(place + len(data)) // _WORD)] = 0

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """A copy. Hosts copy whole buffers: unwritten bytes are poison, and no fault."""
        place = self._range(address, nbytes, "read")
        return self.data[place : place + nbytes].copy()

    def fill(self, address: int, value: int, nbytes: int) -> None:
        place = self._range(address, nbytes, "filled")
        self.data[place : place + nbytes] = value
        self.state[place : place + nbytes] = _WRITTEN

    def _range(self, address: int, nbytes: int, verb: str) -> int:
        if nbytes and not self.holds(address, nbytes):
            raise PtxFault(f"{nbytes} bytes {verb} by the host: {self.describe(address, nbytes)}")
        return address - GLOBAL_BASE

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether these bytes lie in one allocation."""
        place = address - GLOBAL_BASE
        start = self._start_at(place)
        return start is not None and place + nbytes <= start + self._sizes[start]

    def _start_at(self, place: int) -> int | None:
        index = bisect.bisect_right(self._starts, place) - 1
        return self._starts[index] if index >= 0 else None

    def offsets(self, addresses: np.ndarray, size: int, lanes: Lanes | None) -> np.ndarray:
        offsets = addresses - np.uint64(GLOBAL_BASE)
        if int(offsets.max()) > self.size - size:
            self._outside(addresses, offsets > np.uint64(self.size - size), size, lanes)
        if int(np.bitwise_or.reduce(offsets)) & (size - 1):
            self._misaligned(addresses, offsets.view(np.int64), size, lanes)
        return offsets.view(np.int64)

    def watch_handovers(self) -> Handovers:
        """Watch, for one launch, what blocks hand to each other."""
        end = max((start + self._sizes[start] for start in self._starts[-1:]), default=0)
        self.handovers = Handovers(-(-end // _WORD))
        return self.handovers

    @staticmethod
    def words_of(addresses: np.ndarray) -> np.ndarray:
        """Numbers of the words at addresses of global memory."""
        return (addresses - np.uint64(GLOBAL_BASE)).view(np.int64) // _WORD

    def reading(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        self._read_early(units, size, lanes)
        if self.handovers is not None:
            self.handovers.reading(self._each_word(units, size), lanes)

    def _read_early(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        if self.dependence is not None and self.dependence.before_wait:
            self.dependence.reading(self._writers_of[size][self._words(units, size)], lanes)

    def _each_word(self, units: np.ndarray, size: int) -> np.ndarray:
        """The words of accesses, a row for each if they have several."""
        words = self._words(units, size)
        if size <= _WORD:
            return words
        return words[:, None] * (size // _WORD) + np.arange(size // _WORD)

    def writing(
        self, units: np.ndarray, size: int, values: np.ndarray, lanes: Lanes | None
    ) -> None:
        if self.dependence is not None:
            self.dependence.writing(lanes)
            if self.handovers is not None:
                self.handovers.writing(self._each_word(units, size), lanes)
            self._writers_of[size][self._words(units, size)] = self.dependence.number

    def atomic(self, units: np.ndarray, size: int, lanes: Lanes | None) -> None:
        if self.dependence is not None:
            self._read_early(units, size, lanes)
            self.dependence.writing(lanes)
            self._writers_of[size][self._words(units, size)] = self.dependence.number

    @staticmethod
    def _words(units: np.ndarray, size: int) -> np.ndarray:
        """Numbers of the rows of words that accesses lie in."""
        return units if size >= _WORD else units * size // _WORD

    def wrote(
        self,
        addresses: np.ndarray,
        units: np.ndarray,
        size: int,
        values: np.ndarray,
        lanes: Lanes | None,
    ) -> None:
        """LaneFault where lanes of one instruction disagree about what a place holds."""
        if not self.check_conflicts:
            return
        differs = self.rows[size].take(units, axis=0) != values
        if differs.any():
            position = int(np.argwhere(differs)[0][0])
            raise LaneFault(
                "global memory: threads write different values to one place in the same "
                f"instruction: {self.describe(int(addresses[position]), size)}",
                lane_number(lanes, position),
            )

    def describe(self, address: int, size: int) -> str:
        start = self._start_at(address - GLOBAL_BASE)
        if start is None:
            return f"{address:#x}, below all allocations"
        nbytes, name = self._sizes[start], self._names[start]
        offset = address - GLOBAL_BASE - start
        what = f"allocation {name}" if name else "allocation"
        return (
            f"{address:#x}, offset {offset} in the {what} of {nbytes} bytes "
            f"at {GLOBAL_BASE + start:#x}"
        )


class WindowMemory(Memory):
    """`copies` memories of `nbytes` each, one per block or thread: shared and local memory.

    An address is an offset in the window; `base` has for each lane where its own copy starts.
    """

    def __init__(self, nbytes: int, owner: np.ndarray, copies: int, check_unwritten: bool) -> None:
        stride = -(-nbytes // 128) * 128
        super().__init__(stride * copies, check_unwritten)
        self.bytes = nbytes
        self.copies = copies
        self.base = owner.astype(np.int64) * stride
        self.reset()

    def reset(self) -> None:
        """As at the beginning of a kernel: nothing is written."""
        self.complete = False
        if self.bytes:
            self.state.reshape(self.copies, -1)[:, : self.bytes] = _EXISTS

    def look_whether_complete(self) -> None:
        """Looks at all states once, so that loads need not look at some each time."""
        if self.bytes and not self.complete:
            states = self.state.reshape(self.copies, -1)[:, : self.bytes]
            self.complete = bool((states == _WRITTEN).all())

    def offsets(self, addresses: np.ndarray, size: int, lanes: Lanes | None) -> np.ndarray:
        places = addresses.view(np.int64) if addresses.dtype == np.uint64 else addresses
        if int(addresses.max()) > self.bytes - size:
            self._outside(
                addresses, addresses.astype(np.uint64) > max(self.bytes - size, -1), size, lanes
            )
        if int(np.bitwise_or.reduce(addresses)) & (size - 1):
            self._misaligned(addresses, places.astype(np.int64), size, lanes)
        return places + take(self.base, lanes)

    def describe(self, address: int, size: int) -> str:
        return f"address {address:#x} of {self.bytes} bytes"


class LocalMemory(WindowMemory):
    name = "local"
