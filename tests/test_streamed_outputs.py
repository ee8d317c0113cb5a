"""Outputs that are stored around the caches: every element, at any alignment of rows."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.codegen.isa import Isa
from abqc.passes.kernels import streamed
from kernel_cases import ISAS
from onnx import TensorProto, helper


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x + x, z = whether x is above 0, of any sizes, of which all are large."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Cast", ["x"], ["z"], to=TensorProto.INT8),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"])
    results = [onnx.ValueInfoProto(name=name) for name in "yz"]
    graph = onnx.shape_inference.infer_shapes(
        helper.make_model(
            helper.make_graph(nodes, "g", [x], results),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=9,
        )
    )
    path = tmp_path_factory.mktemp("streamed") / "model.onnx"
    onnx.save(graph, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "STREAM_BYTES", 0)
        cpu = ",".join(isa.name for isa in ISAS)
        abqc.compile(path, output=path.with_suffix(".so"), cpu=cpu)
    return path.with_suffix(".so")


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_all_elements_are_stored(isa: Isa, library: Path) -> None:
    model = abqc.load(library, isa=isa.name)
    rng = np.random.default_rng(0)
    for shape in ((7, 777), (3, 5), (2, 1024), (5, 259), (4, 0), (1, 4099)):
        x = (50 * rng.standard_normal(shape)).clip(-120, 120).astype(np.float32)
        y, z = model.run({"x": x})
        np.testing.assert_array_equal(y, x + x)
        np.testing.assert_array_equal(z, x.astype(np.int8))
