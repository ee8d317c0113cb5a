"""What an import hands over."""

from __future__ import annotations

from dataclasses import dataclass, field

from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; `dtype` is numpy's name, `shape` has a number, a name or an
    expression of names, or None for each axis."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class NodeInfo:
    """A node whose weight lives in the store; `kind` is "matmul", "conv" or "gather"."""

    name: str
    op_type: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]


@dataclass(frozen=True)
class ImportedModel:
    """A model as linalg + abq (a module with one `func.func @main`) and its weights.

    `sized_outputs` are the names of the outputs whose sizes follow from those of the inputs.
    `notes` are for the user: a node's name under "node", a sentence about it under "note".
    """

    module: ir.Module
    store: WeightStore
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    nodes: list[NodeInfo]
    opset: int
    producer: str
    notes: list[dict[str, str]] = field(default_factory=list)
    sized_outputs: frozenset[str] = frozenset()
