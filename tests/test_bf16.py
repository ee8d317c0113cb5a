"""Recipes in bf16, whole models: `none:bf16` and `a16:bf16` on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import abqc
import ml_dtypes
import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from abqc.dialects.conv_spec import ConvSpec
from abqc.errors import RecipeError
from onnx import numpy_helper
from onnx_models import model, node, tied_embedding
from test_kernels_direct_conv import convolved

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


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution of three channels, one by channels, one in groups, one of one axis."""
    rng = np.random.default_rng(2)
    shapes = {"a": (6, 3, 3, 3), "b": (6, 1, 3, 3), "c": (4, 3, 1, 1), "d": (5, 4, 1)}
    proto = model(
        [
            node("Conv", "x a", "p", "first", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Conv", "p b", "q", "depthwise", pads=[1, 1, 1, 1], group=6),
            node("Conv", "q c", "r", "grouped", group=2),
            node("Reshape", "r flat", "s", "reshape"),
            node("Conv", "s d", "y", "line"),
        ],
        [("x", np.float32, ["n", 3, 20, 24])],
        [("y", np.float32, ["n", 5, 120])],
        {
            **{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()},
            "flat": np.array([0, 4, 120]),
        },
    )
    path = tmp_path_factory.mktemp("images") / "model.onnx"
    onnx.save(proto, path)
    return path


def test_convolutions_in_bf16(image_model: Path, tmp_path: Path) -> None:
    """Those of several channels read rounded ones; a channel for itself stays f32."""
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(image_model).graph.initializer}
    x = np.random.default_rng(3).standard_normal((2, 3, 20, 24), np.float32)

    def conv(x: np.ndarray, name: str, **about: Any) -> np.ndarray:
        groups, pad = about.get("groups", 1), about.get("pad", 0)
        w = weights[name] if weights[name].ndim == 4 else weights[name][..., None]
        n, c, *window = w.shape
        spec = ConvSpec(
            groups, n // groups, c, tuple(window), (about.get("stride", 1),) * 2, (1, 1)
        )
        if c > 1:
            x, w = rounded(x), rounded(w)
        return convolved(x, w, spec, (pad,) * 4).astype(np.float32)

    q = conv(conv(x, "a", stride=2, pad=1), "b", groups=6, pad=1)
    y = conv(conv(q, "c", groups=2).reshape(2, 4, 120, 1), "d")[..., 0]
    library = tmp_path / "m.so"
    with abqc.compile(image_model, quant="none:bf16", output=library, cpu="native") as loaded:
        np.testing.assert_allclose(loaded.run([x])[0], y, rtol=2e-2, atol=2e-2)
        found = {op["node"]: op["activation"] for op in loaded.manifest["ops"]}
        assert found == dict.fromkeys(("first", "grouped", "line"), "bf16")


def test_a_gpu_refuses_convolutions_in_bf16(image_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="made for CPUs") as raised:
        abqc.compile(image_model, quant="none:bf16", output=tmp_path / "m.so", target="sm_80")
    assert "first" in str(raised.value)
