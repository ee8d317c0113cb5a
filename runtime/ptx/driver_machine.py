"""What stands behind the driver API: memory and kernels that something executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from .device import Device
from .module import PtxModule
from .parser import parse

Extents = tuple[int, int, int]


class Machine(Protocol):
    """What executes: memory and kernels. A kernel has a name and says the bytes of its parameters.

    `allocate` raises MemoryError where there is no room; anything else that is raised fails the
    call, and comes out of the run that caused it. `launch` returns a record for launches that
    depend on it: they name it in `after`, where they may begin before it has ended, or `complete`.
    """

    capability: tuple[int, int]

    def allocate(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def write(self, address: int, array: np.ndarray) -> None: ...
    def read(self, address: int, nbytes: int) -> np.ndarray: ...
    def memory(self) -> tuple[int, int]: ...
    def load(self, ptx: str) -> Mapping[str, Any]: ...
    def parameter_sizes(self, kernel: Any) -> Sequence[int]: ...
    def launch(
        self,
        kernel: Any,
        grid: Extents,
        block: Extents,
        parameters: list[bytes],
        shared: int,
        after: Sequence[Any],
        complete: Sequence[Any],
    ) -> Any: ...


class PtxMachine:
    """A `Device` as a Machine; launches are told to `counters` (counters.py), if there are any."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.counters: Any = None
        self.capability = device.capability
        self.free, self.write, self.read = device.free, device.write, device.read

    def allocate(self, nbytes: int) -> int:
        free, _ = self.memory()
        if nbytes > free:
            raise MemoryError
        return self.device.allocate(nbytes)

    def memory(self) -> tuple[int, int]:
        """Free bytes and all of them."""
        memory = self.device.memory
        return memory.capacity - memory.used, memory.capacity

    def load(self, ptx: str) -> Mapping[str, Any]:
        return _parsed(ptx).kernels

    def parameter_sizes(self, kernel: Any) -> Sequence[int]:
        return [parameter.bytes for parameter in kernel.parameters]

    def launch(
        self,
        kernel: Any,
        grid: Extents,
        block: Extents,
        parameters: list[bytes],
        shared: int,
        after: Sequence[Any],
        complete: Sequence[Any],
    ) -> Any:
        return self.device.launch(
            *(kernel, grid, block, parameters, shared, self.counters),
            after=after,
            complete=complete,
        )


@lru_cache(maxsize=4)
def _parsed(ptx: str) -> PtxModule:
    return parse(ptx)
