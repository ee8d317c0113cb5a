"""Checks of the edges of CUDA graphs against what their launches do in the PTX machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from abqc.runtime.ptx.accesses import Access
from abqc.runtime.ptx.counters import by_space
from abqc.runtime.ptx.driver import Graph, PtxDriver

Accesses = list[tuple[int, np.ndarray]]  # bytes at each of these addresses


class GraphWatch:
    """The graphs that a driver launches, in a random order that their edges allow, and every byte
    of global memory that their launches read or write."""

    def __init__(self, capability: tuple[int, int] = (9, 0), seed: int = 0, **options: Any) -> None:
        self.driver = PtxDriver(
            capability, separate_buffers=False, schedule=self._schedule, **options
        )
        self.driver.machine.counters = self  # type: ignore[attr-defined]
        self.graph: Graph = {}
        self.checked = 0
        self._random = random.Random(seed)
        self._order: list[int] = []
        self._bytes: dict[int, tuple[Accesses, Accesses]] = {}  # reads and writes

    def _schedule(self, graph: Graph) -> Sequence[int]:
        self.graph, self._order, self._bytes = graph, [], {}
        left = dict(graph)
        while left:
            ready = [handle for handle, node in left.items() if not node.before & left.keys()]
            self._order.append(self._random.choice(ready))
            del left[self._order[-1]]
        return self._order

    # -- what the machine calls

    def begin(self, kernel: Any, grid: Any, block: Any) -> None:
        if len(self._bytes) < len(self._order):
            handle = self._order[len(self._bytes)]
            assert self.graph[handle].name == kernel.name
            self._bytes[handle] = ([], [])

    def record(
        self, instruction: Any, executing: Any, active: np.ndarray, accesses: list[Access]
    ) -> None:
        if not self._bytes:
            return
        launch = self._bytes[next(reversed(self._bytes))]
        for access in accesses:
            for space, _, addresses in by_space(access, active):
                if space == "global":
                    launch[access.is_write].append((access.size, addresses.copy()))

    # -- checks of the last graph

    def check(self) -> None:
        """Any two launches of which one writes what the other reads or writes are ordered."""
        assert self.graph and len(self._bytes) == len(self.graph)
        touched = {
            handle: [_bytes_of(part) for part in parts] for handle, parts in self._bytes.items()
        }
        followed = self.followed()
        for second, node in self.graph.items():
            for first in self.graph:
                if first == second:
                    break
                reads, writes = touched[first]
                conflict = [
                    np.intersect1d(writes, touched[second][0]),
                    np.intersect1d(writes, touched[second][1]),
                    np.intersect1d(reads, touched[second][1]),
                ]
                if any(map(len, conflict)):
                    self.checked += 1
                    name = f"{self.graph[first].name} and {node.name}"
                    assert first in followed[second], f"{name} touch the same memory unordered"

    def followed(self) -> dict[int, set[int]]:
        """By node: those that it follows, directly or not."""
        found: dict[int, set[int]] = {}
        for handle, node in self.graph.items():
            found[handle] = set(node.before).union(*(found[other] for other in node.before))
        return found


def _bytes_of(accesses: Accesses) -> np.ndarray:
    """The addresses of all bytes, each once."""
    found = [np.empty(0, np.uint64)]
    for size in {size for size, _ in accesses}:
        first = np.unique(np.concatenate([part for width, part in accesses if width == size]))
        found.append((first[:, None] + np.arange(size, dtype=np.uint64)).reshape(-1))
    return np.unique(np.concatenate(found))
