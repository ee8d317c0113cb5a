"""If: one branch where the condition is known, else scf.if."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto

from ..assumptions import Undecided
from ..building.joining import Branch, either
from ..registry import Node, lowers
from ..values import symbolic
from ..values.symbolic import Dim
from ..values.value import AnyValue, Value


@lowers("If")
def lower_if(node: Node) -> list[AnyValue]:
    condition = single_truth(node, node.input(0))
    branches = [node.graph("then_branch"), node.graph("else_branch")]
    if condition.value is not None:
        chosen = branches[0] if condition.value else branches[1]
        return node.lowering.subgraph(chosen, [], node)
    place, answer = node.lowering.assumptions.ask()
    if answer is not None:
        return _assumed(node, condition, answer, branches[0] if answer else branches[1])

    def look(then: Sequence[AnyValue], otherwise: Sequence[AnyValue]) -> None:
        if _of_different_ranks(then, otherwise):
            # Exporters trace with the sizes for which the condition holds.
            node.lowering.assumptions.settle(place, True)
            raise Undecided

    def branch(graph: GraphProto) -> Branch:
        return lambda: node.lowering.subgraph(graph, [], node)

    return either(node, condition, branch(branches[0]), branch(branches[1]), look)


def _assumed(node: Node, condition: Dim, answer: bool, branch: GraphProto) -> list[AnyValue]:
    """The one branch whose results have the ranks that the rest of the model needs."""
    node.b.require(
        condition if answer else symbolic.negated(condition),
        f"it is compiled for sizes with which {condition} is {'true' if answer else 'false'}; "
        "compile it for others with --shape",
    )
    return node.lowering.subgraph(branch, [], node)


def _of_different_ranks(then: Sequence[AnyValue], otherwise: Sequence[AnyValue]) -> bool:
    pairs = zip(then, otherwise, strict=False)
    return any(isinstance(a, Value) and isinstance(b, Value) and a.rank != b.rank for a, b in pairs)


def single_truth(node: Node, value: Value) -> Dim:
    """The one element of a bool tensor, as 0 or 1."""
    if value.size not in (1, None):
        raise node.error(f"its condition must have one element, it is {value}")
    symbols = value.symbols
    if symbols is not None:
        return symbols[0]
    for dim in value.dims:
        node.b.require_equal(dim, symbolic.ONE, "a condition must have one element")
    return node.b.run_time(node.b.item(value, *[0] * value.rank))
