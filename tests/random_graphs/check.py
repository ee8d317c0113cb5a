"""Compiles a random graph, runs it, and says which of its outputs are wrong.

The judge is onnx's reference evaluator, by which the graph was grown; what it says of an output may
be overruled by onnxruntime, where that agrees with abqc (the reference has defects of its own).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conformance.backend import compile_model
from conformance.isolate import run_isolated

from .draft import Draft

Arrays = Mapping[str, np.ndarray]

# Of the largest magnitude of an output.
TOLERANCES = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-6}


def check(draft: Draft, timeout: float = 120) -> str | None:
    """What is wrong, with the nodes to blame; None where all agrees. In a child of its own."""
    if not draft.nodes:
        return None
    [(_, result)] = run_isolated([draft], _work, workers=1, timeout=timeout)
    if result["status"] == "agrees":
        return None
    return f"{result['status']}: {result['message']}"


def _work(draft: Draft, folder: Path) -> dict[str, Any]:
    from abqc.errors import AbqcError
    from abqc.runtime.model import load

    model, feeds, expected = draft.finish()
    try:
        found = load(compile_model(model, folder)).run(feeds)
    except AbqcError as error:
        kind = type(error).__name__
        return {"status": "failed", "message": f"{kind}: {error}\n{onnx.printer.to_text(model)}"}
    wrong = []
    for (name, array), actual in zip(expected.items(), found, strict=True):
        text = difference(array, actual)
        if text is not None and not _onnxruntime_agrees(model, name, feeds, actual):
            wrong.append(f"{name}: {text}\n{json.dumps(_history(model, name, feeds), indent=1)}")
    if not wrong:
        return {"status": "agrees"}
    return {"status": "wrong", "message": "\n".join(wrong)}


def difference(expected: np.ndarray, actual: np.ndarray) -> str | None:
    """In one line; None where there is none to speak of."""
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return f"{actual.dtype}{actual.shape}, expected {expected.dtype}{expected.shape}"
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    scale = max(1.0, np.abs(e).max(initial=0))
    allowed = TOLERANCES.get(expected.dtype.name, 0) * scale
    if np.allclose(a, e, rtol=0, atol=allowed, equal_nan=True):
        return None
    at = np.unravel_index(np.argmax(np.abs(a - e)), e.shape)
    place = [int(i) for i in at]
    return f"{actual.dtype}{actual.shape} at {place}: {actual[at]}, expected {expected[at]}"


def _ancestors(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that make `name`, in order."""
    wanted, kept = {name}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _onnxruntime_agrees(
    model: onnx.ModelProto, name: str, feeds: Arrays, actual: np.ndarray
) -> bool:
    """False where it cannot run what makes this output."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    part = _cut(model, name)
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString())
        used = {value.name for value in session.get_inputs()}
        [array] = session.run(None, {k: v for k, v in feeds.items() if k in used})
    except Exception:  # its own classes, all derived from Exception: types that it lacks
        return False
    return difference(array, actual) is None


def _cut(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of the model that makes one output."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes = _ancestors(model, name)
    read = {operand for node in nodes for operand in node.input}
    for field, kept in (
        ("node", nodes),
        ("input", [v for v in model.graph.input if v.name in read]),
        ("initializer", [t for t in model.graph.initializer if t.name in read]),
        ("output", [v for v in model.graph.output if v.name == name]),
    ):
        repeated = getattr(part.graph, field)
        del repeated[:]
        repeated.extend(kept)
    return part


def _history(model: onnx.ModelProto, name: str, feeds: Arrays) -> list[str]:
    """The nodes that make an output, as text, after the shapes of what they are given."""
    nodes = _ancestors(model, name)
    read = {operand for node in nodes for operand in node.input}
    given = [f"{k} = {v.dtype}{list(v.shape)}" for k, v in feeds.items() if k in read]
    constants = [
        f"{t.name} = {onnx.numpy_helper.to_array(t).tolist()}"[:120]
        for t in model.graph.initializer
        if t.name in read
    ]
    return given + constants + [onnx.printer.to_text(node) for node in nodes]
