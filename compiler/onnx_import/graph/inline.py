"""Model-local functions: their calls are replaced by their bodies."""

from __future__ import annotations

from functools import cache

from abqc.errors import ModelError
from onnx import FunctionProto, NodeProto, inliner

from .load import named
from .model import Model, first_line, walk_nodes

Key = tuple[str, str]

MOST_NODES = 1_000_000


def inline_functions(model: Model) -> None:
    """Inlines all calls of the model's own functions; recursion is an error."""
    functions = {(f.domain, f.name): f for f in model.shell.functions}
    if not functions:
        return
    _refuse_recursion(functions)
    _refuse_explosion(model, functions)
    try:
        proto = inliner.inline_local_functions(model.to_proto(model.large_constants()))
    except Exception as error:
        raise ModelError(f"the model's functions cannot be inlined: {first_line(error)}") from error
    del model.shell.functions[:]
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


def _refuse_explosion(model: Model, functions: dict[Key, FunctionProto]) -> None:
    """Functions that call others several times each make a short file endless."""

    @cache
    def size(key: Key) -> int:
        return sum(map(of_node, walk_nodes(functions[key].node)))

    def of_node(node: NodeProto) -> int:
        key = (node.domain, node.op_type)
        return size(key) if key in functions else 1

    if sum(map(of_node, walk_nodes(model.nodes))) > MOST_NODES:
        raise ModelError(f"with its functions inlined, the model has over {MOST_NODES} nodes")
