"""The host function's way in and out, as LLVM IR text: inputs, outputs, appends to caches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...dialects.mlir import ir
from ...errors import CompileError
from ...passes.kernels.launch import APPEND

ENTRY = "abqc_host_main"
MAX_RANK = 8  # of abqc_view in the shim's interface

_DECLARATIONS = """\
declare ptr @abqc_rt_input(ptr, i32)
declare void @abqc_rt_output(ptr, i32, ptr, i32, ptr, ptr)
declare ptr @abqc_rt_append(ptr, i32, i32, i32, i32, ptr, ptr, ptr, ptr)
declare ptr @abqc_rt_grow(ptr, i32, i32, i32, i32, ptr, ptr)
declare ptr @abqc_rt_update(ptr, i32, i32, i32, i32, ptr, ptr, ptr, ptr, i64, ptr)
"""


def define_appends(text: str) -> str:
    """Replace the declarations of appends by functions that call the shim with arrays."""
    lines = []
    for line in text.split("\n"):
        name = rf"{re.escape(APPEND)}(update\.|grow\.)?\w+\.(\d+)"
        match = re.match(rf'declare .* @"?{name}"?\(', line)
        lines.append(_append_body(line, int(match[2]), match[1] or "") if match else line)
    return "\n".join(lines)


def _append_body(declaration: str, rank: int, kind: str) -> str:
    """`view = abqc_rt_append(ctx, input, output, axis, rank, data, sizes, strides)` by memrefs; of
    the `kind` "update.", abqc_rt_update, which gets `begins` and `capacity` too; of the kind
    "grow.", abqc_rt_grow, which gets sizes alone."""
    name = re.search(r'@("[^"]+"|[\w.]+)\(', declaration)
    assert name is not None
    descriptor = _descriptor(rank)
    sizes = [f"i64 %s{i}" for i in range(rank)] + [f"i64 %t{i}" for i in range(rank)]
    arguments = ["i64 %context", "i32 %in", "i32 %out", "i32 %axis"]
    function, data, more = "append", "ptr %data, ptr %sizes, ptr %strides, ", ""
    places: list[str] = []
    if kind == "grow.":
        function, data, sizes = "grow", "ptr %sizes, ", sizes[:rank]
    else:
        arguments += ["ptr %base", "ptr %data", "i64 %offset"]
    if kind == "update.":
        function, more = "update", "ptr %begins, i64 %capacity, "
        places = ["ptr %begins_base", "ptr %begins", "i64 %o", "i64 %count", "i64 %step"]
        places.append("i64 %capacity")
    lines = [
        f"define internal {descriptor} @{name[1]}({', '.join([*arguments, *sizes, *places])}) {{",
        "  %ctx = inttoptr i64 %context to ptr",
        f"  %view = alloca [{1 + 2 * MAX_RANK} x i64]",
        f"  %sizes = alloca [{rank} x i64]",
        f"  %strides = alloca [{rank} x i64]",
    ]
    for i in range(rank):
        for letter, array in (("s", "sizes"), ("t", "strides"))[: len(sizes) // rank]:
            lines += [
                f"  %{letter}p{i} = getelementptr i64, ptr %{array}, i64 {i}",
                f"  store i64 %{letter}{i}, ptr %{letter}p{i}",
            ]
    lines += [
        f"  %ignored = call ptr @abqc_rt_{function}(ptr %ctx, i32 %in, i32 %out, i32 %axis, "
        f"i32 {rank}, {data}{more}ptr %view)",
        "  %pointer = load ptr, ptr %view",
        f"  %d0 = insertvalue {descriptor} undef, ptr %pointer, 0",
        f"  %d1 = insertvalue {descriptor} %d0, ptr %pointer, 1",
        f"  %d2 = insertvalue {descriptor} %d1, i64 0, 2",
    ]
    last = "%d2"
    for i in range(rank):
        for field, first in ((3, 1), (4, 1 + MAX_RANK)):
            lines += [
                f"  %vp{field}.{i} = getelementptr i64, ptr %view, i64 {first + i}",
                f"  %v{field}.{i} = load i64, ptr %vp{field}.{i}",
                f"  %r{field}.{i} = insertvalue {descriptor} {last}, "
                f"i64 %v{field}.{i}, {field}, {i}",
            ]
            last = f"%r{field}.{i}"
    lines += [f"  ret {descriptor} {last}", "}"]
    return "\n".join(lines)


def entry(inputs: Sequence[ir.Type], outputs: Sequence[tuple[int, ir.Type]], text: str) -> str:
    """`int32_t abqc_host_main(abqc_ctx *)` in LLVM IR: views in, body, results out."""
    lines = [f"define hidden i32 @{ENTRY}(ptr %ctx) {{"]
    arguments: list[str] = []
    for i, type_ in enumerate(inputs):
        rank = ir.MemRefType(type_).rank
        lines += [
            f"  %v{i} = call ptr @abqc_rt_input(ptr %ctx, i32 {i})",
            f"  %d{i} = load ptr, ptr %v{i}",
        ]
        arguments += [f"ptr %d{i}", f"ptr %d{i}", "i64 0"]
        for kind, first in (("s", 1), ("t", 1 + MAX_RANK)):
            for j in range(rank):
                name = f"%{kind}{i}.{j}"
                lines += [
                    f"  {name}.p = getelementptr i64, ptr %v{i}, i64 {first + j}",
                    f"  {name} = load i64, ptr {name}.p",
                ]
                arguments.append(f"i64 {name}")
    lines.append("  %context = ptrtoint ptr %ctx to i64")
    arguments.append("i64 %context")
    descriptors = [_descriptor(ir.MemRefType(t).rank) for _, t in outputs]
    result = "void"
    if len(descriptors) == 1:
        result = descriptors[0]
    elif descriptors:
        result = "{ " + ", ".join(descriptors) + " }"
    call = f"call {result} @abqc_host_body({', '.join(arguments)})"
    lines.append(f"  {'%r = ' if descriptors else ''}{call}")
    for i, (number, type_) in enumerate(outputs):
        lines += _output(i, number, ir.MemRefType(type_), result, len(outputs))
    lines += ["  ret i32 0", "}"]
    return "\n".join([_DECLARATIONS, *lines]) + "\n"


def _descriptor(rank: int) -> str:
    sizes = f", [{rank} x i64], [{rank} x i64]" if rank else ""
    return f"{{ ptr, ptr, i64{sizes} }}"


def _output(i: int, number: int, type_: ir.MemRefType, result: str, count: int) -> list[str]:
    """Hand field `i` of `%r` to the shim as output `number`."""
    at = f"{i}, " if count > 1 else ""
    rank, size = type_.rank, element_bytes(type_.element_type)
    lines = [
        f"  %o{i} = extractvalue {result} %r, {at}1",
        f"  %f{i} = extractvalue {result} %r, {at}2",
        f"  %b{i} = mul i64 %f{i}, {size}",
        f"  %q{i} = getelementptr i8, ptr %o{i}, i64 %b{i}",
    ]
    pointers = []
    for name, field in (("m", 3), ("n", 4)):
        if not rank:
            pointers.append("ptr null")
            continue
        array = f"%{name}{i}"
        lines += [
            f"  {array}.v = extractvalue {result} %r, {at}{field}",
            f"  {array} = alloca [{rank} x i64]",
            f"  store [{rank} x i64] {array}.v, ptr {array}",
        ]
        pointers.append(f"ptr {array}")
    lines.append(
        f"  call void @abqc_rt_output(ptr %ctx, i32 {number}, ptr %q{i}, i32 {rank}, "
        f"{', '.join(pointers)})"
    )
    return lines


def element_bytes(element: ir.Type) -> int:
    if not isinstance(element, ir.IntegerType | ir.FloatType):
        raise CompileError(f"an output has elements of type {element}")
    return max(1, element.width // 8)
