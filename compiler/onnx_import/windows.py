"""Operators with sliding windows: padding made explicit."""

from __future__ import annotations

import numpy as np
from abqc.errors import ModelError
from onnx import NodeProto, TensorProto, helper

from .build import Nodes
from .model import Model, attribute


def window(model: Model, node: NodeProto) -> list[NodeProto] | None:
    """`auto_pad` becomes `pads`, and uneven `pads` a Pad node before.

    (torch-mlir makes sizes of -1 of uneven pads around dynamic sizes.)
    """
    mode = attribute(node, "auto_pad", b"NOTSET").decode()
    pads = _pads(model, node, mode) if mode != "NOTSET" else attribute(node, "pads", [])
    half = len(pads) // 2
    uneven = pads[:half] != pads[half:]
    if mode == "NOTSET" and not uneven:
        return None
    new = Nodes(model, node)
    x = node.input[0]
    if uneven and (value := _pad_value(model, node)) is not None:
        amounts = new.constant("pads", np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64))
        x = new.add("Pad", [x, amounts, new.scalar("pad_value", value)], "padded")
        pads = [0] * len(pads)
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = x
    kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
    del copy.attribute[:]
    copy.attribute.extend([*kept, helper.make_attribute("pads", pads)])
    return [*new, copy]


def _pad_value(model: Model, node: NodeProto) -> float | None:
    """What a Pad must write before the node; None where padding is more than a value."""
    if model.elem_type(node.input[0]) != TensorProto.FLOAT or model.opset < 11:
        return None
    if attribute(node, "ceil_mode", 0) or len(node.output) > 1:
        return None
    if node.op_type == "Conv":
        return 0.0
    if node.op_type == "MaxPool":
        return float("-inf")
    return 0.0 if attribute(node, "count_include_pad", 0) else None


def _pads(model: Model, node: NodeProto, mode: str) -> list[int]:
    window = attribute(node, "kernel_shape") or list(model.shape(node.input[1]) or ())[2:]
    spatial = len(window)
    if mode == "VALID":
        return [0] * (2 * spatial)
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    sizes = (model.shape(node.input[0]) or (None,) * (spatial + 2))[2:]
    begins, ends = [], []
    for size, extent, stride, dilation in zip(sizes, window, strides, dilations, strict=True):
        reach = (extent - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif size is None:
            raise ModelError(
                f"{node.op_type} with auto_pad {mode} and strides needs a fixed input size",
                node=node.name,
                hint="pin the model's input with --shape",
            )
        else:
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        begins.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends
