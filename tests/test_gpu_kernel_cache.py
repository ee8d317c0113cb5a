"""Kernels of GPUs are kept by content, their machine code too, and make one module of PTX."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A, GpuArch
from abqc.codegen.gpu.assembly import kernel_job, spills
from abqc.codegen.gpu.assembly.builtin import set_kernels
from abqc.codegen.gpu.assembly.compile import Ptx
from abqc.codegen.gpu.assembly.kernel_job import GpuCode, GpuKernelJob
from abqc.codegen.gpu.assembly.merge import merge
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.few_rows.schedules import rows_kernel
from abqc.codegen.gpu.packing.layout import FloatRows
from abqc.codegen.gpu.packing.pack import pack_kernel
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import parse_scheme
from abqc.errors import CompileError
from gpu_kernels import compile_kernel
from gpu_rows import schedule

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
BYTE, SHORT, *_ = set_kernels()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was compiled (by name) and assembled; the cache is empty and no kernel builtin."""
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel_job, "builtin_kernels", lambda: ())
    seen: list[str] = []
    compile_ptx, assemble = kernel_job.compile_ptx, spills.assemble

    def compiled(*arguments: object) -> Ptx:
        ptx = compile_ptx(*arguments)
        seen.extend(ptx.kernels)
        return ptx

    def assembled(*arguments: object) -> object:
        seen.append("assembled")
        return assemble(*arguments)

    monkeypatch.setattr(kernel_job, "compile_ptx", compiled)
    monkeypatch.setattr(spills, "assemble", assembled)
    return seen


def code(arch: GpuArch, *kernels: Kernel) -> GpuCode:
    names = tuple(kernel.name for kernel in kernels)
    return pickle.loads(GpuKernelJob(arch, names, kernels, "module {}").compile())


@needs_ptxas
def test_kernels_and_machine_code_are_made_once(calls: list[str]) -> None:
    first = code(SM_90A, BYTE, SHORT)
    assert code(SM_90A, BYTE, SHORT) == first
    assert list(first.ptx.kernels) == [BYTE.name, SHORT.name]
    assert calls == [BYTE.name, SHORT.name, "assembled"]
    code(SM_90A, SHORT)
    code(SM_80, SHORT)
    assert calls[3:] == ["assembled", SHORT.name, "assembled"]


@needs_ptxas
def test_a_bound_that_was_raised_is_known_the_next_time(calls: list[str]) -> None:
    spec = MatmulSpec(4096, 4096, parse_scheme("w2:g128:asym"), parse_scheme("a8"))
    many = rows_kernel(spec, schedule(spec, 4, (1, 4), 2, 4), "int8")

    def emit(module: object, arch: GpuArch) -> None:
        many.emit(module, arch)
        spills.bound_registers(module, {many.name: 40})

    tight = Kernel(many.name, many.block, emit)
    first = code(SM_90A, tight)
    assert calls.count("assembled") > 1
    calls.clear()
    again = code(SM_90A, tight, BYTE)
    assert calls == [BYTE.name, "assembled"]
    assert again.machine.resources[many.name] == first.machine.resources[many.name]


def test_an_entry_belongs_to_one_assembler(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = code(SM_90A, BYTE)
    monkeypatch.setattr(kernel_job, "tool_identity", lambda name: "another one")
    assert code(SM_90A, BYTE) == first
    assert calls == [BYTE.name, "assembled"] * 2


def test_targets_have_the_same_name_in_all_processes() -> None:
    command = "from abqc.codegen.gpu.arch import SM_90A; print(SM_90A.text)"
    texts = {
        subprocess.run(
            [sys.executable, "-c", command],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert texts == {SM_90A.text + "\n"}


def test_a_damaged_entry_is_compiled_again(calls: list[str], tmp_path: Path) -> None:
    first = code(SM_90A, BYTE)
    for path in (tmp_path / "kernels").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert code(SM_90A, BYTE) == first
    assert calls == [BYTE.name, "assembled"] * 2


def rotation(columns: int) -> Kernel:
    """Packs rows that are rotated in blocks of 172, by a table of signs."""
    spec = MatmulSpec(16, columns, parse_scheme("w8:channel"), None, hadamard_block=172)
    return pack_kernel(spec, FloatRows.of(spec))


def test_what_kernels_share_is_declared_once() -> None:
    parts = [compile_kernel(SM_90A, rotation(columns)) for columns in (172, 344)]
    text = merge(parts).text
    assert text.count(".extern .shared") == 1 and text.count(" hadamard_signs_172[") == 1
    assert text.count(".version") == 1 and text.count(".visible .entry") == 2
    other = re.sub(r"(\.extern \.shared \.align) \d+", r"\1 1", parts[1].text)
    parts[1] = replace(parts[1], text=other)
    with pytest.raises(CompileError, match="different things as abqc_shared"):
        merge(parts)


def test_other_functions_are_refused() -> None:
    part = compile_kernel(SM_90A, BYTE)
    with pytest.raises(CompileError, match=f"the PTX of kernel {BYTE.name} is not one entry"):
        merge([replace(part, text=part.text + "\n.func f() {}\n")])
