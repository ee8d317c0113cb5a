"""Products that share activations, and epilogues, in libraries: any number of threads, profiles."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx_models
import pytest
from abqc.runtime.profile import Profile

WIDTH, INNER = 40, 70


def gated() -> tuple[object, dict[str, np.ndarray]]:
    """y = (silu(x Wg) * (x Wu)) Wd + x, and x Wq + b and x Wk besides."""
    rng = np.random.default_rng(3)
    sizes = {"g": (WIDTH, INNER), "u": (WIDTH, INNER), "d": (INNER, WIDTH), "q": (WIDTH, 50)}
    sizes["k"] = (WIDTH, 20)
    constants = {f"w{name}": rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    constants["b"] = rng.standard_normal(50).astype(np.float32)
    node = onnx_models.node
    nodes = [
        *(node("MatMul", f"x w{name}", f"{name}0", f"product {name}") for name in "gquk"),
        node("Sigmoid", "g0", "g1"),
        node("Mul", "g0 g1", "g2", "silu"),
        node("Mul", "g2 u0", "inner", "gate"),
        node("MatMul", "inner wd", "d0", "product d"),
        node("Add", "d0 x", "y", "residual"),
        node("Add", "q0 b", "q", "bias"),
    ]
    outputs = [("y", np.float32, ("rows", WIDTH)), ("q", np.float32, ("rows", 50))]
    outputs.append(("k0", np.float32, ("rows", 20)))
    inputs = [("x", np.float32, ("rows", WIDTH))]
    return onnx_models.model(nodes, inputs, outputs, constants), constants


@pytest.mark.parametrize("quant", ["none", "none:bf16", "w8a8"])
def test_gates_and_residuals(quant: str, tmp_path: Path) -> None:
    proto, w = gated()
    path = onnx_models.save(proto, tmp_path)  # type: ignore[arg-type]
    library = tmp_path / "model.so"
    model = abqc.compile(path, quant=quant, output=library, cpu="native")
    kernels = [entry["kernel"] for entry in model.manifest["launches"]]
    assert any("_then_" in kernel for kernel in kernels)
    assert not any(kernel.startswith("loops_") for kernel in kernels)
    for rows in (1, 5, 300):
        x = np.random.default_rng(rows).standard_normal((rows, WIDTH), np.float32)
        one, *others = (model.run([x], threads=threads) for threads in (1, 2, 3))
        others.append(model.run([x], threads=2, profile=Profile()))
        for other in others:
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        gate = x @ w["wg"]
        expected = (gate / (1 + np.exp(-gate)) * (x @ w["wu"])) @ w["wd"] + x
        tolerance = 1e-5 if quant == "none" else 0.03
        for got, right in zip(one, (expected, x @ w["wq"] + w["b"], x @ w["wk"]), strict=True):
            assert np.abs(got - right).max() <= tolerance * np.abs(right).max()
