"""The parts of a run: a list of items each, every one of which can be measured by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import (
    attention,
    attention_peers,
    baselines,
    check,
    launch_times,
    machine,
    models,
    operators,
    peers,
    probes,
    rates,
    sanitizer,
    table,
)
from .device import KitDevice
from .kit import Kit
from .stand_in import resolve

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """`names` lists the items; `measure(context, number)` does one. The context is a KitDevice
    where `on_device`, else the kit. `item_seconds`: an item without an answer for so long is given
    up; `seconds`: of the whole part, what is not done by then is not reached. `skip(kit, number,
    records)`: why an item is not tried after what the records say ("": it is).
    """

    names: Callable[[Kit], list[str]]
    measure: Callable[[Any, int], Record]
    on_device: bool
    item_seconds: float = 8.0
    seconds: float = math.inf
    skip: Callable[[Kit, int, list[Record]], str] | None = None

    def open(self, kit: Kit) -> Any:
        return KitDevice(kit, resolve()) if self.on_device else kit


PARTS = {
    "machine": Part(machine.names, machine.measure, False),
    "probes": Part(probes.names, probes.measure, True),
    "rates": Part(rates.names, rates.measure, True),
    "check": Part(check.names, check.measure, True),
    "table": Part(table.names, table.measure, True),
    "baselines": Part(baselines.names, baselines.measure, False),
    "peers": Part(
        peers.names, peers.measure, False, item_seconds=20.0, seconds=75.0, skip=peers.skip
    ),
    "attention": Part(attention.names, attention.measure, True),
    "attention-peers": Part(attention_peers.names, attention_peers.measure, False),
    "operators": Part(operators.names, operators.measure, False),
    "sanitizer": Part(sanitizer.names, sanitizer.measure, False, item_seconds=60.0),
    "models": Part(models.names, models.measure, False, item_seconds=20.0),
    "launches": Part(launch_times.names, launch_times.measure, True, item_seconds=20.0),
}
