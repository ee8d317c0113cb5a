"""What the child process is told beside the graph: which graph inputs are weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

REFUSED = 3  # exit code of the child process when the front end cannot lower the model


@dataclass(frozen=True)
class Weight:
    """A constant that the graph has as an input.

    `symbol` names its values as they are; `transposed` names them as N x K, for matmuls.
    """

    name: str
    symbol: str
    transposed: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """`weights` are the last inputs of the graph, in order; `op_types` the operators by node.

    `inputs` are the names of the other inputs, `symbols` the names of their sizes, axis by axis,
    "" for those that have none.
    """

    weights: tuple[Weight, ...]
    op_types: dict[str, str]
    inputs: tuple[str, ...]
    symbols: tuple[tuple[str, ...], ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> Plan:
        data = json.loads(path.read_text())
        weights = (Weight(**{**item, "shape": tuple(item["shape"])}) for item in data["weights"])
        symbols = tuple(tuple(names) for names in data["symbols"])
        return Plan(tuple(weights), data["op_types"], tuple(data["inputs"]), symbols)
