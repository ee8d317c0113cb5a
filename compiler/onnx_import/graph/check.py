"""What can be said about a model before anything is computed: is it one that we support?"""

from __future__ import annotations

from abqc.errors import ModelError
from onnx import defs

from ..values.element_types import element_type, onnx_name
from .model import Model


def check_model(model: Model) -> None:
    """Raises ModelError for versions and input types that nothing here can take."""
    _check_opset(model)
    for value in (*model.shell.graph.input, *model.shell.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise ModelError(f"'{value.name}' is no tensor ({kind}): only tensors are supported")
    for value in model.shell.graph.input:
        elem_type = value.type.tensor_type.elem_type  # 0 where the input has no type at all
        if elem_type == 0:
            raise ModelError(
                f"input '{value.name}' has no element type",
                hint="declare it in the model's graph, as type.tensor_type.elem_type",
            )
        if element_type(elem_type) is None:
            kind = onnx_name(elem_type)
            raise ModelError(f"input '{value.name}' has element type {kind}, which is unsupported")
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"input '{value.name}' has no rank", hint=f"pin it with --shape {value.name}=..."
            )
    _check_inputs(model)


def _check_opset(model: Model) -> None:
    if model.opset == 0 and any(node.domain in ("", "ai.onnx") for node in model.nodes):
        raise ModelError("the model does not say its opset version")
    newest = defs.onnx_opset_version()
    if model.opset > newest:
        raise ModelError(
            f"the model is of opset {model.opset}; the installed onnx knows {newest}",
            hint="upgrade the onnx package",
        )


def _check_inputs(model: Model) -> None:
    """Values must be made before they are used, and once."""
    known = set(model.constants)
    for value in model.shell.graph.input:
        if value.name in known:
            raise ModelError(f"input '{value.name}' is given twice")
        known.add(value.name)
    for node in model.nodes:
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"input '{name}' of operator {node.op_type} is made by no node before it",
                    node=node.name,
                )
        for name in node.output:
            if name and name in known:
                raise ModelError(f"value '{name}' is made twice", node=node.name)
            known.add(name)
    for name in model.output_names:
        if name not in known:
            raise ModelError(f"no node makes the model's output '{name}'")
