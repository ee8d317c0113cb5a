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
class Place:
    """A device: its name, DLPack's type and number, and what Instance takes beside them."""

    name: str
    dlpack: tuple[int, int]
    driver: DriverTable | None = None
    isa: str | None = None

    def of_outputs(self, name: str | None) -> tuple[int, int]:
        """Where a run shall allocate outputs, (0, 0): where its inputs lie."""
        if name is None or name == self.name:
            return (0, 0) if name is None else self.dlpack
        if name == "cpu" and self.dlpack[0] == CUDA:
            return CPU, 0
        if name == "cuda" and self.dlpack[0] == CUDA:
            return self.dlpack
        compiled = "the CPU" if self.dlpack[0] == CPU else "GPUs"
        raise InputError(f"device '{name}': this model was compiled for {compiled}")


def choose(device: str | DriverTable | None, forms: Sequence[str], isa: str | None) -> Place:
    """The place of a model whose kernels have these forms; InputError for no name of a device."""
    if device is None:
        device = "cuda:0" if forms and forms[0].startswith("sm_") else "cpu"
    if not isinstance(device, str):
        return Place(MACHINE, (CUDA, 0), device, isa)
    if device == "cpu":
        return Place(device, (CPU, 0), None, isa)
    if match := re.fullmatch(r"cuda(?::(\d+))?", device):
        ordinal = int(match[1] or 0)
        return Place(f"cuda:{ordinal}", (CUDA, ordinal), None, isa)
    if match := re.fullmatch(MACHINE + r"(?::(sm_\w+))?", device):
        return _machine(match[1] or isa, forms)
    raise InputError(
        f"there is no device '{device}'", hint=f"devices are cpu, cuda, cuda:1, ..., {MACHINE}"
    )


def _machine(target: str | None, forms: Sequence[str]) -> Place:
    """The PTX machine as a GPU that runs `target`, by default the first of the model's."""
    if not forms or not forms[0].startswith("sm_"):
        raise DeviceError(
            f"device '{MACHINE}': this model was compiled for the CPU",
            hint="compile it for a GPU: --target sm_80",
        )
    target = target or forms[0]
    match = re.fullmatch(r"sm_(\d+)(\d)a?", target)
    if match is None:
        raise InputError(f"'{target}' is no GPU target", hint=f"the model has {', '.join(forms)}")
    from .ptx.driver import PtxDriver

    driver = PtxDriver((int(match[1]), int(match[2])))
    return Place(MACHINE, (CUDA, 0), driver, target)
