"""The logits of the last token alone, of a decoder that computes those of all tokens.

    logits = MatMul(x, head)        ->        logits = MatMul(Gather(x, [-1], axis=1), head)

The product with the vocabulary is a fifth of a small model's work on a prompt, and whoever
generates text reads its last row. Elementwise nodes behind the product (a bias, a scale, a soft
cap) take the one row as well.
"""

from __future__ import annotations

import numpy as np
from abqc.errors import ModelError
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from ..values.constants import Constant
from .model import Model, subgraphs, walk_nodes
from .names import Names

LOGITS = "logits"

_UNARY = {"Cast", "Identity", "Neg", "Tanh"}
_BINARY = {"Add", "Div", "Mul", "Sub"}
_SAME_RANK = {"Cast", "DequantizeLinear", "Identity", "Transpose"}


def keep_last_logits(model: Model) -> None:
    """Output `logits` [batch, tokens, vocabulary] becomes [batch, 1, vocabulary].

    ModelError where the model has no such output.
    """
    output = _output(model)
    path, names = _down_to_product(model), Names(model)
    if path:
        node, operand = path[-1]
        row = names.fresh(f"{LOGITS}.row")
        _last_row(model, names, node.input[operand], row)
        node.input[operand] = row
    else:
        every = names.fresh(f"{LOGITS}.all")
        _rename(model, LOGITS, every)
        _last_row(model, names, every, LOGITS)
    tokens = output.type.tensor_type.shape.dim[1]
    tokens.Clear()
    tokens.dim_value = 1


def _output(model: Model) -> ValueInfoProto:
    made = {name for node in model.nodes for name in node.output}
    for value in model.shell.graph.output:
        if value.name == LOGITS and value.name in made:
            if len(value.type.tensor_type.shape.dim) == 3:
                return value
            break
    raise ModelError(
        f"the model has no output '{LOGITS}' [batch, tokens, vocabulary] whose last row could be "
        "kept alone"
    )


def _down_to_product(model: Model) -> list[tuple[NodeProto, int]]:
    """The nodes from the output down to a product with a weight, each with the index of the operand
    whose rows are those of the logits; empty where there is no such product."""
    makers = {made: node for node in model.nodes for made in node.output}
    uses = model.use_counts()
    path: list[tuple[NodeProto, int]] = []
    value = LOGITS
    while value in makers and uses[value] == 1:
        node = makers[value]
        operand = _rows_operand(model, makers, node)
        if operand is None:
            return []
        path.append((node, operand))
        if node.op_type == "MatMul":
            return path
        value = node.input[operand]
    return []


def _rows_operand(model: Model, makers: dict[str, NodeProto], node: NodeProto) -> int | None:
    """None where rows of the result need more than the same rows of one operand."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _UNARY:
        return 0
    ranks = [_constant_rank(model, makers, name) for name in node.input]
    if node.op_type == "MatMul" and ranks[0] is None and ranks[1] == 2:
        return 0
    if node.op_type in _BINARY and None in ranks:
        operand = ranks.index(None)
        return operand if ranks[1 - operand] in (0, 1) else None
    return None


def _constant_rank(model: Model, makers: dict[str, NodeProto], name: str) -> int | None:
    """The rank of a constant, or of what is made of one alone; None for other values."""
    while name not in model.constants:
        node = makers.get(name)
        if node is None or node.op_type not in _SAME_RANK:
            return None
        name = node.input[0]
    return len(model.constants[name].shape)


def _last_row(model: Model, names: Names, rows: str, name: str) -> None:
    """Adds a node: the last one of `rows`, called `name`."""
    index = names.fresh(f"{LOGITS}.last")
    last = np.array([-1])
    model.constants[index] = Constant((1,), TensorProto.INT64, lambda: last, name=index)
    node = helper.make_node("Gather", [rows, index], [name], name=f"{LOGITS}.last_row", axis=1)
    makers = (i for i, n in enumerate(model.nodes) if rows in n.output)
    model.nodes.insert(next(makers, -1) + 1, node)  # first for an input of the graph


def _rename(model: Model, old: str, new: str) -> None:
    """A value, wherever it is read, in subgraphs too."""
    for node in walk_nodes(model.nodes):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for graph in subgraphs(node):
            for value in graph.output:
                if value.name == old:
                    value.name = new
