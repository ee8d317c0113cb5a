"""The host function in the LLVM dialect: its buffers come from the run's arena."""

from __future__ import annotations

from ...dialects.mlir import PointerType, ir, linkage
from ...errors import CompileError
from ...passes.diagnostics import named
from ...passes.infrastructure import walk
from ...passes.kernels.checks import FLAG
from ...passes.kernels.counters import COUNTERS
from .launches import symbol

BODY = "abqc_host_body"

_ALLOCATORS = ("_mlir_memref_to_llvm_aligned_alloc", "_mlir_memref_to_llvm_alloc")
_FREE = "_mlir_memref_to_llvm_free"


def allocate_from_arena(module: ir.Module) -> ir.Value:
    """The generic allocation functions become those of the shim, which take the run's context.

    Returns the context as a pointer, at the beginning of the body.
    """
    pointer = PointerType.get()
    i64 = ir.IntegerType.get_signless(64)
    main = main_llvm(module)
    blocks = main.regions[0].blocks
    context = blocks[0].arguments[len(blocks[0].arguments) - 1]
    with ir.InsertionPoint.at_block_begin(blocks[0]):
        cast = ir.Operation.create("llvm.inttoptr", results=[pointer], operands=[context])
        context_pointer = cast.results[0]
    declare_llvm(module, "abqc_rt_alloc_for", "!llvm.func<ptr (ptr, i64, ptr)>")
    declare_llvm(module, "abqc_rt_free", "!llvm.func<void (ptr, ptr)>")
    nodes = _Texts(module, "node")
    for op in walk(main, "llvm.call"):
        if "callee" not in op.attributes:
            continue
        name = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
        if name not in (*_ALLOCATORS, _FREE):
            continue
        last = op.operands[len(op.operands) - 1]
        with ir.InsertionPoint(op), op.location:
            if name == _FREE:
                call_llvm("abqc_rt_free", [], [context_pointer, last])
            else:
                assert last.type == i64
                node = nodes.address(named(op.location))
                new = call_llvm("abqc_rt_alloc_for", [pointer], [context_pointer, last, node])
                op.results[0].replace_all_uses_with(new.results[0])
        op.erase()
    for op in list(module.body.operations):
        if op.operation.name == "llvm.func" and symbol(op.operation) in (*_ALLOCATORS, _FREE):
            op.operation.erase()
    return context_pointer


class _Texts:
    """C strings in a module of the LLVM dialect, each once."""

    def __init__(self, module: ir.Module, prefix: str) -> None:
        self._module = module
        self._prefix = prefix
        self._symbols: dict[str, str] = {}

    def address(self, text: str | None) -> ir.Value:
        """Of a text, at the insertion point; null for None."""
        pointer = PointerType.get()
        if text is None:
            return ir.Operation.create("llvm.mlir.zero", results=[pointer]).results[0]
        if text not in self._symbols:
            self._define(text)
        name = ir.FlatSymbolRefAttr.get(self._symbols[text])
        return ir.Operation.create(
            "llvm.mlir.addressof", results=[pointer], attributes={"global_name": name}
        ).results[0]

    def _define(self, text: str) -> None:
        symbol = self._symbols[text] = f"{self._prefix}.{len(self._symbols)}"
        size = len(text.encode()) + 1
        with ir.InsertionPoint.at_block_begin(self._module.body), ir.Location.unknown():
            ir.Operation.create(
                "llvm.mlir.global",
                regions=1,
                attributes={
                    "sym_name": ir.StringAttr.get(symbol),
                    "global_type": ir.TypeAttr.get(ir.Type.parse(f"!llvm.array<{size} x i8>")),
                    "linkage": linkage("private"),
                    "value": ir.StringAttr.get(text + "\0"),
                    "constant": ir.UnitAttr.get(),
                },
            )


def find_context_memory(module: ir.Module, context: ir.Value) -> None:
    """The addresses of the error flag and of counters become those of the run's context."""
    _replace_global(module, context, FLAG, "abqc_rt_error_flag")
    _replace_global(module, context, COUNTERS, "abqc_rt_counters", sized=True)


def _replace_global(
    module: ir.Module, context: ir.Value, name: str, service: str, *, sized: bool = False
) -> None:
    """A global's address becomes what the shim says; `sized`: it is asked for so many bytes."""
    pointer, i64 = PointerType.get(), ir.IntegerType.get_signless(64)
    uses = [
        op
        for op in walk(module.operation, "llvm.mlir.addressof")
        if ir.FlatSymbolRefAttr(op.attributes["global_name"]).value == name
    ]
    for declared in list(module.body.operations):
        if declared.operation.name != "llvm.mlir.global" or symbol(declared.operation) != name:
            continue
        if uses:
            declare_llvm(module, service, f"!llvm.func<ptr (ptr{', i64' * sized})>")
            with ir.InsertionPoint.after(context.owner), ir.Location.unknown():
                arguments = [context]
                if sized:
                    count = _words(declared.operation)
                    value = {"value": ir.IntegerAttr.get(i64, 4 * count)}
                    made = ir.Operation.create("llvm.mlir.constant", [i64], attributes=value)
                    arguments.append(made.results[0])
                address = call_llvm(service, [pointer], arguments).results[0]
        for op in uses:
            op.results[0].replace_all_uses_with(address)
            op.erase()
        declared.operation.erase()


def _words(declared: ir.Operation) -> int:
    """How many elements the array of a global has."""
    from ...dialects.mlir import llvm

    return llvm.ArrayType(ir.TypeAttr(declared.attributes["global_type"]).value).num_elements


def call_llvm(name: str, results: list[ir.Type], operands: list[ir.Value]) -> ir.Operation:
    return ir.Operation.create(
        "llvm.call",
        results=results,
        operands=operands,
        attributes={
            "callee": ir.FlatSymbolRefAttr.get(name),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(operands), 0]),
            "op_bundle_sizes": ir.DenseI32ArrayAttr.get([]),
        },
    )


def main_llvm(module: ir.Module) -> ir.Operation:
    for op in module.body.operations:
        if op.operation.name == "llvm.func" and symbol(op.operation) == "main":
            op.operation.attributes["sym_name"] = ir.StringAttr.get(BODY)
            op.operation.attributes["linkage"] = linkage("internal")
            return op.operation
    raise CompileError("the host module lost its function @main")


def declare_llvm(module: ir.Module, name: str, type_: str) -> None:
    with ir.InsertionPoint.at_block_begin(module.body):
        ir.Operation.create(
            "llvm.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(name),
                "function_type": ir.TypeAttr.get(ir.Type.parse(type_)),
                "linkage": linkage("external"),
                "CConv": ir.Attribute.parse("#llvm.cconv<ccc>"),
                "visibility_": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), 0),
            },
        )
