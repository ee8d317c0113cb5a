"""PTX text to modules."""

from __future__ import annotations

import pytest
from abqc.runtime.ptx import Device, PtxSyntaxError, parse
from abqc.runtime.ptx.syntax import (
    Address,
    Float,
    Instruction,
    Integer,
    Label,
    Not,
    Pair,
    Register,
    Scope,
    Sink,
    Symbol,
    Targets,
    Vector,
)

HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"


FIRST = 7  # the line at which the body of `kernel` starts


def kernel(body: str, before: str = "") -> str:
    return f"{HEADER}{before}\n.visible .entry k(.param .u64 a)\n{{\n{body}\nret;\n}}\n"


def statements(body: str) -> list:
    return list(parse(kernel(body)).kernels["k"].function.body.items)


def instruction(text: str) -> Instruction:
    return next(item for item in statements(text) if isinstance(item, Instruction))


def test_modules():
    module = parse(
        HEADER
        + """
        // comment
        .file 1 "a // b.cu"
        .extern .shared .align 16 .b8 dynamic[];
        .const .align 4 .b8 table[8] = {1, 0, 0, 0, 0xFF};
        .visible .global .align 8 .u64 where = generic(table)+4;
        .global .f32 floats[2] = {0f3F800000, 0f40000000};
        .visible .entry k(
            .param .u64 .ptr .global .align 1 k_param_0,
            .param .align 4 .b8 k_param_1[12],
            .param .f32 k_param_2
        )
        .reqntid 64, 2, 1
        .minnctapersm 2
        {
            .shared .align 16 .b8 tile[4096];
            .loc 1 5 3, function_name $L__info, inlined_at 1 7 3
            ret;
        }
        .section .debug_str { .b8 1, 2 }
        """
    )
    assert module.version == (8, 6)
    assert module.target == "sm_90a"
    found = module.kernels["k"]
    assert [p.type.name for p in found.parameters] == ["u64", "b8", "f32"]
    assert [p.bytes for p in found.parameters] == [8, 12, 4]
    assert found.required_threads == found.max_threads == 128
    assert found.shared_bytes == 4096
    by_name = {variable.name: variable for variable in module.variables}
    assert by_name["table"].initial == (1, 0, 0, 0, 255)
    assert by_name["where"].initial == (Symbol("table", 4),)
    assert [value.value for value in by_name["floats"].initial] == [1.0, 2.0]
    assert by_name["dynamic"].external


def test_bounds_of_threads():
    module = parse(f"{HEADER}.entry k() .maxntid 256, 1, 1 {{ ret; }}")
    assert module.kernels["k"].max_threads == 256
    assert module.kernels["k"].required_threads is None


@pytest.mark.parametrize(
    ("text", "operands"),
    [
        ("add.s32 %r1, %r2, -5;", (Register("%r1"), Register("%r2"), Integer(-5))),
        ("mov.u32 %r1, 0xFFU;", (Register("%r1"), Integer(255))),
        ("mov.f32 %f1, 0f3F800000;", (Register("%f1"), Float(1.0, 0x3F800000, 32))),
        ("mov.u32 %r1, %tid.x;", (Register("%r1"), Register("%tid.x"))),
        ("mov.u64 %r1, table+4;", (Register("%r1"), Symbol("table", 4))),
        ("mov.u64 %r1, generic(table);", (Register("%r1"), Symbol("table"))),
        ("ld.u32 %r1, [%r2+-8];", (Register("%r1"), Address(Register("%r2"), -8))),
        ("ld.u32 %r1, [%r2-8];", (Register("%r1"), Address(Register("%r2"), -8))),
        ("ld.u32 %r1, [a_param];", (Register("%r1"), Address(Symbol("a_param"), 0))),
        ("ld.u32 %r1, [64];", (Register("%r1"), Address(None, 64))),
        (
            "st.v2.u32 [%r2], {%r1, _};",
            (Address(Register("%r2"), 0), Vector((Register("%r1"), Sink()))),
        ),
        (
            "setp.lt.s32 %p1|%p2, %r1, 3;",
            (Pair(Register("%p1"), Register("%p2")), Register("%r1"), Integer(3)),
        ),
        ("vote.sync.all.pred %p1, !%p2, -1;", (Register("%p1"), Not(Register("%p2")), Integer(-1))),
    ],
)
def test_operands(text, operands):
    assert instruction(text).operands == operands


def test_guards_and_lines():
    found = instruction("\n\n  @!%p1   bra.uni\n $L1;\n $L1:")
    assert found.guard == Not(Register("%p1"))
    assert (found.opcode, found.modifiers) == ("bra", ("uni",))
    assert found.line == FIRST + 2
    assert found.text == "@!%p1 bra.uni $L1;"


def test_equal_shapes_do_not_mix_their_words():
    first, second = (instruction(f"add.s32 %r{k}, %r{k + 1}, {k};") for k in (1, 5))
    assert first.operands == (Register("%r1"), Register("%r2"), Integer(1))
    assert second.operands == (Register("%r5"), Register("%r6"), Integer(5))


def test_labels_scopes_and_targets():
    items = statements("$L0: .branchtargets A, B;\n A: { .reg .b32 %x; mov.u32 %x, 1; } B:")
    assert isinstance(items[0], Targets) and items[0].labels == ("A", "B")
    assert isinstance(items[1], Label) and items[1].name == "A"
    assert isinstance(items[2], Scope) and len(items[2].items) == 2


def test_wgmma_parses():
    found = instruction(
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.u8.s8 {%r1, %r2, %r3, %r4}, %rd1, %rd2, p;"
    )
    assert found.opcode == "wgmma" and "m64n8k32" in found.modifiers


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("add.s32 %r1, %r2", FIRST),
        ("add.s32 %r1, [%r2;", FIRST),
        ("}", FIRST + 1),
        ("\n\nmov.u32 %r1, #;", FIRST + 2),
        (".reg .b33 %r1;", FIRST),
    ],
)
def test_syntax_errors_have_the_line(body, line):
    with pytest.raises(PtxSyntaxError) as error:
        parse(kernel(body))
    assert error.value.line == line


def test_text_that_ends_too_early():
    with pytest.raises(PtxSyntaxError, match="ends too early"):
        parse(HEADER + ".entry k()")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown instruction"),
        ("add.frob.s32 %r1, %r1, %r1;", "unknown modifier .frob"),
        ("add.s32 %r1, %r9, 1;", "%r9 is not declared"),
        ("add.s64 %r1, %r1, 1;", "32 bits where .s64"),
        ("bra nowhere;", "label nowhere is not declared"),
        ("mov.u64 %l1, nothing;", "nothing is not declared"),
        (
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.f16.s32 {%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1},"
            " {%r1,%r1}, {%r1,%r1,%r1,%r1};",
            "no operands of u8 with f16",
        ),
        ("call nobody, ();", "only functions of the module"),
        ("min.s32 %r1, %r1;", "2 operands"),
    ],
)
def test_decoding_errors_have_the_line(body, message):
    module = parse(kernel(f".reg .b32 %r<4>; .reg .b64 %l<4>;\n{body}"))
    with pytest.raises(PtxSyntaxError, match=message) as error:
        Device().launch(module.kernels["k"], (1, 1, 1), (32, 1, 1), [0])
    assert error.value.line == FIRST + 1
