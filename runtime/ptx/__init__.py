"""The PTX machine: executes PTX text on the CPU, checked, with numpy and lark."""

from __future__ import annotations

from .device import Device, Unwritten, run_kernel
from .errors import PtxFault, PtxSyntaxError
from .module import Kernel, PtxModule
from .parser import parse

__all__ = [
    "Device",
    "Kernel",
    "PtxFault",
    "PtxModule",
    "PtxSyntaxError",
    "Unwritten",
    "parse",
    "run_kernel",
]
