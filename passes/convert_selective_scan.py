"""Selective scans become `abq.selective_scan` (Mamba; Gu and Dao 2023, arXiv 2312.00752).

ONNX's Scan and Loop come as loops (`patterns/selective_scan_loops.py`). Exporters that trace a
Python loop leave its steps one after the other (`patterns/selective_scan_steps.py`; transformers'
Mamba). What differs from the equation of `patterns/selective_scan.py` in anything stays as it is.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import Unit, register, walk
from .patterns.selective_scan_loops import convert_loop
from .patterns.selective_scan_steps import convert_steps


@register
def convert_selective_scan(module: ir.Operation, unit: Unit) -> None:
    """Turn loops and sequences of steps that compute a selective scan into abq.selective_scan."""
    for loop in walk(module, "scf.for"):
        convert_loop(loop)
    for concat in walk(module, "tensor.concat"):
        convert_steps(concat)
