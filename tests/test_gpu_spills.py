"""Bounds on registers are raised where the assembler would spill, and only there."""

from __future__ import annotations

import re
from dataclasses import replace

import gpu_kernels
import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx
from abqc.codegen.gpu.assembly.spills import (
    bound_registers,
    compile_kernels,
    with_bounds,
    without_spills,
)
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.few_rows.schedules import rows_kernel
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.context import make_context
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import ir
from gpu_rows import schedule

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")


def kernels():
    """One that needs many registers, and one that needs few."""
    spec = MatmulSpec(4096, 4096, parse_scheme("w2:g128:asym"), parse_scheme("a8"))
    return [rows_kernel(spec, schedule(spec, rows, (1, 4), 2, 4), "int8") for rows in (4, 1)]


def bounded(bound: int) -> Ptx:
    """Both, the first with this bound."""
    many, few = kernels()
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        many.emit(module, SM_90A)
        few.emit(module, SM_90A)
        bound_registers(module, {many.name: bound})
        return compile_ptx(module, SM_90A)


def test_bounds_change_nothing_else() -> None:
    many = kernels()[0]
    assert with_bounds(bounded(40), {many.name: 64}) == bounded(64)
    free = bounded(40)
    free = replace(free, text=free.text.replace(".maxnreg 40\n", ""))
    assert with_bounds(free, {many.name: 40}) == bounded(40)


@needs_ptxas
def test_bounds_are_raised_until_nothing_is_spilled() -> None:
    many = kernels()[0]
    start = bounded(40)
    ptx, code = without_spills(start, SM_90A)
    assert code is not None and ptx != start
    assert not code.resources[many.name].spill_stores and not code.resources[many.name].spill_loads
    registers = int(re.findall(r"\.maxnreg (\d+)", ptx.text)[0])  # the PTX that travels says so too
    assert registers > 40 and ptx == with_bounds(start, {many.name: registers})


@needs_ptxas
@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "activation", "rows", "arch"),
    [("w3:g32:asym", None, 2, SM_80), ("w2:g128:asym", "a8", 4, SM_90A)],
)
def test_formats_whose_bounds_were_too_tight(weight, activation, rows, arch) -> None:
    a_scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(4096, 4096, parse_scheme(weight), a_scheme)
    kind = "int8" if activation else "f16"
    assert not gpu_kernels.spills(arch, rows_kernel(spec, schedule(spec, rows, (1, 4), 2, 8), kind))


def test_without_an_assembler_there_is_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abqc.codegen.gpu.assembly.compile.find_tool", lambda name: None)
    ptx, code = compile_kernels(kernels()[1:], SM_80)
    assert code is None and list(ptx.kernels) == [kernels()[1].name]


@needs_ptxas
def test_bounds_that_hold_are_left_alone() -> None:
    ptx, code = compile_kernels(kernels()[1:], SM_80)
    plain = gpu_kernels.compile_kernels(SM_80, *kernels()[1:])
    assert code is not None and ptx.text == plain.text
    assert code.resources == assemble(plain.text, SM_80).resources
