"""The machines that the analytic models know, by name and by target."""

from __future__ import annotations

import re

from ..errors import CompileError
from .hardware_cpu import CPUS, Cpu
from .hardware_gpu import GPUS, Gpu


def cpu_named(name: str) -> Cpu:
    """KeyError lists the known CPUs."""
    for cpu in CPUS:
        if cpu.name == name:
            return cpu
    raise KeyError(f"no CPU '{name}'; known: {', '.join(cpu.name for cpu in CPUS)}")


def gpu_named(name: str) -> Gpu:
    """KeyError lists the known GPUs."""
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    raise KeyError(f"no GPU '{name}'; known: {', '.join(gpu.name for gpu in GPUS)}")


def gpu_for(arch: str, device: str = "") -> Gpu:
    """The GPU that stands for a target such as `sm_90a`; of several, the one whose name is part of
    `device`, as in `NVIDIA H100 80GB HBM3`. CompileError lists the known targets."""
    able = [gpu for gpu in GPUS if gpu.arch == arch]
    if not able:
        known = ", ".join(dict.fromkeys(gpu.arch for gpu in GPUS))
        raise CompileError(f"no GPU is described for target '{arch}'", hint=f"there are {known}")
    return next((gpu for gpu in able if re.search(rf"\b{gpu.name}\b", device)), able[0])
