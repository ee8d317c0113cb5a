"""Races in global memory between the blocks of a launch, for kernels that hand data from block to
block by `release` and `acquire`.

What a thread wrote may be touched by a thread of another block only if this has read, by an
`acquire`, what a `release` wrote that the writing had reached: of the same thread, or of one of its
block that knew of it by barriers or mbarriers (clocks.py). Both need a scope of `gpu` or `sys`.
Kernels without either are not watched, nor are those that use fences of such a scope instead. What
threads of one block do to global memory is not compared.

Each release of a block has a number. A thread's clocks have a column for each block that it has
heard of, with the number of the last release that reached it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import LaneFault
from .lanes import Lanes, lane_number

if TYPE_CHECKING:
    from .batch import Batch
    from .clocks import ClockRaces

# A tag has, from the top: the number of the block, from 1 on; the thread (11 bits); its clock (32).
_BLOCK, _THREAD = 43, 32
_THREADS, _CLOCKS = (1 << 11) - 1, (1 << 32) - 1


@dataclass(frozen=True)
class _Release:
    """What whoever acquires it hears: of blocks, how many of their releases. `tag`: of the word, as
    long as nobody else writes there."""

    tag: int
    heard: Mapping[int, int]


class Handovers:
    """Follows one launch, in which words of 4 bytes have the tag of who wrote them last (0: nobody
    did)."""

    def __init__(self, words: int) -> None:
        self.tags = np.zeros(words, np.int64)
        self.batch: Batch | None = None
        self.releases: dict[int, _Release] = {}
        # By block, by release: which clocks of its threads that one or an earlier one covers.
        self.covered: dict[int, list[np.ndarray]] = {}
        self._orders = False

    @property
    def clocks(self) -> ClockRaces | None:
        return None if self.batch is None else self.batch.shared.clocks

    @contextmanager
    def ordering(self) -> Iterator[None]:
        """Accesses that may meet others anywhere: with a scope, or atomic ones."""
        self._orders = True
        yield
        self._orders = False

    # -- accesses: words [n] or [n, k], a row for each lane

    def reading(self, words: np.ndarray, lanes: Lanes | None) -> None:
        if not self._orders:
            self._check(words, lanes, "reads")

    def writing(self, words: np.ndarray, lanes: Lanes | None) -> None:
        if not self._orders:
            self._check(words, lanes, "writes over")
        if self.clocks is None:
            self.tags[words] = 0
            return
        indices = self._indices(lanes)
        thread = self.clocks.thread[indices].astype(np.int64)
        tags = self._block(indices) << _BLOCK | thread << _THREAD | self.clocks.clock[indices]
        self.tags[words] = tags if words.ndim == 1 else tags[:, None]

    def _check(self, words: np.ndarray, lanes: Lanes | None, does: str) -> None:
        tags = self.tags[words].reshape(len(words), -1)
        if self.clocks is None or not tags.any():
            return
        indices = self._indices(lanes)
        writer = tags >> _BLOCK
        foreign = (tags != 0) & (writer != self._block(indices)[:, None])
        for block in np.unique(writer[foreign]).tolist():
            heard = self._heard(indices, block)
            nothing = np.zeros(self.clocks.padded, np.int32)
            covered = np.stack([nothing, *self.covered.get(block, [])])
            clocks = covered[heard[:, None], tags >> _THREAD & _THREADS]
            bad = foreign & (writer == block) & (clocks < tags & _CLOCKS)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                thread = int(tags[row, column]) >> _THREAD & _THREADS
                raise LaneFault(
                    f"race in global memory: this thread {does} what thread {thread} of block "
                    f"{block - 1} wrote, and no release that an acquire has seen is between them",
                    lane_number(lanes, int(row)),
                )

    # -- what orders them

    def release(self, words: np.ndarray, lanes: Lanes | None) -> None:
        """These words have been written, by a release of each lane; by atomics, beside others'."""
        clocks = self.clocks
        if clocks is None:
            return
        indices = self._indices(lanes)
        for word, lane, block in zip(words, indices, self._block(indices), strict=True):
            told = clocks.release(np.array([lane]))
            mine = self.covered.setdefault(int(block), [])
            covers = told[: clocks.padded]
            mine.append(np.maximum(mine[-1], covers) if mine else covers)
            heard = {b: int(told[c]) for b, c in self._columns().items() if c < len(told)}
            before = self.releases.get(int(word))
            if before is not None and before.tag == self.tags[word]:
                heard = _joined(before.heard, heard)
            heard[int(block)] = len(mine)
            self.releases[int(word)] = _Release(int(self.tags[word]), heard)

    def acquire(self, words: np.ndarray, lanes: Lanes | None) -> None:
        """Lanes have read these words."""
        clocks = self.clocks
        if clocks is None or not self.releases:
            return
        indices = self._indices(lanes)
        for word in np.unique(words).tolist():
            release = self.releases.get(word)
            if release is None or release.tag != self.tags[word]:
                continue
            here = indices[words == word]
            for block, number in release.heard.items():
                clocks.reach(here, clocks.column(_key(block), "a block releases"), number)

    def _heard(self, indices: np.ndarray, block: int) -> np.ndarray:
        """The last release of a block that reached each lane."""
        assert self.clocks is not None
        column = self._columns().get(block)
        if column is None:
            return np.zeros(len(indices), np.int64)
        return self.clocks.known[indices, column]

    def _columns(self) -> dict[int, int]:
        """Of the blocks that threads of this batch have heard of."""
        assert self.clocks is not None
        columns = self.clocks.columns.items()
        return {key[1]: c for key, c in columns if isinstance(key, tuple) and key[0] == "block"}

    def _indices(self, lanes: Lanes | None) -> np.ndarray:
        assert self.batch is not None
        return np.arange(self.batch.lanes) if lanes is None else lanes.indices

    def _block(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of lanes' blocks in the grid, from 1 on."""
        assert self.batch is not None
        return self.batch.first_block + self.batch.block_of_lane[indices].astype(np.int64) + 1


def _key(block: int) -> tuple[str, int]:
    return "block", block


def _joined(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
    return {block: max(a.get(block, 0), b.get(block, 0)) for block in {*a, *b}}
