"""Operators that ONNX defines by simpler ones, replaced by their definitions.

(onnx's inliner does that, too, but loses the defaults of attributes, and gives up on nodes whose
optional inputs are left out.)
"""

from __future__ import annotations

from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, defs, helper

from .model import Model, subgraphs

# What torch-mlir has no conversion of, or a wrong one.
EXPANDED = {
    "Attention", "AffineGrid", "CausalConvWithState", "CenterCropPad", "GroupNormalization",
    "LinearAttention", "MeanVarianceNormalization", "RMSNormalization", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "RotaryEmbedding", "SwiGLU", "Swish",
}  # fmt: skip


def expand_operators(model: Model) -> None:
    """Replaces the operators in `EXPANDED`, and CastLike by Cast; definitions may nest."""
    while True:
        model.infer_types()
        result: list[NodeProto] = []
        for node in model.nodes:
            definition = _definition(model, node)
            result.extend([node] if definition is None else definition)
        changed = len(result) != len(model.nodes)
        model.nodes = result
        if not changed:
            return


def _definition(model: Model, node: NodeProto) -> list[NodeProto] | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "CastLike":
        to = model.elem_type(node.input[1])
        if to:
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, node.name, to=to))
        return None
    if node.op_type not in EXPANDED:
        return None
    schema = defs.get_schema(node.op_type, model.opset, "")
    function = _function(model, node, schema)
    return None if function is None else _body(function, node, schema)


def _function(model: Model, node: NodeProto, schema: defs.OpSchema) -> FunctionProto | None:
    """The definition of an operator for the types of its inputs, valid in the model's opset."""
    versions = [
        *schema.function_opset_versions,
        *schema.context_dependent_function_opset_versions,
    ]
    for version in sorted((v for v in versions if v <= model.opset), reverse=True):
        if version in schema.function_opset_versions:
            data = schema.get_function_with_opset_version(version)
        else:
            types = [_type(model, name).SerializeToString() for name in node.input]
            data = schema.get_context_dependent_function_with_opset_version(
                version, node.SerializeToString(), types
            )
        function = FunctionProto()
        function.ParseFromString(data)
        if function.node and all(_same_in(model, n, version) for n in function.node):
            return function
    return None


def _type(model: Model, name: str) -> TypeProto:
    if name in model.constants:
        constant = model.constants[name]
        return helper.make_tensor_type_proto(constant.elem_type, constant.shape)
    return model.types.get(name, TypeProto())


def _same_in(model: Model, node: NodeProto, version: int) -> bool:
    """Whether an operator means the same in opset `version` and in the model's."""
    if not defs.has(node.op_type, model.opset, "") or not defs.has(node.op_type, version, ""):
        return False
    old, new = (defs.get_schema(node.op_type, v, "") for v in (version, model.opset))
    # Later versions that only add types have the same inputs and attributes.
    return old.since_version == new.since_version or (
        [i.name for i in old.inputs] == [i.name for i in new.inputs]
        and set(old.attributes) == set(new.attributes)
    )


def _body(function: FunctionProto, call: NodeProto, schema: defs.OpSchema) -> list[NodeProto]:
    """The function's nodes, their values and names prefixed by the call's name."""
    given = {item.name: item for item in call.attribute}
    for name, parameter in schema.attributes.items():
        if name not in given and parameter.default_value.name:
            given[name] = parameter.default_value
    names = dict.fromkeys(function.input, "")  # optional ones may be left out
    names.update(zip(function.input, call.input, strict=False))
    for formal, actual in zip(function.output, call.output, strict=False):
        if actual:
            names[formal] = actual
    return [_instance(node, names, given, call.name) for node in function.node]


def _instance(
    node: NodeProto, names: dict[str, str], given: dict[str, AttributeProto], prefix: str
) -> NodeProto:
    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}/{name}") if name else ""

    copy = NodeProto(op_type=node.op_type, domain=node.domain)
    copy.name = f"{prefix}/{node.name or node.op_type}_{node.output[0]}"
    copy.input.extend(renamed(name) for name in node.input)
    copy.output.extend(renamed(name) for name in node.output)
    for item in node.attribute:
        value = AttributeProto()
        value.CopyFrom(given.get(item.ref_attr_name, value) if item.ref_attr_name else item)
        if value.type == AttributeProto.UNDEFINED:
            continue  # refers to an attribute that the call does not have
        value.name = item.name
        copy.attribute.append(value)
    for graph in subgraphs(copy):
        inner = [_instance(each, names, given, prefix) for each in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for output in (*graph.output, *graph.input):
            output.name = renamed(output.name)
        for tensor in graph.initializer:
            tensor.name = renamed(tensor.name)
    return copy
