"""Checks of the edges of CUDA graphs against what their launches do in the PTX machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from abqc.runtime.ptx.accesses import Access
from abqc.runtime.ptx.counters import by_space
from abqc.runtime.ptx.driver import Graph, PtxDriver


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
        self._bytes: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self._early: list[np.ndarray] = []  # bytes that threads read before they waited
        self._waiting: set[int] = set()  # threads that have not

    def _schedule(self, graph: Graph) -> Sequence[int]:
        self.graph, self._order, self._bytes, self._early = graph, [], {}, []
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
        if instruction.opcode == "griddepcontrol":
            self._synchronize(instruction, active)
        launch = self._bytes[next(reversed(self._bytes))]
        for access in accesses:
            for space, lanes, addresses in by_space(access, active):
                if space != "global":
                    continue
                every = addresses.astype(np.int64)[:, None] + np.arange(access.size)
                launch[access.is_write].append(np.unique(every))
                early = np.isin(lanes, list(self._waiting))
                assert not access.is_write or not early.any(), "a store before the wait"
                self._early.append(np.unique(every[early]))

    def _synchronize(self, instruction: Any, active: np.ndarray) -> None:
        """Threads begin with `launch_dependents`, and go on after `wait`."""
        lanes = set(active.tolist())
        if "wait" in instruction.modifiers:
            self._waiting -= lanes
        else:
            assert not self._waiting & lanes, "a thread ended without a wait"
            self._waiting |= lanes

    # -- checks of the last graph

    def check(self) -> None:
        """Any two launches of which one writes what the other reads or writes are ordered."""
        assert self.graph and len(self._bytes) == len(self.graph)
        touched = {
            handle: [np.unique(np.concatenate([*parts, np.empty(0, np.int64)])) for parts in kinds]
            for handle, kinds in self._bytes.items()
        }
        written = np.unique(np.concatenate([writes for _, writes in touched.values()]))
        early = np.unique(np.concatenate([*self._early, np.empty(0, np.int64)]))
        assert not self._waiting and not len(np.intersect1d(early, written))
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
