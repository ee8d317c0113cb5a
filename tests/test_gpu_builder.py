"""The layer in which GPU kernels are written, through LLVM's NVPTX back end and ptxas."""

from __future__ import annotations

import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_90A, GpuArch, by_name
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx, disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.builder import POINTER, kernel
from abqc.codegen.gpu.rolled_loops import keep_rolled
from abqc.dialects.mlir import ir
from abqc.errors import CompileError

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
needs_disassembler = pytest.mark.skipif(
    find_tool("ptxas") is None or find_tool("nvdisasm") is None, reason="no ptxas, nvdisasm"
)


def compiled(arch: GpuArch, *emitters) -> Ptx:
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        for emit in emitters:
            emit(module, arch)
        return compile_ptx(module, arch)


def scale(module: ir.Module, arch: GpuArch) -> None:
    arguments = [POINTER, POINTER, "i32"]
    with kernel(module, arch, "scale", arguments, threads=128) as (b, block, x, y, n):
        i = block * 128 + b.thread
        with b.when(i < n):
            b.store(b.load(x, "f32", i * 4) * 2.0, y, i * 4)


def everything(module: ir.Module, arch: GpuArch) -> None:
    """One of each instruction that sm_80 has."""
    arguments = [POINTER, POINTER, "i32"]
    with kernel(module, arch, "everything", arguments, threads=32, shared=4096) as (
        b,
        _block,
        x,
        y,
        n,
    ):
        b.copy_async(b.at(b.shared, b.lane * 16), b.at(x, b.lane * 16))
        b.copy_async(b.at(b.shared, b.lane * 4 + 2048), b.at(x, b.lane * 4), 4, n)
        b.commit_copies()
        b.wait_copies()
        b.barrier()
        a = b.load_matrices(b.at(b.shared, b.lane * 16), 4)
        c = b.load_matrices(b.at(b.shared, b.lane % 16 * 16), 2, transposed=True)
        words = b.lanes_of(b.load(x, "vector<4xi32>", cache="stream"))
        total = b.dot4(a[0], c[0], b.const(0, "i32"), signs="us")
        total = total + b.logic3(words[0], words[1], words[2], 0xEA) + b.popcount(words[3])
        total = total + b.permute_bytes(a[1], c[1], 0x5140)
        with b.loop(0, n, 32, [total]) as loop:
            loop.carry(loop.args[0] + b.exchange(loop.args[0], "down", 3))
        value = b.exp2(b.to_float(b.warp_sum(loop.results[0])))
        chosen = b.either(n > 3, ["f32"], lambda: [value], lambda: [b.reciprocal_root(value)])
        b.store(b.warp_max(chosen[0]), y, b.thread * 4)


def test_kernels_are_entries_with_their_launch_shape() -> None:
    ptx = compiled(SM_80, scale)
    assert ".visible .entry scale(" in ptx.text and ".reqntid 128" in ptx.text
    shape = ptx.kernels["scale"]
    assert (shape.threads, shape.shared, shape.parameters) == (128, 0, 3)


def test_loads_and_stores_are_of_global_memory() -> None:
    text = compiled(SM_80, scale).text
    assert "ld.global" in text and "st.global" in text


def thrice(module: ir.Module, arch: GpuArch) -> None:
    """Three turns, which LLVM would write out."""
    arguments = [POINTER]
    with kernel(module, arch, "thrice", arguments, threads=32) as (b, _, x), b.loop(0, 3) as loop:
        keep_rolled(loop)
        b.store(b.load(x, "f32", loop.i * 4) * 2.0, x, loop.i * 4)


def test_a_loop_is_kept_rolled() -> None:
    text = compiled(SM_80, thrice).text
    assert text.count("ld.global") == 1 and '.pragma "nounroll"' in text and "bra" in text


def turns(module: ir.Module, arch: GpuArch) -> None:
    """A loop whose lanes meet, and of which one does more than the others in every turn."""
    arguments = [POINTER, "i32"]
    with kernel(module, arch, "turns", arguments, threads=32) as (b, _, x, n), b.loop(0, n) as loop:
        b.asm("bar.sync 1, 32;", "~{memory}", [], effects=True)
        with b.when(b.lane == 0):
            b.store(b.load(x, "f32", loop.i * 4) * 2.0, x, loop.i * 4)


def test_lanes_stay_together_where_they_meet() -> None:
    """LLVM must not make a loop for the one lane and another one for the others."""
    assert compiled(SM_80, turns).text.count("bar.sync") == 1


@needs_ptxas
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
def test_every_target_assembles(arch: GpuArch) -> None:
    emitters = [scale] if arch == SM_75 else [scale, everything]
    ptx = compiled(arch, *emitters)
    resources = assemble(ptx.text, arch).resources
    assert set(resources) == {emit.__name__ for emit in emitters}
    assert all(used.spill_stores == 0 for used in resources.values())


@needs_disassembler
def test_instructions_are_the_intended_ones() -> None:
    code = assemble(compiled(SM_90A, everything).text, SM_90A)
    text = "\n".join(disassemble(code.cubin)["everything"])
    for instruction in ("LDGSTS.E.BYPASS.128", "LDSM", "IDP.4A", "PRMT", "SHFL.DOWN", "MUFU.EX2"):
        assert instruction in text, instruction


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="sm_90a"):
        by_name("sm_42")


@needs_ptxas
def test_a_rejected_kernel_says_how_to_repeat_it() -> None:
    with pytest.raises(CompileError, match="ptxas rejects") as caught:
        assemble(".version 8.0\n.target sm_80\n.address_size 64\nnonsense", SM_80)
    assert "repeat with: ptxas -arch=sm_80" in (caught.value.hint or "")
