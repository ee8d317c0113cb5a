"""Recipes in bf16, whole models: `none:bf16` and `a16:bf16` on CPUs."""

from __future__ import annotations

from pathlib import Path

import abqc
import ml_dtypes
import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from abqc.errors import RecipeError
from onnx_models import model, node, tied_embedding

WEIGHT = np.random.default_rng(0).standard_normal((70, 40), np.float32)
X = np.random.default_rng(1).standard_normal((9, 70), np.float32)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = model(
        [node("MatMul", "x w", "y", "product")],
        [("x", np.float32, ["n", 70])],
        [("y", np.float32, ["n", 40])],
        {"w": WEIGHT},
    )
    path = tmp_path_factory.mktemp("bf16") / "model.onnx"
    onnx.save(proto, path)
    return path


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def check(y: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    terms = np.abs(x) @ np.abs(w)
    assert (np.abs(y - x @ w) <= (len(w) + 2) * 2.0**-24 * terms).all()


def test_floats_in_bf16(product: Path, tmp_path: Path) -> None:
    """Every instruction set rounds both sides, and those with products of bf16 have kernels."""
    library = tmp_path / "model.so"
    abqc.compile(
        product, quant="none:bf16", output=library, cpu="amxbf16,avx512bf16,avx2,plain"
    ).close()
    for isa in isas.ALL:
        if isas.runs_here(isa):
            with abqc.load(library, isa=isa.name) as loaded:
                if isa.adds == "bf16":
                    assert loaded.isa == isa.name
                for x in (X, X[:1]):
                    check(loaded.run([x])[0], rounded(x), rounded(WEIGHT))
    with abqc.load(library) as loaded:
        assert {"amxbf16", "avx512bf16"} < {*loaded.manifest["isas"]}
        assert "amx" not in loaded.manifest["isas"]  # no integers
        (op,) = loaded.manifest["ops"]
        assert (op["strategy"], op["weight"], op["activation"]) == ("bf16", "bf16", "bf16")
        assert op["bytes"] == 2 * 48 * 96  # 40 channels of 70, filled up


def test_weights_of_few_bits(product: Path, tmp_path: Path) -> None:
    """Activations are rounded, codes are exact, scales are f32."""
    float_y, bf16_y = (
        abqc.compile(product, quant=quant, output=tmp_path / "m.so", cpu="native").run([x])[0]
        for quant, x in (
            ("w4a16", rounded(X).astype(np.float32)),
            ("w4a16:bf16", X),
        )
    )
    np.testing.assert_allclose(bf16_y, float_y, rtol=1e-5, atol=1e-5)


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    onnx.save(tied_embedding(), tmp_path / "model.onnx")
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    loaded = abqc.compile(tmp_path / "model.onnx", quant="none:bf16", output=tmp_path / "m.so")
    with loaded:
        (head,), (embedding,) = loaded.manifest["ops"], loaded.manifest["tables"]
        assert (head["bytes"], embedding["bytes"]) == (2 * 64 * 32, 0)
        table = rounded(np.random.default_rng(0).standard_normal((50, 24), np.float32))
        rows = table[ids]
        np.testing.assert_allclose(loaded.run([ids])[0], rows @ table.T, rtol=1e-5, atol=1e-5)


def test_a_gpu_refuses_floats_in_bf16(product: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="made for CPUs") as raised:
        abqc.compile(product, quant="none:bf16", output=tmp_path / "m.so", target="sm_80")
    assert "product" in str(raised.value)
