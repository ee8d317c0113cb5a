"""Names for values that are new to a graph."""

from __future__ import annotations

from .model import Model, walk_nodes


class Names:
    """Names that no value of the model has."""

    def __init__(self, model: Model) -> None:
        self._taken = set(model.constants)
        self._taken.update(value.name for value in model.shell.graph.input)
        for node in walk_nodes(model.nodes):
            self._taken.update((*node.input, *node.output))

    def fresh(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}#{number}"
        self._taken.add(name)
        return name
