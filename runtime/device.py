"""Where a model runs: the devices that users name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DeviceError, InputError
from .abi import DriverTable
from .dlpack import CPU, CUDA

MACHINE = "ptx-vm"


@dataclass(frozen=True)
class Device:
    """A device: its name, DLPack's type and number, and what Instance takes beside them."""

    name: str
    dlpack: tuple[int, int]
    driver: DriverTable | None = None
    isa: str | None = None

    @property
    def separate_buffers(self) -> bool:
        """Whether the device checks every buffer of a run by itself."""
        return self.driver is not None and self.driver.separate_buffers

    def of_outputs(self, name: str | None) -> tuple[int, int]:
        """Where a run shall allocate outputs, (0, 0): where its inputs lie."""
        if name is None or name == self.name:
            return (0, 0) if name is None else self.dlpack
        if name == "cpu" and self.dlpack[0] == CUDA:
            return CPU, 0
        if name == "cuda" and self.dlpack[0] == CUDA:
            return self.dlpack
        devices = "cpu" if self.dlpack[0] == CPU else f"cpu, cuda or {self.name}"
        raise InputError(
            f"outputs cannot be on '{name}': this model runs on {self.name}",
            hint=f"they can be on {devices}",
        )


def choose(device: str | DriverTable | None, isas: Sequence[str], isa: str | None) -> Device:
    """The device of a model whose kernels have these ISAs; InputError for no name of a device,
    DeviceError for one that the model was not compiled for."""
    on_gpu = bool(isas) and isas[0].startswith("sm_")
    if device is None:
        device = "cuda:0" if on_gpu else "cpu"
    if not isinstance(device, str):
        return Device(MACHINE, (CUDA, 0), device, isa)
    if device == "cpu":
        if on_gpu:
            raise DeviceError(
                f"device 'cpu': this model was compiled for {', '.join(isas)}",
                hint=f"device '{MACHINE}' executes its kernels on the CPU; --target cpu compiles "
                "for the CPU",
            )
        return Device(device, (CPU, 0), None, isa)
    if match := re.fullmatch(r"cuda(?::(\d+))?", device):
        ordinal = int(match[1] or 0)
        if not on_gpu:
            raise _compiled_for_cpu(device)
        return Device(f"cuda:{ordinal}", (CUDA, ordinal), None, isa)
    if match := re.fullmatch(MACHINE + r"(?::(sm_\w+))?", device):
        if not on_gpu:
            raise _compiled_for_cpu(device)
        return _machine(match[1] or isa or isas[0], isa)
    raise InputError(
        f"there is no device '{device}'", hint=f"devices are cpu, cuda, cuda:1, ..., {MACHINE}"
    )


def _compiled_for_cpu(device: str) -> DeviceError:
    return DeviceError(
        f"device '{device}': this model was compiled for the CPU",
        hint="compile it for a GPU: --target sm_80",
    )


def _machine(gpu: str, isa: str | None) -> Device:
    """The PTX machine as the GPU `gpu` ("sm_80"), which takes the code that suits it best."""
    match = re.fullmatch(r"sm_(\d+)(\d)a?", gpu)
    if match is None:
        raise InputError(f"'{gpu}' is no GPU", hint="GPUs are named sm_80, sm_86, ...")
    from .ptx.driver import PtxDriver

    driver = PtxDriver((int(match[1]), int(match[2])))
    return Device(MACHINE, (CUDA, 0), driver, isa)
