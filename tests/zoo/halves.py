"""A model of 16-bit floats, computed in f32: what rounding after every operator is measured by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def has_halves(model: ModelProto) -> bool:
    return any(
        tensor.data_type in HALVES for graph in _graphs(model.graph) for tensor in _tensors(graph)
    )


def in_f32(model: ModelProto) -> None:
    """Make all tensors of 16-bit floats f32, in place; the weights keep their rounded values."""
    for graph in _graphs(model.graph):
        for tensor in _tensors(graph):
            if tensor.data_type in HALVES:
                wide = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in HALVES:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in HALVES:
                    attribute.i = TensorProto.FLOAT


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
