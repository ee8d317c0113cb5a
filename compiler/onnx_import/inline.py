"""Functions: calls of the model's own, and operators that ONNX defines by simpler ones."""

from __future__ import annotations

from abqc.errors import ModelError
from onnx import FunctionProto, ModelProto, inliner

from .load import named
from .model import Model, first_line, infer_shapes, walk_nodes

Key = tuple[str, str]

# Operators that torch-mlir has no conversion of, or a wrong one, and ONNX has a definition of.
EXPANDED = {
    "Attention", "AffineGrid", "CastLike", "CausalConvWithState", "CenterCropPad",
    "GroupNormalization", "LinearAttention", "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss", "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "RotaryEmbedding", "SoftmaxCrossEntropyLoss", "SwiGLU", "Swish",
}  # fmt: skip


def inline_functions(model: Model) -> None:
    """Inlines all calls of the model's own functions; recursion is an error."""
    functions = {(f.domain, f.name): f for f in model.shell.functions}
    if not functions:
        return
    _refuse_recursion(functions)
    try:
        proto = inliner.inline_local_functions(model.to_proto(model.large_constants()))
    except Exception as error:
        raise ModelError(f"the model's functions cannot be inlined: {first_line(error)}") from error
    del model.shell.functions[:]
    _take_nodes(model, proto)


def expand_operators(model: Model) -> None:
    """Replaces the operators in `EXPANDED` by their definitions; needs types."""
    names = {node.op_type for node in model.nodes if node.domain == ""} & EXPANDED
    if not names:
        return
    proto = infer_shapes(model.to_proto(model.large_constants()))
    try:
        expanded = inliner.inline_selected_functions(
            proto, [("", name) for name in sorted(names)], inline_schema_functions=True
        )
    except Exception as error:
        listed = ", ".join(sorted(names))
        raise ModelError(f"{listed} cannot be expanded: {first_line(error)}") from error
    _take_nodes(model, expanded)


def _take_nodes(model: Model, proto: ModelProto) -> None:
    del model.shell.opset_import[:]
    model.shell.opset_import.extend(proto.opset_import)
    model.nodes = named(proto.graph.node)


def _refuse_recursion(functions: dict[Key, FunctionProto]) -> None:
    """onnx's inliner does not end on functions that call each other in a circle."""
    done: set[Key] = set()

    def visit(key: Key, path: tuple[Key, ...]) -> None:
        if key in path:
            raise ModelError(f"function {key[0]}::{key[1]} of the model calls itself")
        if key in done or key not in functions:
            return
        for node in walk_nodes(functions[key].node):
            visit((node.domain, node.op_type), (*path, key))
        done.add(key)

    for key in functions:
        visit(key, ())
