"""The host function: what remains of `@main` after the kernels have left, as an object.

It computes sizes, asks the shim for buffers and launches grid functions. It is long and straight,
so LLVM compiles it without optimization (docs/architecture.md, "Objects of an artifact").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..dialects.mlir import arith, func, ir, llvm, memref
from ..errors import CompileError
from ..passes.infrastructure import main_function, walk
from ..passes.launch import APPEND, KERNEL, LOOPS, kernel_names, launched_kernel
from ..passes.resolve_dims import index
from .isa import PLAIN
from .llvm import lower, parse, target_machine, to_llvm_ir

ENTRY = "abqc_host_main"
MAX_RANK = 8  # of abqc_view in the shim's interface

# As codegen.llvm.LOWERING, for a module without vectors whose buffers come from the arena.
_LOWERING = ",".join(
    (
        "func.func(lower-affine,canonicalize,cse)",
        "expand-strided-metadata",
        "func.func(lower-affine,canonicalize,cse)",
        "convert-scf-to-cf",
        "convert-math-to-llvm",  # sizes computed in float (Resize)
        "convert-math-to-libm",
        "func.func(arith-expand,memref-expand)",
        "convert-ub-to-llvm",
        "convert-index-to-llvm",
        "finalize-memref-to-llvm{use-generic-functions=true use-aligned-alloc=true}",
        "convert-arith-to-llvm",
        "convert-func-to-llvm",
        "convert-cf-to-llvm",
        "reconcile-unrealized-casts",
    )
)

_DECLARATIONS = """\
declare ptr @abqc_rt_input(ptr, i32)
declare void @abqc_rt_output(ptr, i32, ptr, i32, ptr, ptr)
declare ptr @abqc_rt_append(ptr, i32, i32, i32, i32, ptr, ptr, ptr, ptr)
"""


def compile_host(
    module: ir.Module, kernels: Sequence[str], kept_outputs: Sequence[int] | None = None
) -> bytes:
    """The ELF object of the host function; lowers `module` in place.

    `kernels` gives the number of each kernel: its place in the list. `kept_outputs` are the
    model's outputs that the function returns (None: all); the others are made by appending. The
    object defines `int32_t abqc_host_main(abqc_ctx *)`.
    """
    with module.context, ir.Location.unknown():
        types = ir.TypeAttr(main_function(module.operation).attributes["function_type"]).value
        inputs, outputs = list(types.inputs), list(types.results)
        _check_types([*inputs, *outputs])
        _Host(module, kernels).rewrite()
    lower(module, _LOWERING)
    with module.context, ir.Location.unknown():
        _allocate_from_arena(module)
        text = to_llvm_ir(module)
    kept = list(range(len(outputs))) if kept_outputs is None else list(kept_outputs)
    text = _define_appends(text)
    text += _entry(inputs, list(zip(kept, outputs, strict=True)), text)
    machine = target_machine(PLAIN, optimize=False)
    compiled = parse(text, machine)
    for function in compiled.functions:
        # Not the weights: they go through the global offset table, because more than 2 GB of them
        # are out of reach of direct references. The linker relaxes what is near.
        if function.is_declaration:
            function.visibility = "hidden"
    return machine.emit_object(compiled)


def _check_types(types: Sequence[ir.Type]) -> None:
    for type_ in types:
        if not isinstance(type_, ir.MemRefType) or ir.MemRefType(type_).rank > MAX_RANK:
            raise CompileError(
                f"the model has an input or output of type {type_}",
                hint=f"tensors of at most {MAX_RANK} axes are supported",
            )


class _Host:
    """Turns launches and checks into calls of the shim."""

    def __init__(self, module: ir.Module, kernels: Sequence[str]) -> None:
        self.module = module
        self.numbers = {name: number for number, name in enumerate(kernels)}
        self.main = main_function(module.operation)
        self.i32 = ir.IntegerType.get_signless(32)
        self.i64 = ir.IntegerType.get_signless(64)
        self.messages: dict[str, str] = {}

    def rewrite(self) -> None:
        self._add_context()
        launch = [self.i64, self.i32, self.i64, self.i64]
        self._declare("abqc_rt_launch", launch)
        self._declare("abqc_rt_launch_loops", [*launch, self.i64])
        self._declare("abqc_rt_check", [self.i64, self.i32, self.i64])
        names = kernel_names(self.module.operation)
        calls = [(op, launched_kernel(op, names)) for op in walk(self.main, "func.call")]
        launches = [(op, name) for op, name in calls if name is not None]
        slots = self._slots(max((self._count(op) for op, _ in launches), default=1))
        for op, name in launches:
            with ir.InsertionPoint(op), op.location:
                self._launch(op, name, slots)
            op.erase()
        self._give_context_to_appends()
        for op in walk(self.main, "cf.assert"):
            with ir.InsertionPoint(op), op.location:
                self._check(op)
            op.erase()
        for op in list(self.module.body.operations):
            if KERNEL in op.operation.attributes:
                op.operation.erase()

    def _add_context(self) -> None:
        """The context (a pointer, as an integer) becomes main's last argument."""
        block = self.main.regions[0].blocks[0]
        self.context = block.add_argument(self.i64, ir.Location.unknown())
        type_ = ir.TypeAttr(self.main.attributes["function_type"]).value
        self.main.attributes["function_type"] = ir.TypeAttr.get(
            ir.FunctionType.get([*type_.inputs, self.i64], list(type_.results))
        )
        for name in ("arg_attrs", "res_attrs"):
            if name in self.main.attributes:
                del self.main.attributes[name]

    def _declare(self, name: str, types: list[ir.Type]) -> None:
        with ir.InsertionPoint.at_block_begin(self.module.body):
            func.FuncOp(name, ir.FunctionType.get(types, []), visibility="private")

    def _count(self, op: ir.Operation) -> int:
        return sum(
            3 + 2 * ir.MemRefType(o.type).rank if isinstance(o.type, ir.MemRefType) else 1
            for o in op.operands
        )

    def _slots(self, count: int) -> ir.Value:
        with ir.InsertionPoint.at_block_begin(self.main.regions[0].blocks[0]):
            return memref.AllocaOp(ir.MemRefType.get([count], self.i64), [], []).result

    def _launch(self, op: ir.Operation, name: str, slots: ir.Value) -> None:
        grid, *arguments = op.operands
        by_hand = not name.startswith(LOOPS)
        values = [slot for argument in arguments for slot in self._expand(argument, by_hand)]
        for position, value in enumerate(values):
            if value is not None:
                memref.StoreOp(value, slots, [index(position)])
        address = self._integer(memref.ExtractAlignedPointerAsIndexOp(slots).result)
        kernel = arith.ConstantOp(self.i32, ir.IntegerAttr.get(self.i32, self.numbers[name])).result
        operands = [self.context, kernel, self._integer(grid), address]
        if name.startswith(LOOPS):
            work = arith.MulIOp(grid, arguments[-1]).result
            self._call("abqc_rt_launch_loops", [*operands, self._integer(work)])
        else:
            self._call("abqc_rt_launch", operands)

    def _expand(self, value: ir.Value, pointer_only: bool) -> list[ir.Value | None]:
        """The 8-byte slots of one argument, as the LLVM dialect expands it.

        None for slots that the kernel does not read: the allocated pointer, what its type fixes,
        and all but the data of the flat buffers that kernels written by hand take.
        """
        type_ = value.type
        if not isinstance(type_, ir.MemRefType):
            if isinstance(type_, ir.FloatType):
                bits = ir.IntegerType.get_signless(type_.width)
                return [self._integer(arith.BitcastOp(bits, value).result)]
            return [self._integer(value)]
        rank = ir.MemRefType(type_).rank
        pointer = self._integer(memref.ExtractAlignedPointerAsIndexOp(value).result)
        slots: list[ir.Value | None] = [None, pointer, None, *[None] * (2 * rank)]
        if pointer_only:
            return slots
        strides, offset = ir.MemRefType(type_).get_strides_and_offset()
        dynamic = ir.ShapedType.get_dynamic_stride_or_offset()
        metadata = memref.ExtractStridedMetadataOp(value).operation.results
        if offset == dynamic:
            slots[2] = self._integer(metadata[1])
        for i, (size, stride) in enumerate(zip(type_.shape, strides, strict=True)):
            if size == ir.ShapedType.get_dynamic_size():
                slots[3 + i] = self._integer(metadata[2 + i])
            if stride == dynamic:
                slots[3 + rank + i] = self._integer(metadata[2 + rank + i])
        return slots

    def _integer(self, value: ir.Value) -> ir.Value:
        if isinstance(value.type, ir.IndexType):
            return arith.IndexCastUIOp(self.i64, value).result
        if ir.IntegerType(value.type).width == 64:
            return value
        return arith.ExtUIOp(self.i64, value).result

    def _give_context_to_appends(self) -> None:
        """Calls and declarations of appends get the context as their first argument."""
        for op in walk(self.main, "func.call"):
            callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
            if callee.startswith(APPEND):
                with ir.InsertionPoint(op), op.location:
                    new = func.CallOp(
                        [r.type for r in op.results],
                        op.attributes["callee"],
                        [self.context, *op.operands],
                    )
                op.results[0].replace_all_uses_with(new.results[0])
                op.erase()
        for op in self.module.body.operations:
            function = op.operation
            if function.name == "func.func" and _symbol(function).startswith(APPEND):
                type_ = ir.TypeAttr(function.attributes["function_type"]).value
                function.attributes["function_type"] = ir.TypeAttr.get(
                    ir.FunctionType.get([self.i64, *type_.inputs], list(type_.results))
                )

    def _check(self, op: ir.Operation) -> None:
        condition = arith.ExtUIOp(self.i32, op.operands[0]).result
        message = memref.GetGlobalOp(
            *self._message(ir.StringAttr(op.attributes["msg"]).value)
        ).result
        address = self._integer(memref.ExtractAlignedPointerAsIndexOp(message).result)
        self._call("abqc_rt_check", [self.context, condition, address])

    def _message(self, text: str) -> tuple[ir.Type, str]:
        data = text.encode() + b"\0"
        type_ = ir.MemRefType.get([len(data)], ir.IntegerType.get_signless(8))
        if text not in self.messages:
            name = self.messages[text] = f"message.{len(self.messages)}"
            tensor_type = ir.RankedTensorType.get([len(data)], ir.IntegerType.get_signless(8))
            with ir.InsertionPoint.at_block_begin(self.module.body):
                memref.GlobalOp(
                    ir.StringAttr.get(name),
                    ir.TypeAttr.get(type_),
                    sym_visibility=ir.StringAttr.get("private"),
                    initial_value=ir.DenseElementsAttr.get(memoryview(data), type=tensor_type),
                    constant=True,
                )
        return type_, self.messages[text]

    def _call(self, name: str, operands: list[ir.Value]) -> None:
        func.CallOp([], ir.FlatSymbolRefAttr.get(name), operands)


_ALLOCATORS = {
    "_mlir_memref_to_llvm_aligned_alloc": "abqc_rt_alloc",
    "_mlir_memref_to_llvm_alloc": "abqc_rt_alloc",
    "_mlir_memref_to_llvm_free": "abqc_rt_free",
}


def _allocate_from_arena(module: ir.Module) -> None:
    """The generic allocation functions become those of the shim, which take the run's context."""
    pointer = ir.Type.parse("!llvm.ptr")
    i64 = ir.IntegerType.get_signless(64)
    main = main_llvm(module)
    blocks = main.regions[0].blocks
    context = blocks[0].arguments[len(blocks[0].arguments) - 1]
    with ir.InsertionPoint.at_block_begin(blocks[0]):
        context_pointer = llvm.IntToPtrOp(pointer, context).result
    _declare_llvm(module, "abqc_rt_alloc", "!llvm.func<ptr (ptr, i64)>")
    _declare_llvm(module, "abqc_rt_free", "!llvm.func<void (ptr, ptr)>")
    for op in walk(main, "llvm.call"):
        if "callee" not in op.attributes:
            continue
        name = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
        if name not in _ALLOCATORS:
            continue
        last = op.operands[len(op.operands) - 1]
        assert name.endswith("free") or last.type == i64
        with ir.InsertionPoint(op), op.location:
            new = ir.Operation.create(
                "llvm.call",
                results=[r.type for r in op.results],
                operands=[context_pointer, last],
                attributes={
                    "callee": ir.FlatSymbolRefAttr.get(_ALLOCATORS[name]),
                    "operandSegmentSizes": ir.DenseI32ArrayAttr.get([2, 0]),
                    "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
                },
            )
        for old, result in zip(op.results, new.results, strict=True):
            old.replace_all_uses_with(result)
        op.erase()
    for op in list(module.body.operations):
        if op.operation.name == "llvm.func" and _symbol(op.operation) in _ALLOCATORS:
            op.operation.erase()


def _symbol(op: ir.Operation) -> str:
    return ir.StringAttr(op.attributes["sym_name"]).value


def main_llvm(module: ir.Module) -> ir.Operation:
    for op in module.body.operations:
        if op.operation.name == "llvm.func" and _symbol(op.operation) == "main":
            op.operation.attributes["sym_name"] = ir.StringAttr.get("abqc_host_body")
            op.operation.attributes["linkage"] = ir.Attribute.parse("#llvm.linkage<internal>")
            return op.operation
    raise CompileError("the host module lost its function @main")


def _declare_llvm(module: ir.Module, name: str, type_: str) -> None:
    with ir.InsertionPoint.at_block_begin(module.body):
        ir.Operation.create(
            "llvm.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(name),
                "function_type": ir.TypeAttr.get(ir.Type.parse(type_)),
                "linkage": ir.Attribute.parse("#llvm.linkage<external>"),
                "CConv": ir.Attribute.parse("#llvm.cconv<ccc>"),
                "visibility_": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0),
            },
        )


def _define_appends(text: str) -> str:
    """Replace the declarations of appends by functions that call the shim with arrays."""
    lines = []
    for line in text.split("\n"):
        match = re.match(rf'declare .* @"?{re.escape(APPEND)}\w+\.(\d+)"?\(', line)
        lines.append(_append_body(line, int(match[1])) if match else line)
    return "\n".join(lines)


def _append_body(declaration: str, rank: int) -> str:
    """`view = abqc_rt_append(ctx, input, output, axis, rank, data, sizes, strides)` by memrefs."""
    name = re.search(r'@("[^"]+"|[\w.]+)\(', declaration)
    assert name is not None
    descriptor = _descriptor(rank)
    sizes = [f"i64 %s{i}" for i in range(rank)] + [f"i64 %t{i}" for i in range(rank)]
    arguments = [
        "i64 %context",
        "i32 %in",
        "i32 %out",
        "i32 %axis",
        "ptr %base",
        "ptr %data",
        "i64 %offset",
    ]
    lines = [
        f"define internal {descriptor} @{name[1]}({', '.join([*arguments, *sizes])}) {{",
        "  %ctx = inttoptr i64 %context to ptr",
        f"  %view = alloca [{1 + 2 * MAX_RANK} x i64]",
        f"  %sizes = alloca [{rank} x i64]",
        f"  %strides = alloca [{rank} x i64]",
    ]
    for i in range(rank):
        for kind, array in (("s", "sizes"), ("t", "strides")):
            lines += [
                f"  %{kind}p{i} = getelementptr i64, ptr %{array}, i64 {i}",
                f"  store i64 %{kind}{i}, ptr %{kind}p{i}",
            ]
    lines += [
        "  %ignored = call ptr @abqc_rt_append(ptr %ctx, i32 %in, i32 %out, i32 %axis, "
        f"i32 {rank}, ptr %data, ptr %sizes, ptr %strides, ptr %view)",
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


def _entry(inputs: Sequence[ir.Type], outputs: Sequence[tuple[int, ir.Type]], text: str) -> str:
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
    rank, size = type_.rank, _bytes(type_.element_type)
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


def _bytes(element: ir.Type) -> int:
    width = re.search(r"\d+", str(element))
    if width is None:
        raise CompileError(f"an output has elements of type {element}")
    return max(1, int(width[0]) // 8)
