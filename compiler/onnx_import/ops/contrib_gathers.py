"""onnxruntime's operators that are gathers by other names: GatherND, TorchEmbedding."""

from __future__ import annotations

from ..registry import MICROSOFT, Node, lowers
from ..values.value import Value
from .indexing import gather_nd, gather_rows

lowers("GatherND", domain=MICROSOFT)(gather_nd)


@lowers("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(node: Node) -> Value:
    """Rows of a matrix; its other inputs are about training."""
    table = node.input(0)
    if table.rank != 2:
        raise node.error(f"its table is {table}, expected a matrix")
    return gather_rows(node, table, node.input(1))
