"""The kit's kernels for the rate of wgmma, and its check of their values, in the PTX machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from abqc.runtime.ptx import Device, parse

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "gpu"))
from gpubuild.wgmma import THREADS, wgmma_rates
from gpukit import rates

JOBS = {job.kernel: (text, job) for text, job in wgmma_rates(turns=1)}


class StandIn:
    """What `rates.agrees` wants of a device."""

    def __init__(self, text: str, kernel: str) -> None:
        self.device = Device((9, 0), 1 << 22)
        self.kernel = parse(text).kernels[kernel]
        self.kit = SimpleNamespace(kernels={kernel: SimpleNamespace(threads=THREADS)})

    def buffer(self, name: str, nbytes: int) -> int:
        return self.device.allocate(nbytes)

    def launch_of(self, kernel: str, grid: int, *arguments: int) -> tuple[int, list[int]]:
        return grid, [*arguments]

    def run(self, launch: tuple[int, list[int]]) -> None:
        grid, arguments = launch
        self.device.launch(self.kernel, (grid, 1, 1), (THREADS, 1, 1), arguments)

    def read(self, address: int, nbytes: int) -> np.ndarray:
        return self.device.read(address, nbytes)


@pytest.mark.parametrize("name", [name for name in JOBS if name.endswith(("n8", "n64", "n256"))])
def test_values_agree(name: str) -> None:
    text, job = JOBS[name]
    device: Any = StandIn(text, name)
    assert rates.agrees(device, job)


def test_values_that_do_not_agree() -> None:
    text, job = JOBS["rate_wgmma_s8_n64"]
    device: Any = StandIn(text.replace("mov.b32 %d3, 0;", "mov.b32 %d3, 1;"), job.kernel)
    assert not rates.agrees(device, job)
