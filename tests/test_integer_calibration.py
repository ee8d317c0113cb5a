"""Scales of integer-only graphs from data, and what a compile says of them."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.compiler.calibration.ranges import Static
from abqc.compiler.calibration.static_reads import StaticRead, places_of
from abqc.compiler.evaluation.metrics import relative_error
from abqc.dialects.formats import parse_scheme
from abqc.errors import PerformanceWarning, RecipeError
from onnx.reference import ReferenceEvaluator
from onnx_models import model, node, save

SIZE = 12


def residual_block(folder: Path) -> Path:
    """y = w3 silu(h), h = x + w2 relu(w1 x), behind which a softmax stays float."""
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal((SIZE, SIZE)) / np.sqrt(SIZE)).astype(np.float32)
        for name in ("w1", "w2", "w3", "w4")
    }
    nodes = [
        node("MatMul", "x w1", "a", "first"),
        node("Relu", "a", "r", "relu"),
        node("MatMul", "r w2", "b", "second"),
        node("Add", "x b", "h", "residual"),
        node("Sigmoid", "h", "s", "sigmoid"),
        node("Mul", "h s", "g", "silu"),
        node("MatMul", "g w3", "c", "third"),
        node("Softmax", "c", "p", "softmax"),
        node("MatMul", "p w4", "y", "last"),
    ]
    shape = ["n", SIZE]
    proto = model(nodes, [("x", np.float32, shape)], [("y", np.float32, shape)], weights)
    return save(proto, folder)


def test_data_fix_the_scales_of_all_values(tmp_path: Path) -> None:
    source = residual_block(tmp_path)
    x = np.random.default_rng(1).standard_normal((256, SIZE), np.float32)
    with pytest.warns(PerformanceWarning, match="'softmax' is computed in floats"):
        compiled = abqc.compile(
            source, quant="w8 a8:tensor integer", calib={"x": x}, output=tmp_path / "model.so"
        )
    (expected,) = ReferenceEvaluator(str(source)).run(None, {"x": x})
    assert relative_error(expected, compiled.run({"x": x})[0]) < 0.02
    assert compiled.manifest["integers"] == {"values": 4, "islands": 1}
    assert [note["node"] for note in compiled.manifest["notes"]] == ["softmax"]


def test_without_data_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="integer needs calibration data"):
        abqc.compile(
            residual_block(tmp_path), quant="w8 a8:tensor integer", output=tmp_path / "model.so"
        )


def test_values_between_products_cut_no_segments() -> None:
    static = Static(parse_scheme("a8:tensor"))
    reads = [
        StaticRead(at, f"s{at}", None, f"value{at}", static, cuts=cuts)
        for at, cuts in ((1, False), (4, True), (6, False), (9, False))
    ]
    assert places_of(reads, {2: "a", 7: "b"}) == {2: "a", 4: "value4", 7: "b", 9: "b"}
