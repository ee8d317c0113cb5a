"""A model cut into models of one node each, to find the node that the front end dies of."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from .model import read_names
from .plan import Plan


def single_node_models(proto: ModelProto, plan: Plan) -> Iterator[tuple[str, ModelProto, Plan]]:
    """(node name, model, plan), once for nodes that differ in their name only.

    `proto` must have the types of its values; nodes with a value of unknown type are left out.
    """
    graph = proto.graph
    values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    weights = {weight.name: weight for weight in plan.weights}
    seen: set[bytes] = set()
    for node in graph.node:
        reads = list(dict.fromkeys(read_names(node)))
        inner = [name for name in reads if name in values or name in initializers]
        outputs = [name for name in node.output if name]
        if any(name not in values for name in outputs) or set(node.input) - set(inner) - {""}:
            continue
        signature = _signature(node, [values.get(n) or initializers[n] for n in inner])
        if signature in seen:
            continue
        seen.add(signature)
        used = [weights[name] for name in inner if name in weights]
        model = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        model.graph.name = "main"
        model.graph.node.append(node)
        model.graph.initializer.extend(initializers[n] for n in inner if n in initializers)
        plain = [n for n in inner if n not in weights and n not in initializers]
        model.graph.input.extend(values[n] for n in (*plain, *(w.name for w in used)))
        model.graph.output.extend(values[name] for name in outputs)
        symbols = tuple(("",) * len(values[n].type.tensor_type.shape.dim) for n in plain)
        yield node.name, model, Plan(tuple(used), plan.op_types, tuple(plain), symbols)


def _signature(node: NodeProto, inputs: list[ValueInfoProto | TensorProto]) -> bytes:
    bare = NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
    parts = [bare.SerializeToString(deterministic=True)]
    for value in inputs:
        copy = type(value)()
        copy.CopyFrom(value)  # type: ignore[arg-type]
        copy.name = ""
        parts.append(copy.SerializeToString(deterministic=True))
    return b"|".join(parts)
