"""Nodes of com.microsoft, several in one model, beside onnxruntime or a formula in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from front_end.oracle import compiled, expected, outputs
from onnx import helper, numpy_helper

Arrays = dict[str, np.ndarray]


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers that the shape alone decides."""
    rng = np.random.default_rng([*shape, len(shape)])
    return rng.standard_normal(shape).astype(dtype)


@dataclass
class Form:
    """One node. `feeds`: the inputs of each run, by name; `sizes`: the named axes of an input,
    "n _ h" for [n, static, h]; an input without them has all axes static.

    `inputs` are the node's in order, "" where one is left out: feeds, then constants by default.
    `outputs` have their types. `reference` makes the outputs of a run's feeds and the constants
    where onnxruntime's CPU has no kernel. `defined`: the elements of an output, by name, that are
    documented.
    """

    op: str
    feeds: Sequence[Arrays]
    outputs: dict[str, Any]
    constants: Arrays = field(default_factory=dict)
    inputs: Sequence[str] = ()
    sizes: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    reference: Callable[[Arrays], Sequence[np.ndarray]] | None = None
    tolerance: float = 1e-4
    defined: Callable[[str, np.ndarray], np.ndarray] = lambda name, output: output

    def shape(self, name: str) -> list[int | str]:
        array = self.feeds[0][name]
        names = self.sizes.get(name, " ".join("_" * array.ndim)).split()
        return [n if s == "_" else s for n, s in zip(array.shape, names, strict=True)]


def model_of(forms: dict[str, Form]) -> onnx.ModelProto:
    """The nodes side by side; every name begins with that of its form."""
    nodes, inputs, results, constants = [], [], [], []
    for name, form in forms.items():
        given = form.inputs or [*form.feeds[0], *form.constants]
        nodes.append(helper.make_node(
            form.op, [f"{name}.{i}" if i else "" for i in given],
            [f"{name}.{o}" if o else "" for o in form.outputs], name,
            domain="com.microsoft", **form.attributes,
        ))  # fmt: skip
        for key, array in form.feeds[0].items():
            sizes = [s if isinstance(s, int) else f"{name}.{s}" for s in form.shape(key)]
            type_ = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(f"{name}.{key}", type_, sizes))
        for key, dtype in form.outputs.items():
            if key:
                type_ = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                results.append(helper.make_tensor_value_info(f"{name}.{key}", type_, None))
        constants += [numpy_helper.from_array(v, f"{name}.{k}") for k, v in form.constants.items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "graph", inputs, results, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def check(forms: dict[str, Form], folder: Path) -> None:
    """Each run's outputs are the reference's, in value, shape and type."""
    proto = model_of(forms)
    model = compiled(proto, folder)
    for run in range(len(next(iter(forms.values())).feeds)):
        feeds = {f"{n}.{k}": v for n, form in forms.items() for k, v in form.feeds[run].items()}
        actual = iter(outputs(model, feeds))
        wanted = [] if all(form.reference for form in forms.values()) else expected(proto, feeds)
        known = iter(wanted)
        for name, form in forms.items():
            if form.reference is not None:
                known = iter(form.reference({**form.constants, **form.feeds[run]}))
            for key in filter(None, form.outputs):
                got, reference = next(actual), next(known)
                if form.reference is not None:
                    reference = reference.astype(form.outputs[key])
                np.testing.assert_allclose(
                    form.defined(key, got), form.defined(key, reference), rtol=form.tolerance,
                    atol=form.tolerance, strict=True, err_msg=f"{key} of {name}, run {run}",
                )  # fmt: skip
