"""Forms of operators that torch-mlir lowers without a word, but to something else."""

from __future__ import annotations

from collections.abc import Callable

from abqc.errors import ModelError
from onnx import NodeProto

from .model import Model, attribute


def refuse_misread(model: Model) -> None:
    """Raises ModelError for the first node in such a form."""
    for node in model.nodes:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        reason = rule(model, node) if rule else None
        if reason:
            raise ModelError(f"{node.op_type} {reason} is not supported", node=node.name)


def _recurrent(model: Model, node: NodeProto) -> str | None:
    if len(node.input) > 7 and node.input[7]:
        return "with peepholes"
    if attribute(node, "clip"):
        return "with clip"
    return "with input_forget" if attribute(node, "input_forget", 0) else None


def _resize(model: Model, node: NodeProto) -> str | None:
    """torch-mlir computes positions from the rounded output size, ONNX from the scale."""
    mode = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    scales = model.constants.get(node.input[2]) if len(node.input) > 2 else None
    if mode != "align_corners" or scales is None or scales.size == 0:
        return None
    shape = model.shape(node.input[0]) or ()
    for size, scale in zip(shape, scales.load().reshape(-1), strict=False):
        whole = float(scale).is_integer() if size is None else float(size * scale).is_integer()
        if not whole:
            return "with align_corners and a scale that gives no whole size"
    return None


def _grid_sample(model: Model, node: NodeProto) -> str | None:
    """torch-mlir rounds positions half way between two pixels the other way."""
    return "with mode nearest" if attribute(node, "mode", b"").decode() == "nearest" else None


def _last_extreme(model: Model, node: NodeProto) -> str | None:
    """torch-mlir counts places from the end of an axis by its static size."""
    shape = model.shape(node.input[0])
    if not attribute(node, "select_last_index", 0) or shape is None:
        return None
    dynamic = shape[attribute(node, "axis", 0)] is None
    return "with select_last_index along an axis whose size is not known" if dynamic else None


def _loss(model: Model, node: NodeProto) -> str | None:
    return "with weights" if len(node.input) > 2 and node.input[2] else None


def _space_to_depth(model: Model, node: NodeProto) -> str | None:
    return "with mode CRD" if attribute(node, "mode", b"DCR") != b"DCR" else None


RULES: dict[str, Callable[[Model, NodeProto], str | None]] = {
    "ArgMax": _last_extreme,
    "ArgMin": _last_extreme,
    "GRU": _recurrent,
    "GridSample": _grid_sample,
    "LSTM": _recurrent,
    "NegativeLogLikelihoodLoss": _loss,
    "Resize": _resize,
    "SoftmaxCrossEntropyLoss": _loss,
    "SpaceToDepth": _space_to_depth,
}
