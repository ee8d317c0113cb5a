"""Part `probes`: what the cost model assumes of a GPU, asked of this one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from .device import KitDevice
from .kit import Kit
from .rates import COPY_BLOCK

PROBE_THREADS = 256  # of a block of `probe_latency`
LINE = 128
NODES = 256  # of a graph of empty kernels
BLOCKS_PER_SM = 4  # that read while one thread measures
REPEATS = 5


def names(kit: Kit) -> list[str]:
    return list(_PROBES)


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    """A record with a figure and its unit."""
    name = names(device.kit)[index]
    return _PROBES[name](device)


def _clock(device: KitDevice) -> dict[str, Any]:
    return {"value": device.clock(), "unit": "Hz"}


def _nodes(device: KitDevice, chain: bool) -> dict[str, Any]:
    """The time that one more node takes: of many less that of one."""
    out = device.buffer("probe", 4096)
    launch = device.launch_of("probe_empty", 1, out)
    one = statistics.median(device.time_nodes([launch], chain=chain))
    many = statistics.median(device.time_nodes([launch] * NODES, chain=chain))
    return {"value": (many - one) / (NODES - 1), "unit": "s", "nodes": NODES}


def _latency(device: KitDevice, busy: bool) -> dict[str, Any]:
    """Seconds of one dependent load of memory far larger than L2."""
    probe = device.kit.probe
    lines = probe.bytes // LINE
    memory = device.buffer("copy from", probe.bytes, "fill_bytes")
    readers = BLOCKS_PER_SM * device.multiprocessors if busy else 0
    out = device.buffer("probe", 16 + 4 * PROBE_THREADS * max(readers, 1))
    arguments = (out, memory, lines - 1, probe.turns, probe.spins)
    launch = device.launch_of("probe_latency", 1 + readers, *arguments)
    cycles = []
    for _ in range(REPEATS):
        device.run(launch)
        cycles.append(int(device.read(out, 8).view(np.uint64)[0]))
    clock = device.clock()
    taken = statistics.median(cycles) / probe.turns
    return {"value": taken / clock if clock else None, "unit": "s", "cycles": taken}


def _l2(device: KitDevice) -> dict[str, Any]:
    """Bytes a second, read and written, of copies that stay within the cache."""
    blocks = max(1, device.l2_bytes // 4 // COPY_BLOCK)
    source = device.buffer("copy from", blocks * COPY_BLOCK, "fill_bytes")
    to = device.buffer("copy to", blocks * COPY_BLOCK)
    count = 16
    launch = device.launch_of("copy_16", blocks, to, source)
    seconds = min(device.time_graph([launch] * count, 10)) / count
    return {"value": 2 * blocks * COPY_BLOCK / seconds, "unit": "B/s", "bytes": blocks * COPY_BLOCK}


_PROBES: dict[str, Callable[[KitDevice], dict[str, Any]]] = {
    "clock at rest": _clock,
    "node of a graph, one behind the other": lambda device: _nodes(device, chain=True),
    "node of a graph, side by side": lambda device: _nodes(device, chain=False),
    "L2, copied": _l2,
    "latency of memory at rest": lambda device: _latency(device, busy=False),
    "latency of memory under load": lambda device: _latency(device, busy=True),
}
