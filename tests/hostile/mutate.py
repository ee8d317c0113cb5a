"""Changes to a good model that make it odd, one at a time: a fuzzer over the protobuf."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import onnx
from onnx import AttributeProto, TensorProto

Mutation = Callable[[onnx.ModelProto, random.Random], None]
MUTATIONS: list[Mutation] = []

_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    -2,
    7,
    64,
    2**31 - 1,
    2**31,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
_REALS = (0.0, -1.0, 1e30, -1e30, 1e-30, float("nan"), float("inf"), 3.0)
_TEXTS = ("", "SAME_UPPER", "reflect", "é\n\0", "x" * 300, "ij->ji", "linear")
_OPERATORS = (
    "Add", "MatMul", "Concat", "Reshape", "Gather", "Slice", "Conv", "MaxPool", "Softmax", "Cast",
    "Where", "ReduceSum", "Transpose", "Loop", "If", "Resize", "Pad", "TopK", "LSTM", "Expand",
    "Split", "Einsum", "DequantizeLinear", "ScatterND", "Attention", "Tile", "Unsqueeze", "Range",
)  # fmt: skip


def mutated(model: onnx.ModelProto, choose: random.Random, count: int) -> bytes:
    """The model with `count` changes, as a file; now and then with broken bytes too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(count):
        try:
            choose.choice(MUTATIONS)(copy, choose)
        except (IndexError, ValueError):
            continue  # nothing there to change, or a number that the field does not take
    data = bytearray(copy.SerializeToString())
    if choose.random() < 0.15:
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(data)


def _mutation(function: Mutation) -> Mutation:
    MUTATIONS.append(function)
    return function


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _graph(model: onnx.ModelProto, choose: random.Random) -> onnx.GraphProto:
    return choose.choice(list(_graphs(model.graph)))


def _node(model: onnx.ModelProto, choose: random.Random) -> onnx.NodeProto:
    return choose.choice(_graph(model, choose).node)


def _names(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return [
        "",
        "ghost",
        *made,
        *(v.name for v in graph.input),
        *(t.name for t in graph.initializer),
    ]


@_mutation
def rewire(model: onnx.ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    node.input[choose.randrange(len(node.input))] = choose.choice(_names(model.graph))


@_mutation
def drop_input(model: onnx.ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    del node.input[choose.randrange(len(node.input))]


@_mutation
def add_input(model: onnx.ModelProto, choose: random.Random) -> None:
    _node(model, choose).input.append(choose.choice(_names(model.graph)))


@_mutation
def rename_output(model: onnx.ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    node.output[choose.randrange(len(node.output))] = choose.choice(_names(model.graph))


@_mutation
def drop_node(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    del graph.node[choose.randrange(len(graph.node))]


@_mutation
def move_node(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    nodes = list(graph.node)
    choose.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


@_mutation
def repeat_node(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    graph.node.add().CopyFrom(choose.choice(graph.node))


@_mutation
def other_operator(model: onnx.ModelProto, choose: random.Random) -> None:
    _node(model, choose).op_type = choose.choice(_OPERATORS)


@_mutation
def other_domain(model: onnx.ModelProto, choose: random.Random) -> None:
    _node(model, choose).domain = choose.choice(["com.microsoft", "ai.onnx.ml", "ghost", ""])


@_mutation
def attribute_value(model: onnx.ModelProto, choose: random.Random) -> None:
    attribute = choose.choice(_node(model, choose).attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = choose.choice(_NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = choose.choice(_REALS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = choose.choice(_TEXTS).encode()
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[choose.randrange(len(attribute.ints))] = choose.choice(_NUMBERS)


@_mutation
def attribute_length(model: onnx.ModelProto, choose: random.Random) -> None:
    attribute = choose.choice(_node(model, choose).attribute)
    if choose.random() < 0.5:
        attribute.ints.append(choose.choice(_NUMBERS))
    else:
        del attribute.ints[choose.randrange(len(attribute.ints)) :]


@_mutation
def attribute_kind(model: onnx.ModelProto, choose: random.Random) -> None:
    choose.choice(_node(model, choose).attribute).type = choose.randrange(0, 15)


@_mutation
def drop_attribute(model: onnx.ModelProto, choose: random.Random) -> None:
    node = _node(model, choose)
    del node.attribute[choose.randrange(len(node.attribute))]


@_mutation
def size(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = model.graph
    value = choose.choice([*graph.input, *graph.output, *graph.value_info])
    dim = choose.choice(value.type.tensor_type.shape.dim)
    if choose.random() < 0.4:
        dim.dim_param = choose.choice(["n", "m", "", "n + 1", "-3", "n m"])
    else:
        dim.dim_value = choose.choice(_NUMBERS)


@_mutation
def rank(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = model.graph
    value = choose.choice([*graph.input, *graph.output, *graph.value_info])
    dims = value.type.tensor_type.shape.dim
    if choose.random() < 0.5:
        dims.add().dim_value = choose.choice([0, 1, 2, 3])
    else:
        del dims[choose.randrange(len(dims))]


@_mutation
def element_type(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = model.graph
    value = choose.choice([*graph.input, *graph.output, *graph.value_info])
    value.type.tensor_type.elem_type = choose.randrange(0, 30)


@_mutation
def no_type(model: onnx.ModelProto, choose: random.Random) -> None:
    choose.choice([*model.graph.input, *model.graph.output]).ClearField("type")


def _tensor(model: onnx.ModelProto, choose: random.Random) -> TensorProto:
    graph = _graph(model, choose)
    values = [a.t for node in graph.node for a in node.attribute if a.type == AttributeProto.TENSOR]
    return choose.choice([*graph.initializer, *values])


@_mutation
def tensor_size(model: onnx.ModelProto, choose: random.Random) -> None:
    tensor = _tensor(model, choose)
    tensor.dims[choose.randrange(len(tensor.dims))] = choose.choice(_NUMBERS)


@_mutation
def tensor_type(model: onnx.ModelProto, choose: random.Random) -> None:
    _tensor(model, choose).data_type = choose.randrange(0, 30)


@_mutation
def tensor_data(model: onnx.ModelProto, choose: random.Random) -> None:
    """Numbers that sizes, axes and indices do not have."""
    tensor = _tensor(model, choose)
    if tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) >= 8:
        at = 8 * choose.randrange(len(tensor.raw_data) // 8)
        number = choose.choice(_NUMBERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + number + tensor.raw_data[at + 8 :]
    else:
        tensor.raw_data = tensor.raw_data[: choose.randrange(len(tensor.raw_data))]


@_mutation
def opset(model: onnx.ModelProto, choose: random.Random) -> None:
    version = choose.choice([0, 1, 5, 7, 9, 11, 13, 18, 21, 23, 28, 29, 2**40, -1])
    choose.choice(model.opset_import).version = version


@_mutation
def graph_output(model: onnx.ModelProto, choose: random.Random) -> None:
    graph = _graph(model, choose)
    choose.choice(graph.output).name = choose.choice(_names(graph))
