"""The tests of onnx's own backend suite, as the installed package carries them.

Groups: `node` (one operator each, and the expansions of function operators), `simple`,
`pytorch-converted`, `pytorch-operator` and `real` (structures of published networks whose weights
are synthetic). onnx.backend.test.runner is what these files are meant to be read by; what it does
with a test, `Case.load` does.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader

from .store import node_tests

GROUPS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")

# A set of values: the inputs in order, the outputs in order.
DataSet = tuple[list[Any], list[Any]]

_LIGHT = "onnx/backend/test/data/light/"
_EXPANSION = re.compile(r"_expanded(_ver\d+|_function)?.*$")


@dataclass(frozen=True)
class Case:
    """One test: `test` is onnx's own record of it, which `load` reads."""

    name: str
    group: str
    test: Any

    @property
    def tolerances(self) -> tuple[float, float]:
        """rtol and atol."""
        return self.test.rtol, self.test.atol

    @property
    def expanded(self) -> bool:
        """Whether this is the expansion of a function operator, the operator itself being tested
        by another test."""
        return self.group == "node" and "_expanded" in self.name

    def load(self) -> tuple[onnx.ModelProto, list[DataSet]]:
        """The model and the sets of values to try it with."""
        if self.test.model is not None:
            sets = [
                ([_plain(value) for value in inputs], [_plain(value) for value in outputs])
                for inputs, outputs in self.test.data_sets
            ]
            return self.test.model, sets
        if (self.test.url or "").startswith(_LIGHT):
            return _load_light(Path(loader.DATA_DIR) / "light" / self.test.url[len(_LIGHT) :])
        return _load_folder(Path(self.test.model_dir))


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every test of the suite, by group and name."""
    found = []
    for group in GROUPS:
        tests = node_tests() if group == "node" else loader.load_model_tests(kind=group)
        found += sorted((Case(t.name, group, t) for t in tests), key=lambda case: case.name)
    return tuple(found)


@functools.cache
def operators() -> dict[str, str]:
    """The operator that each node test is about, by the name of the test.

    An expansion is about the operator that was expanded; a graph of several nodes about the first
    one that is no constant.
    """
    direct = {
        case.name: _first_operator(case.test.model)
        for case in all_cases()
        if case.group == "node" and case.test.model is not None
    }
    return {name: direct.get(_EXPANSION.sub("", name), op) for name, op in direct.items()}


def _first_operator(model: onnx.ModelProto) -> str:
    nodes = [node for node in model.graph.node if node.op_type != "Constant"] or model.graph.node
    node = nodes[0]
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _load_folder(folder: Path) -> tuple[onnx.ModelProto, list[DataSet]]:
    model = onnx.load(folder / "model.onnx")
    sets = []
    for directory in sorted(glob.glob(os.path.join(folder, "test_data_set*"))):
        sets.append(
            (
                _read_values(Path(directory), "input", model.graph.input),
                _read_values(Path(directory), "output", model.graph.output),
            )
        )
    return model, sets


def _read_values(folder: Path, role: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    count = len(list(folder.glob(f"{role}_*.pb")))
    return [
        _read_value((folder / f"{role}_{i}.pb").read_bytes(), values[i].type) for i in range(count)
    ]


def _read_value(content: bytes, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _load_light(path: Path) -> tuple[onnx.ModelProto, list[DataSet]]:
    """A real structure: its inputs count up from 0 to 1, its outputs lie beside it."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_ramp(value) for value in model.graph.input if value.name not in constants]
    outputs = [
        numpy_helper.to_array(onnx.load_tensor(path.with_name(f"{path.stem}_output_{i}.pb")))
        for i in range(len(model.graph.output))
    ]
    return model, [(inputs, outputs)]


def _ramp(value: onnx.ValueInfoProto) -> np.ndarray:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims)
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _plain(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
