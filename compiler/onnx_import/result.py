"""What an import hands over."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects.weight_store import WeightStore


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; `dtype` is numpy's name, `shape` has None for a dynamic size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


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
    """A model as linalg + abq (MLIR bytecode with one `func.func @main`) and its weights."""

    bytecode: bytes
    store: WeightStore
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    nodes: list[NodeInfo]
    opset: int
    producer: str
