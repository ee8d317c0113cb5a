"""A driver for rehearsing the kit where there is no GPU: the PTX machine, and what goes wrong.

`gpukit/stand_in.py` loads this file in every worker. FAULTS of the environment has a word for each
thing that shall go wrong, with the part of the run in which it does:

    dies         `check` ends before its first record, the first time
    hangs        a launch of the kernel that HANGS names does not return
    lost         a launch of the kernel that LOST names loses the context
    lies         the kernel that LIES names leaves one byte of its output wrong
    no graphs    `models` and `operators` get no graph instantiated
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abqc.runtime.ptx.driver import PtxDriver

ATTRIBUTES = {13: 1_000_000, 16: 1, 38: 1 << 14}  # kHz, multiprocessors, bytes of L2
ILLEGAL_ADDRESS, NOT_SUPPORTED = 700, 801
_P, _I = ctypes.c_void_p, ctypes.c_int


class KitDriver(PtxDriver):
    """The PTX machine's driver with what only measuring asks for (caches, clocks), and faults."""

    def __init__(self, capability: tuple[int, int] = (9, 0), *, part: str = "") -> None:
        super().__init__(
            capability, memory_bytes=1 << 28, separate_buffers=False, intercept=self._intercept
        )
        self.part = part
        self.faults = os.environ.get("FAULTS", "").split(",")
        self._launching = ""
        self._is_lost = False
        self._functions |= {
            "cuEventElapsedTime": ctypes.CFUNCTYPE(_I, _P, _P, _P)(self._elapsed),
            "cuDeviceGetAttribute": ctypes.CFUNCTYPE(_I, _P, _I, _I)(self._attribute),
        }

    def resolve(self, name: str) -> int | None:
        """The address of a function."""
        return self._address_of(name.encode())

    def _elapsed(self, milliseconds: int, begin: int, end: int) -> int:
        ctypes.c_float.from_address(milliseconds).value = 1.0
        return ILLEGAL_ADDRESS if self._is_lost else 0

    def _attribute(self, value: int, number: int, device: int) -> int:
        if number in ATTRIBUTES:
            ctypes.c_int.from_address(value).value = ATTRIBUTES[number]
            return 0
        return self.cuDeviceGetAttribute(value, number, device) or 0

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        """The table looks at times alone, which the machine does not have."""
        if self.part != "table":
            super().cuGraphLaunch(executable, stream)

    # -- what goes wrong

    def _intercept(self, name: str, arguments: Sequence[Any]) -> int | None:
        if self._is_lost and name != "cuGetErrorName":
            return ILLEGAL_ADDRESS
        if name == "cuGraphInstantiateWithFlags" and self.part in ("models", "operators"):
            return NOT_SUPPORTED if "no graphs" in self.faults else None
        if name == "cuLaunchKernel":
            return self._launch(self._get(arguments[0])[0])
        return None

    def _launch(self, kernel: str) -> int | None:
        if "hangs" in self.faults and kernel == os.environ["HANGS"]:
            time.sleep(3600)
        if "lost" in self.faults and kernel == os.environ["LOST"]:
            self._is_lost = True
            return ILLEGAL_ADDRESS
        self._launching = kernel
        return None

    def cuMemcpyDtoH_v2(self, to: int, source: int, nbytes: int) -> None:
        super().cuMemcpyDtoH_v2(to, source, nbytes)
        if "lies" in self.faults and self._launching == os.environ["LIES"] and nbytes > 64:
            ctypes.c_uint8.from_address(to + 3).value ^= 0x40  # of the first value its exponent


def driver() -> KitDriver:
    """That of a worker, as `run.py --worker PART ...` starts it."""
    part = sys.argv[sys.argv.index("--worker") + 1] if "--worker" in sys.argv else ""
    faults = os.environ.get("FAULTS", "").split(",")
    mark = Path(os.environ.get("MARK", os.devnull))
    if "dies" in faults and part == "check" and not mark.exists():
        mark.touch()
        os._exit(9)
    return KitDriver(part=part)
