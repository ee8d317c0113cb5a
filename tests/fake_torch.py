"""As much of PyTorch as the kit for GPUs takes, over a machine's memory."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import GpuTensor


class FakeTorch:
    """The module; `uploaded` has the tensors that were made, in order."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.uploaded: list[GpuTensor] = []
        event = SimpleNamespace(
            record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 1.0
        )
        self.cuda = SimpleNamespace(
            synchronize=lambda: None,
            Stream=lambda: SimpleNamespace(cuda_stream=0),
            Event=lambda enable_timing: event,
            stream=lambda stream: nullcontext(),
        )
        self.nn = SimpleNamespace(functional=SimpleNamespace(pad=self._pad))

    def from_numpy(self, array: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(cuda=lambda: self._tensor(array))

    def _tensor(self, array: np.ndarray) -> GpuTensor:
        self.uploaded.append(Sliced(self.machine, array))
        return self.uploaded[-1]

    def _pad(self, tensor: GpuTensor, widths: tuple[int, ...]) -> GpuTensor:
        assert widths[:3] == (0, 0, 0)
        return self._tensor(np.pad(tensor.numpy(), ((0, 0), (0, 0), (0, widths[3]), (0, 0))))


class Sliced(GpuTensor):
    __getitem__ = GpuTensor.slice

    def cpu(self) -> Sliced:
        return self
