"""A model whose float weights have noise of half a unit in the last place.

Where activations have codes a value may cross to the next code by it, so that how far the model
is from itself then bounds what two right implementations may differ by (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

LEVEL = 3e-7  # the standard deviation of the noise, relative to each weight
FEW = 16
ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def rounds_at_run_time(model: ModelProto) -> bool:
    return any(node.op_type in ROUNDS for node in _nodes(model))


def with_noise(model: ModelProto, seed: int) -> ModelProto:
    """A copy with other weights; FEW numbers, such as a scale or what Resize takes, stay."""
    rng = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size > FEW:
            moved = values * (1 + LEVEL * rng.standard_normal(values.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return result


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node
