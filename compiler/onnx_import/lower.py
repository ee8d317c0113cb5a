"""ONNX -> torch dialect -> linalg + abq: torch-mlir's passes, our own rewrite between them."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from abqc.dialects.mlir import PassManager, ir, onnx_importer

from .dims import resolve_dims
from .locations import node_name
from .plan import Plan
from .torch_to_abq import Used, take_weights

TO_TORCH = "func.func(convert-torch-onnx-to-torch)"

# torch-onnx-to-torch-backend-pipeline, then the one that legalizes what that leaves. The first
# computes the sizes that ONNX keeps in tensors as scalars, which the second alone does not.
TO_BACKEND_CONTRACT = (
    "func.func(torch-decompose-complex-ops,canonicalize)",
    "func.func(torch-scalarize-shapes)",
    "torch-refine-public-return",
    "func.func(canonicalize,torch-decompose-complex-ops,canonicalize)",
    "torch-lower-to-backend-contract",
)

# torch-backend-to-linalg-on-tensors-backend-pipeline without the verifier that rejects our ops.
TO_LINALG = (
    "func.func(torch-restructure-non-constant-axes)",
    "func.func(torch-fuse-quantized-ops)",
    "func.func(convert-torch-to-tmtensor)",
    "func.func(canonicalize)",
    "func.func(convert-torch-to-linalg)",
    "func.func(canonicalize)",
    "func.func(convert-torch-to-scf)",
    "func.func(convert-torch-to-arith)",
    "func.func(convert-torch-to-tensor)",
    "convert-torch-conversion-to-mlprogram",
)

FINALIZE = (
    "func.func(memref-expand,canonicalize,resolve-shaped-type-result-dims,cse)",
    "torch-func-backend-type-conversion",
    "func.func(canonicalize,torch-finalizing-backend-type-conversion)",
    "canonicalize",
    "cse",
)


class Refused(Exception):
    """The front end cannot lower a node; `node` is its name where that is known."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


def lower(
    proto: onnx.ModelProto, plan: Plan, on_stage: Callable[[str], object] = lambda stage: None
) -> tuple[ir.Module, list[Used]]:
    """The module and the uses of weights in it. Needs a current context with all dialects.

    `on_stage` is called with the name of each stage before it runs.
    """

    def run(*pipelines: str) -> None:
        for pipeline in pipelines:
            on_stage(pipeline)
            _run(module, pipeline)

    on_stage("the ONNX importer")
    module = _import(proto)
    run(TO_TORCH)
    _refuse_unconverted(module)
    run(*TO_BACKEND_CONTRACT)
    used = take_weights(module, plan)
    run(*TO_LINALG)
    _refuse_unlowered(module)
    run(*FINALIZE)
    _drop_arguments(module, len(plan.weights))
    on_stage("resolve-dims")
    resolve_dims(module, plan.symbols, plan.inputs)
    return module, used


def _import(proto: onnx.ModelProto) -> ir.Module:
    proto.graph.name = "main"
    try:
        info = onnx_importer.ModelInfo(proto, config=onnx_importer.Config())
        module = info.create_module(context=ir.Context.current)
        importer = onnx_importer.NodeImporter.define_function(info.main_graph, module.operation)
        importer.import_all()
    except onnx_importer.OnnxImportError as error:
        raise Refused(str(error)) from error
    return module


def _run(module: ir.Module, pipeline: str) -> None:
    try:
        PassManager.parse(f"builtin.module({pipeline})").run(module.operation)
    except ir.MLIRError as error:
        diagnostic = error.error_diagnostics[0] if error.error_diagnostics else None
        text = diagnostic.message if diagnostic else str(error)
        node = node_name(diagnostic.location) if diagnostic else None
        raise Refused(f"{pipeline}: {text}", node) from error


def _refuse_unconverted(module: ir.Module) -> None:
    """What the first conversion leaves as `torch.operator` fails later, with a worse message."""
    for op in _operations(module):
        if op.name == "torch.operator":
            name = ir.StringAttr(op.attributes["name"]).value
            raise Refused(f'name = "{name}" has no conversion', node_name(op.location))


def _refuse_unlowered(module: ir.Module) -> None:
    """As before, of the last conversions."""
    for op in _operations(module):
        if op.name.startswith(("torch.aten.", "torch.prims.")):
            types = ", ".join(str(operand.type) for operand in op.operands)
            raise Refused(f"{op.name} of ({types}) has no lowering", node_name(op.location))


def _operations(module: ir.Module) -> list[ir.Operation]:
    operations: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        operations.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return operations


def _drop_arguments(module: ir.Module, count: int) -> None:
    """Removes the last `count` arguments of the function: the weights, unused by now."""
    if not count:
        return
    function = module.body.operations[0]
    block = function.regions[0].blocks[0]
    kept = len(block.arguments) - count
    for index in reversed(range(kept, len(block.arguments))):
        block.erase_argument(index)
    type_ = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
    inputs, results = type_.inputs[:kept], type_.results
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))
    if "arg_attrs" in function.attributes:
        del function.attributes["arg_attrs"]
