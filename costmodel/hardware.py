"""The machines that the analytic models know, by name and by target."""

from __future__ import annotations

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


def gpu_for(arch: str) -> Gpu:
    """The GPU that stands for a target such as `sm_90a`; CompileError lists the known ones."""
    for gpu in GPUS:
        if gpu.arch == arch:
            return gpu
    known = ", ".join(dict.fromkeys(gpu.arch for gpu in GPUS))
    raise CompileError(f"no GPU is described for target '{arch}'", hint=f"there are {known}")
