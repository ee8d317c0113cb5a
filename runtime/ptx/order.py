"""The order of basic blocks in which divergent lanes meet again.

The scheduler runs the group of lanes that stands at the earliest block. Lanes that took different
ways then meet again as early as they can if each block comes after all that lead to it (loops
aside), and the blocks of a loop stand together, before what follows the loop. That is a weak
topological order (F. Bourdoncle, "Efficient chaotic iteration strategies with widenings", 1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def weak_topological_order(following: Sequence[Sequence[int]]) -> list[int]:
    """Nodes reachable from node 0, in a weak topological order; ties in the order of numbers."""
    reachable = _reachable(following)
    return _order(sorted(reachable), 0, following)


def _reachable(following: Sequence[Sequence[int]]) -> set[int]:
    seen = {0}
    pending = [0]
    while pending:
        for node in following[pending.pop()]:
            if node not in seen:
                seen.add(node)
                pending.append(node)
    return seen


def _order(nodes: list[int], entry: int, following: Sequence[Sequence[int]]) -> list[int]:
    """Components one after the other; inside a loop the same again, without edges to its head."""
    order: list[int] = []
    inside = set(nodes)
    for component in _components(nodes, entry, following, inside):
        if len(component) == 1:
            order += component
            continue
        head = _head(component, entry, following, inside)
        cut = [
            [] if node not in component else [n for n in following[node] if n != head]
            for node in range(len(following))
        ]
        order += _order(sorted(component), head, cut)
    return order


def _head(
    component: list[int], entry: int, following: Sequence[Sequence[int]], inside: set[int]
) -> int:
    """The block through which a loop is entered (the first in the text, if there are several)."""
    members = set(component)
    if entry in members:
        return entry
    entered = {
        target for node in inside - members for target in following[node] if target in members
    }
    return min(entered or members)


def _components(
    nodes: Iterable[int], entry: int, following: Sequence[Sequence[int]], inside: set[int]
) -> list[list[int]]:
    """Strongly connected components in topological order (Tarjan, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in (entry, *nodes):
        if root in number:
            continue
        work = [(root, iter(_later_first(following[root], inside)))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for target in rest:
                if target not in number:
                    number[target] = low[target] = len(number)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(_later_first(following[target], inside))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    found.append(_pop_until(node, stack, on_stack))
    return found[::-1]


def _later_first(targets: Sequence[int], inside: set[int]) -> list[int]:
    """Components come out last to first: what stands later in the text is to be finished first."""
    return sorted((target for target in targets if target in inside), reverse=True)


def _pop_until(node: int, stack: list[int], on_stack: set[int]) -> list[int]:
    component = []
    while True:
        member = stack.pop()
        on_stack.discard(member)
        component.append(member)
        if member == node:
            return component
