"""What can be said about a model before anything is computed: is it one that we support?"""

from __future__ import annotations

from abqc.errors import ModelError
from onnx import NodeProto, defs

from .element_types import element_type, onnx_name
from .model import Model, walk_nodes

OLDEST_OPSET = 7
DEFAULT_DOMAINS = ("", "ai.onnx")


def check_model(model: Model) -> None:
    """Raises ModelError for versions, operators and input types that nothing here can take."""
    _check_opset(model)
    for value in (*model.shell.graph.input, *model.shell.graph.output):
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value")
            raise ModelError(f"'{value.name}' is no tensor ({kind}): only tensors are supported")
    for value in model.shell.graph.input:
        elem_type = value.type.tensor_type.elem_type
        if element_type(elem_type) is None:
            kind = onnx_name(elem_type)
            raise ModelError(f"input '{value.name}' has element type {kind}, which is unsupported")
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"input '{value.name}' has no rank", hint=f"pin it with --shape {value.name}=..."
            )
    versions = {opset.domain: opset.version for opset in model.shell.opset_import}
    for node in walk_nodes(model.nodes):
        _check_operator(model, node, versions)
    _check_inputs(model)


def _check_opset(model: Model) -> None:
    if model.opset == 0:
        raise ModelError("the model does not say its opset version")
    if model.opset < OLDEST_OPSET:
        raise ModelError(
            f"the model is of opset {model.opset}; {OLDEST_OPSET} is the oldest supported",
            hint="convert it with onnx.version_converter, or export it again",
        )
    newest = defs.onnx_opset_version()
    if model.opset > newest:
        raise ModelError(
            f"the model is of opset {model.opset}; the installed onnx knows {newest}",
            hint="upgrade the onnx package",
        )


def _check_operator(model: Model, node: NodeProto, versions: dict[str, int]) -> None:
    if node.domain not in DEFAULT_DOMAINS:
        version = versions.get(node.domain)
        raise ModelError(
            f"operator {node.domain}::{node.op_type} "
            + (f"(version {version}) is not supported" if version else "is of an unknown domain"),
            node=node.name,
        )
    if not defs.has(node.op_type, model.opset, ""):
        newer = defs.has(node.op_type) and defs.get_schema(node.op_type).since_version
        raise ModelError(
            f"operator {node.op_type} is unknown in opset {model.opset}"
            + (f"; it is there since {newer}" if newer else ""),
            node=node.name,
        )


def _check_inputs(model: Model) -> None:
    """Values must be made before they are used, and once."""
    known = set(model.constants) | {value.name for value in model.shell.graph.input}
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
