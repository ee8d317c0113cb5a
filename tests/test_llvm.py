"""The LLVM back end: float literals, C entries, tables, and the JIT."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.builder import INDEX, buffer, function, vec
from abqc.codegen.llvm import (
    Jit,
    compile_kernels,
    pack_arguments,
    parse,
    rewrite_float_literals,
    target_machine,
    to_llvm_ir,
)
from abqc.dialects.jit import load
from abqc.dialects.mlir import ir
from abqc.errors import CompileError

ISAS = isas.available()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  %y = fadd float %x, f0x3F800000", "  %y = fadd float %x, 0x3FF0000000000000"),
        ("  ret float -inf", "  ret float 0xFFF0000000000000"),
        ("  ret double +inf", "  ret double 0x7FF0000000000000"),
        ("  ret float +qnan", "  ret float 0x7FF8000000000000"),
        ("  ret float -3.925000e+00", "  ret float 0xC00F666660000000"),
        ("  ret half 1.5", "  ret half 0xH3E00"),
        ("  ret half f0x3E00", "  ret half 0xH3E00"),
        ("  ret bfloat f0x3FC0", "  ret bfloat 0xR3FC0"),
        ("  ret bfloat 8.507059e+37", "  ret bfloat 0xR7E80"),  # 2^126, a little less
        ("  ret double f0x3FF8000000000000", "  ret double 0x3FF8000000000000"),
        (
            "  %p = phi double [ 1.0, %a ], [ %y, %b ]",
            "  %p = phi double [ 0x3FF0000000000000, %a ], [ %y, %b ]",
        ),
        (
            "@t = constant [2 x float] [float 1.0, float -0.5]",
            "@t = constant [2 x float] [float 0x3FF0000000000000, float 0xBFE0000000000000]",
        ),
        ("  %v = add <4 x i32> %a, splat (i32 3)", "  %v = add <4 x i32> %a, splat (i32 3)"),
        ('@s = constant [9 x i8] c"float 1.0"', '@s = constant [9 x i8] c"float 1.0"'),
        ("  %float.1 = add i32 %x, 2", "  %float.1 = add i32 %x, 2"),
    ],
)
def test_rewrite_float_literals(line, expected):
    assert rewrite_float_literals(line) == expected


def test_every_float_constant_survives_the_way_to_llvm():
    """All kinds of values, printed by the bindings, parse to the same bits."""
    values = [0.0, -0.0, 1.0, 0.1, -3.925, 1e-45, 3.4e38, np.inf, -np.inf]
    module = _module()
    with module.context, ir.Location.unknown():
        parsed = ir.Module.parse(
            "llvm.mlir.global constant @t() : !llvm.array<9 x f32> {\n"
            "%0 = llvm.mlir.zero : !llvm.array<9 x f32>\n"
            + "".join(
                f"%c{i} = llvm.mlir.constant(0x{np.float32(v).view(np.uint32):08X} : f32) : f32\n"
                f"%{i + 1} = llvm.insertvalue %c{i}, %{i}[{i}] : !llvm.array<9 x f32>\n"
                for i, v in enumerate(values)
            )
            + "llvm.return %9 : !llvm.array<9 x f32>\n}"
        )
        text = to_llvm_ir(parsed)
    machine = target_machine(isas.PLAIN)
    code = load(machine.emit_object(parse(text, machine)), ["t"])
    found = np.ctypeslib.as_array((ctypes.c_float * 9).from_address(code["t"]))
    np.testing.assert_array_equal(
        found.view(np.uint32), np.array(values, np.float32).view(np.uint32)
    )


def _module() -> ir.Module:
    return ir.Module.create(ir.Location.unknown(ir.Context()))


def _add_scale(module, isa, name="scale"):
    """x[i] = fma(x[i], s, 1.5) below n; every grid index does 64 elements."""
    with (
        function(module, isa, name, [buffer("f32"), INDEX, "f32"]) as (b, i, x, n, s),
        b.loop(i * 64, b.min((i + 1) * 64, n), 16) as loop,
    ):
        mask = b.mask(16, n - loop.i)
        value = b.load(x, loop.i, 16, mask)
        value = b.fma(value, b.splat(s, 16), b.const(1.5, vec(16, "f32")))
        b.store(value, x, loop.i, mask)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_jit_runs_a_kernel_over_its_grid(isa):
    module = _module()
    _add_scale(module, isa)
    jit = Jit(module, isa, ["scale"])
    x = np.zeros(256, np.float32)
    x[:200] = np.arange(200)
    jit.run("scale", 4, [x, 200, 2.0])
    np.testing.assert_array_equal(x[:200], np.arange(200, dtype=np.float32) * 2 + 1.5)
    assert not x[200:].any()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_entries_run_a_part_of_the_grid(isa):
    module = _module()
    _add_scale(module, isa)
    jit = Jit(module, isa, ["scale"])
    x = np.zeros(256, np.float32)
    jit.run("scale", 3, [x, 256, 1.0], begin=2)
    assert not x[:128].any() and (x[128:192] == 1.5).all() and not x[192:].any()


def test_half_to_float_is_exact_with_every_isa():
    finite = np.arange(1 << 16, dtype=np.uint16)
    finite = finite[(finite & 0x7C00) != 0x7C00]
    finite = finite[: len(finite) // 16 * 16]
    for isa in ISAS:
        module = _module()
        arguments = [buffer("i16"), buffer("f32"), INDEX]
        with function(module, isa, "widen", arguments) as (b, _, h, y, n), b.loop(0, n, 16) as at:
            b.store(b.half_to_float(b.load(h, at.i, 16)), y, at.i)
        y = np.zeros(len(finite), np.float32)
        Jit(module, isa, ["widen"]).run("widen", 1, [finite, y, len(finite)])
        expected = finite.view(np.float16).astype(np.float32)
        np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32), isa.name)


def test_fma_rounds_once_with_every_isa():
    rng = np.random.default_rng(0)
    a, c = (rng.standard_normal(4096).astype(np.float32) for _ in range(2))
    results = []
    for isa in ISAS:
        module = _module()
        arguments = [buffer("f32"), buffer("f32"), INDEX]
        with function(module, isa, "f", arguments) as (b, _, x, y, n), b.loop(0, n, 16) as at:
            u = b.load(x, at.i, 16)
            b.store(b.fma(u, u, b.load(y, at.i, 16)), y, at.i)
        y = c.copy()
        Jit(module, isa, ["f"]).run("f", 1, [a, y, len(a)])
        results.append(y)
    exact = (a.astype(np.longdouble) ** 2 + c).astype(np.float32)
    for y in results:
        np.testing.assert_array_equal(y, exact)


def test_objects_define_entries_and_table():
    module = _module()
    _add_scale(module, isas.PLAIN, "one")
    _add_scale(module, isas.PLAIN, "two")
    code = compile_kernels(module, isas.PLAIN, ["two", "one"], "abqc_kernels_plain")
    assert code.startswith(b"\x7fELF")
    for symbol in (b"one", b"two", b"abqc_kernels_plain"):
        assert b"\0" + symbol + b"\0" in code
    assert b"two.body" not in code  # bodies are internal and inlined


def test_an_unknown_kernel_is_named():
    module = _module()
    _add_scale(module, isas.PLAIN)
    with pytest.raises(CompileError, match="nothing_here"):
        compile_kernels(module, isas.PLAIN, ["nothing_here"], "table")


def test_arguments_are_slots():
    x = np.zeros((2, 3), np.float32)
    slots = pack_arguments([x, -1, 1.0])
    pointer = x.ctypes.data
    expected = [pointer, pointer, 0, 2, 3, 3, 1, 2**64 - 1, 0x3F800000]
    np.testing.assert_array_equal(slots, np.array(expected, np.uint64))


def test_forms_are_listed_best_first():
    assert ISAS[-1] is isas.PLAIN
    assert [isa for isa in isas.ALL if isa in ISAS] == list(ISAS)
    assert isas.by_name("avx2") is isas.AVX2
    with pytest.raises(KeyError, match="known"):
        isas.by_name("mmx")
