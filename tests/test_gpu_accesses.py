"""What kernels do with their parameters, and what is told to LLVM of it."""

from __future__ import annotations

import re

from abqc.codegen.gpu.arch import SM_80, SM_90A
from abqc.codegen.gpu.assembly.accesses import Access
from abqc.codegen.gpu.builder import POINTER, WEIGHT, kernel
from abqc.codegen.strategy import Kernel
from gpu_kernels import compile_kernels

READ, WRITTEN, EARLY = Access.READ, Access.WRITTEN, Access.EARLY


def _emit(module, arch) -> None:
    arguments = [POINTER, WEIGHT, POINTER, POINTER, POINTER, POINTER, "i32"]
    with kernel(module, arch, "mixed", arguments, threads=32) as opened:
        b, block, x, w, y, sums, chosen, _, n = opened
        place = b.thread * 4
        weight = b.load(w, "f32", place, cache="nc")
        b.wait()
        value = b.load(x, "f32", place, cache="nc") * weight
        with b.when(block < n):
            b.store(value, y, place)
        b.atomic("add", sums, b.const(1, "i32"))
        either = b.select(block < n, x, chosen)
        b.store(b.load(either, "f32", place, cache="nc"), y, place + 128)


MIXED = Kernel("mixed", (1,), _emit)


def test_parameters_are_followed_to_loads_and_stores() -> None:
    ptx = compile_kernels(SM_80, MIXED)
    accesses = (READ, READ, WRITTEN, READ | WRITTEN, READ, 0, 0)
    assert ptx.kernels["mixed"].accesses == accesses
    assert "griddepcontrol" not in ptx.text and ptx.text.count("ld.global.nc") >= 2


def test_only_weights_are_read_before_the_wait_and_by_the_read_only_path() -> None:
    ptx = compile_kernels(SM_90A, MIXED)
    early = (READ, READ | EARLY, WRITTEN, READ | WRITTEN, READ, 0, 0)
    assert ptx.kernels["mixed"].accesses == early
    assert ptx.text.count("ld.global.nc") == 1
    before, _ = ptx.text.split("griddepcontrol.wait;")
    assert "griddepcontrol.launch_dependents;" in before
    assert not re.search(r"(ld\.global\.[^n]|st\.global|atom)", before)
