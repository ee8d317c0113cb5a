"""The order of a graph's nodes. ONNX demands makers before readers; not every tool keeps to it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from abqc.errors import ModelError
from onnx import GraphProto, NodeProto

from .model import subgraphs


def in_order(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """The nodes with each behind those whose outputs it or its subgraphs read.

    Nodes that are in order stay where they are; else the first that can come next does. Raises
    ModelError for a cycle.
    """
    given = list(nodes)
    makers = {name: at for at, node in enumerate(given) for name in node.output if name}
    waits_for = [{makers[name] for name in _reads(node) if name in makers} for node in given]
    readers: list[list[int]] = [[] for _ in given]
    for at, others in enumerate(waits_for):
        for other in others:
            readers[other].append(at)
    missing = [len(others) for others in waits_for]
    ready = [at for at, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers[at]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(given):
        stuck = next(given[at] for at, count in enumerate(missing) if count > 0)
        name = next(n for n in _reads(stuck) if n in makers and missing[makers[n]] > 0)
        raise ModelError(
            f"its nodes form a cycle: '{name}', which this one reads, is made from its own output",
            node=stuck.name or stuck.op_type,
        )
    return [given[at] for at in order]


def _reads(node: NodeProto) -> Iterator[str]:
    """The names outside of a node that it and its subgraphs read."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from _captured(graph)


def _captured(graph: GraphProto) -> set[str]:
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own.update(name for node in graph.node for name in node.output)
    reads = {name for node in graph.node for name in _reads(node)}
    reads.update(output.name for output in graph.output)
    return reads - own
