"""ZipMap, with which sklearn's classifiers end, is taken off: its output is the tensor of scores.

It makes of each row of scores a dictionary from label to score, which is no tensor.
"""

from __future__ import annotations

from onnx import TensorProto, helper

from .model import Model
from .registry import ML


def take_off_zip_maps(model: Model) -> list[dict[str, str]]:
    """Outputs of the model that a ZipMap makes become what it reads; a note for each."""
    notes, kept = [], []
    outputs = {value.name: value for value in model.shell.graph.output}
    for node in model.nodes:
        output = outputs.get(node.output[0]) if node.output else None
        if node.op_type != "ZipMap" or node.domain != ML or output is None:
            kept.append(node)
            continue
        tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        output.type.CopyFrom(tensor)
        label = node.name
        scores = helper.make_node("Identity", [node.input[0]], [node.output[0]], name=label)
        kept.append(scores)
        text = f"is taken off: output '{output.name}' is the tensor of scores that it reads"
        notes.append({"node": label, "note": f"(ZipMap) {text}"})
    model.nodes = kept
    return notes
