"""Trellis codes: weights of k = 1..6 bits that are better than any scalar code, in numpy.

A tail-biting bitshift trellis with a computed code, after QTIP (Tseng et al., 2024, sections 3.1
and 3.2), made so that a weight decodes to an int8: products of codes stay exact integers.

* A *sequence* is a column of W within a *panel* of up to 256 output channels. The sequences of a
  column are independent of those of every other one, so columns may be encoded in any order, which
  error feedback (GPTQ with activation order) needs.
* Each weight of a sequence has one *symbol* of k bits. Its *state* is the window of `STATE_BITS`
  bits that begins with its symbol, the lowest bits first, and goes on with the symbols of the
  channels behind it, around the end of the panel (tail-biting): no weight costs more than k bits.
* Its value is q = TABLE[hash(state)], an int8, and the weight is scale[n, group] * q.

    symbols      uint8 [padded N, K]; the rows of the last panel are padded to a multiple of 16
    hash(state)  bits 5..11 of state * MULTIPLIER

In 16 bits these are bits 8..14 of window * 8 MULTIPLIER, and what the window holds above its 12
bits does not reach them: a VPMULLW for two weights, and the byte above is an index for VPERMI2B.
The multiplier is the best of 1,500 for k = 2 and 3; docs/numerics.md has the errors.

`encode` finds the symbols of least squared error for given ends (Viterbi); it is the oracle of the
compiled one (`trellis_viterbi.py`). Weights of this format are made by `trellis_weight.py`:
`quantize` (nearest), and `ColumnEncoder`, a column at a time, for error feedback.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Symbols = NDArray[np.uint8]

RATES = (1, 2, 3, 4, 5, 6)  # bits of a weight
STATE_BITS = 12
MULTIPLIER = 1135
TABLE_SIZE = 128
SIGMA = 40.0  # of the values, nearly

# The quantiles (i + 1/2) / 128 of a Gaussian of SIGMA, rounded, from the median on.
UPPER_VALUES = (
    0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 26, 27, 28, 29, 31, 32, 33, 34, 35, 36, 37, 38, 40, 41, 42, 44, 45, 47,
    48, 50, 52, 54, 56, 58, 60, 63, 65, 69, 72, 77, 83, 91, 106,
)  # fmt: skip

PANEL_ROWS = 256  # the longest sequence
ROW_MULTIPLE = 16  # so that a panel's column is whole bytes at every rate
CHUNK_ELEMENTS = 1 << 18  # decoded at a time: temporary copies are larger
OVERLAP = 64  # rows on either side of a panel's end that decide where its path begins


@cache
def table() -> NDArray[np.int8]:
    """The 128 values, ascending."""
    upper = np.array(UPPER_VALUES, np.int8)
    values = np.concatenate([-upper[::-1], upper])
    values.flags.writeable = False
    return values


def state_index(windows: np.ndarray) -> NDArray[np.uint16]:
    """The index into the table for windows of 16 bits, of which the lower 12 are states."""
    products = windows.astype(np.uint16) * np.uint16(8 * MULTIPLIER)
    return products >> np.uint16(8) & np.uint16(TABLE_SIZE - 1)


@cache
def state_values() -> F32:
    """The value of every state."""
    values = table()[state_index(np.arange(1 << STATE_BITS))].astype(np.float32)
    values.flags.writeable = False
    return values


# Panels


@dataclass(frozen=True)
class Panels:
    """How `n` output channels are cut: panels of `rows`, of which the last has `last_rows`.

    All are multiples of 16 and as equal as that allows, so that none is short.
    """

    n: int

    @property
    def count(self) -> int:
        return -(-self.n // PANEL_ROWS)

    @property
    def rows(self) -> int:
        return _align(-(-self.n // self.count))

    @property
    def last_rows(self) -> int:
        return _align(self.n - (self.count - 1) * self.rows)

    @property
    def padded_n(self) -> int:
        return (self.count - 1) * self.rows + self.last_rows

    def bounds(self) -> list[tuple[int, int]]:
        """The first row of each panel and the row behind its last one, padding included."""
        begins = range(0, self.count * self.rows, self.rows)
        return [(begin, min(begin + self.rows, self.padded_n)) for begin in begins]

    def runs(self) -> list[tuple[int, int, int]]:
        """Panels of equal size: the first row, the row behind the last one, rows of a panel."""
        last = self.padded_n - self.last_rows
        if self.last_rows == self.rows:
            return [(0, self.padded_n, self.rows)]
        whole = [(0, last, self.rows)] if last else []
        return [*whole, (last, self.padded_n, self.last_rows)]


def _align(rows: int) -> int:
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


# Decoding


def decode(symbols: Symbols, n: int, rate: int) -> NDArray[np.int8]:
    """q, int8 [N, K], of the symbols [padded N, K] of `rate` bits."""
    panels = Panels(n)
    if symbols.shape[0] != panels.padded_n:
        raise ValueError(f"{n} channels have symbols of {panels.padded_n} rows, not {len(symbols)}")
    k = symbols.shape[1]
    q = np.empty(symbols.shape, np.int8)
    for begin, end, rows in panels.runs():
        step = max(1, CHUNK_ELEMENTS // (rows * k)) * rows
        for first in range(begin, end, step):
            part = slice(first, min(first + step, end))
            windows = _windows(symbols[part].reshape(-1, rows, k), rate)
            q[part] = table()[state_index(windows)].reshape(-1, k)
    return q[:n]


def _windows(symbols: Symbols, rate: int) -> NDArray[np.uint16]:
    """12 bits or more from every row of panels [panels, rows, K] on, as far as 16 hold them."""
    rows, count = symbols.shape[1], -(-STATE_BITS // rate)
    around = np.concatenate([symbols, symbols[:, : count - 1]], axis=1).astype(np.uint16)
    windows = around[:, :rows].copy()
    for ahead in range(1, count):
        windows |= around[:, ahead : ahead + rows] << np.uint16(ahead * rate)
    return windows


def pack_symbols(symbols: Symbols, rate: int) -> NDArray[np.uint8]:
    """Symbols along the last axis, a multiple of 16 long, as a stream of bits, lowest first."""
    bits = symbols[..., None] >> np.arange(rate, dtype=np.uint8) & 1
    stream = bits.reshape(*symbols.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little")


def unpack_symbols(stream: NDArray[np.uint8], rate: int) -> Symbols:
    """The inverse of `pack_symbols`."""
    bits = np.unpackbits(stream, axis=-1, bitorder="little")
    symbols = bits.reshape(*stream.shape[:-1], -1, rate)
    return (symbols << np.arange(rate, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


# Encoding


def encode(x: F32, rate: int) -> Symbols:
    """The symbols of sequences `x`, f32 [S, rows] in units of the scale.

    1. The best path through the `OVERLAP` rows before and behind the panel's end says which bits
       the path has there.
    2. The symbols are those of the best path that has these bits at both of its ends.

    (QTIP's algorithm 4, over a shorter first pass.) Costs are added in f32 in the order of the
    rows; of equally good predecessors the one with the lower symbol is taken, and of equally good
    ends the one with the lower bits. So another implementation gives the same symbols.
    """
    joints = 1 << (STATE_BITS - rate)
    window = np.arange(-OVERLAP, OVERLAP) % x.shape[1]
    costs = _forward(x[:, window], np.zeros((len(x), joints), np.float32), rate)
    _, joint = _trace(x[:, window], costs, costs[-1].argmin(axis=1), rate, OVERLAP)
    start = np.full((len(x), joints), np.inf, np.float32)
    np.put_along_axis(start, joint[:, None], 0, axis=1)
    symbols, _ = _trace(x, _forward(x, start, rate), joint, rate, 0)
    return symbols


def _forward(x: F32, start: F32, rate: int) -> list[F32]:
    """The costs [S, joints] of the best paths before each row, and behind the last one.

    A *joint* is what the states of two rows share: the upper bits of the first one, the lower
    bits of the second.
    """
    values = state_values()
    costs = [start]
    copies = 1 << rate
    for row in range(x.shape[1]):
        distance = x[:, row, None] - values
        total = np.tile(costs[-1], copies) + distance * distance
        costs.append(total.reshape(len(x), -1, copies).min(axis=2))
    return costs


def _trace(
    x: F32, costs: list[F32], joint: NDArray[np.int64], rate: int, stop: int
) -> tuple[Symbols, NDArray[np.int64]]:
    """Go back from the `joint` [S] behind the last row: symbols of the rows from `stop` on, and
    the joint before that row."""
    values, copies = state_values(), 1 << rate
    symbols = np.empty(x.shape, np.uint8)
    for row in range(x.shape[1] - 1, stop - 1, -1):
        states = joint[:, None] * copies + np.arange(copies)
        before = states % (1 << (STATE_BITS - rate))
        distance = x[:, row, None] - values[states]
        total = np.take_along_axis(costs[row], before, axis=1) + distance * distance
        symbols[:, row] = total.argmin(axis=1)
        joint = np.take_along_axis(before, symbols[:, row, None].astype(np.int64), axis=1)[:, 0]
    return symbols[:, stop:], joint
