"""What sklearn's classifiers return that is no tensor of numbers becomes one, and users are told.

1. ZipMap, which makes of each row of scores a dictionary from label to score, is taken off: its
   output is the tensor of scores.
2. Labels that are strings become the numbers of their classes, which a note lists in order.
"""

from __future__ import annotations

from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper

from ..registry import ML
from .model import Model, attribute

Note = dict[str, str]

# The attribute that integer labels are in.
INTEGER_LABELS = {
    "LinearClassifier": "classlabels_ints",
    "SVMClassifier": "classlabels_ints",
    "TreeEnsembleClassifier": "classlabels_int64s",
}


def make_outputs_tensors(model: Model) -> list[Note]:
    """Changes outputs of the model that a ZipMap or a classifier makes; a note for each."""
    notes: list[Note] = []
    outputs = {value.name: value for value in model.shell.graph.output}
    uses = model.use_counts()
    for at, node in enumerate(model.nodes):
        output = outputs.get(node.output[0]) if node.output and node.domain == ML else None
        if output is None:
            continue
        if node.op_type == "ZipMap":
            model.nodes[at] = _without_map(node, output)
            text = f"is taken off: output '{output.name}' is the tensor of scores that it reads"
            notes.append({"node": node.name, "note": f"(ZipMap) {text}"})
        elif node.op_type in INTEGER_LABELS and uses[output.name] == 1:
            labels = attribute(node, "classlabels_strings", [])
            if labels:
                _number_labels(node, output, len(labels))
                names = ", ".join(label.decode(errors="replace") for label in labels)
                text = f"has strings as labels: output '{output.name}' is their number in [{names}]"
                notes.append({"node": node.name, "note": f"({node.op_type}) {text}"})
    return notes


def _without_map(node: NodeProto, output: ValueInfoProto) -> NodeProto:
    output.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)


def _number_labels(node: NodeProto, output: ValueInfoProto, count: int) -> None:
    kept = [
        AttributeProto.FromString(item.SerializeToString())
        for item in node.attribute
        if item.name != "classlabels_strings"
    ]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute(INTEGER_LABELS[node.op_type], range(count)))
    output.type.tensor_type.elem_type = TensorProto.INT64
