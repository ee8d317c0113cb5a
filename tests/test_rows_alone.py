"""A row of a product does not depend on the rows beside it, whatever kernels their number takes."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from onnx import ModelProto
from onnx_models import model, node, save

K, N = 200, 416
ROWS = (1, 2, 7, 40, 128, 300)


def layers() -> ModelProto:
    """Two layers with GELU, a residual, and a gate: all that products have as epilogues."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((K, N), np.float32) / 14,
        "b1": rng.standard_normal(N, np.float32),
        "w2": rng.standard_normal((N, K), np.float32) / 20,
        "up": rng.standard_normal((K, N), np.float32) / 14,
        "gate": rng.standard_normal((K, N), np.float32) / 14,
        "root": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
    }
    nodes = [
        node("MatMul", "x w1", "h", "first"),
        node("Add", "h b1", "hb"),
        node("Div", "hb root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "hb e1", "g2"),
        node("Mul", "g2 half", "g"),
        node("MatMul", "g w2", "r", "second"),
        node("Add", "r x", "residual"),
        node("MatMul", "residual gate", "a", "gate"),
        node("Sigmoid", "a", "s"),
        node("Mul", "a s", "silu"),
        node("MatMul", "residual up", "u", "up"),
        node("Mul", "silu u", "y"),
    ]
    return model(nodes, [("x", np.float32, ["m", K])], [("y", np.float32, ["m", N])], constants)


@pytest.mark.parametrize("quant", ["none", "none:bf16", "w8a8", "w4a8", "w1a8", "w3:g64:asym a8"])
def test_rows_alone(quant: str, tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    abqc.compile(save(layers(), tmp_path), quant=quant, output=library, cpu="native").close()
    x = np.random.default_rng(1).standard_normal((max(ROWS), K), np.float32)
    with abqc.load(library, threads=1) as alone:
        expected = np.concatenate([alone.run({"x": row[None]})[0] for row in x])
    assert np.isfinite(expected).all() and expected.std() > 0.1
    for threads in (1, 3):
        with abqc.load(library, threads=threads) as loaded:
            for rows in ROWS:
                (y,) = loaded.run({"x": x[:rows]})
                close = np.isclose(y, expected[:rows], rtol=1e-3, atol=1e-3 * expected.std())
                # Rounding to codes may go the other way after floats that differ in their last bit.
                assert close.mean() > 0.98, (quant, threads, rows)
