"""Part `machine`: which GPU and driver these are, asked in a process of its own as all else."""

from __future__ import annotations

import platform
from typing import Any

from abqc.compiler.cuda_driver import Cuda

from .device import CLOCK_KHZ, MULTIPROCESSORS
from .kit import Kit
from .stand_in import resolve


def names(kit: Kit) -> list[str]:
    return ["machine"]


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """What results.md begins with."""
    with Cuda(resolve()) as cuda:
        return {
            "device": cuda.name,
            "capability": ".".join(map(str, cuda.capability)),
            "multiprocessors": cuda.attribute(MULTIPROCESSORS),
            "clock": f"{cuda.attribute(CLOCK_KHZ) / 1e3:.0f} MHz at most",
            "driver": cuda.driver_version,
            "python": platform.python_version(),
        }
