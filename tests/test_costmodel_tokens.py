"""What cost models read of kernels, and the sequence model over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel import kernel_text, token_model
from abqc.costmodel.token_model import TokenModel
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import ir
from abqc.errors import ArtifactError

TEXT = """module {
  func.func @f(%arg0: index, %arg1: memref<?xf32> {llvm.noalias}) {
    %c96 = arith.constant 96 : index
    %cst = arith.constant dense<0.000000e+00> : vector<16xf32>
    %0:2 = scf.for %i = %c96 to %arg0 step %c96 iter_args(%a = %cst) -> (vector<16xf32>) {
      %1 = vector.load %arg1[%i] : memref<?xf32>, vector<16xf32>
      %2 = llvm.call_intrinsic "llvm.x86.op"(%1, %a) : (vector<16xf32>) -> vector<16xi32>
      scf.yield %2 : vector<16xf32>
    }
    return
  }
}
"""


def test_operations_are_counted_by_name():
    assert kernel_text.operations(TEXT) == (
        ("arith.constant", 2),
        ("func.func", 1),
        ("llvm.x86.op", 1),
        ("scf.for", 1),
        ("scf.yield", 1),
        ("vector.load", 1),
    )


def test_tokens_are_operations_with_types_and_magnitudes():
    assert kernel_text.tokens(TEXT) == [
        "func.func memref<?xf32>",
        "arith.constant 2^7",
        "arith.constant vector<16xf32>",
        "scf.for vector<16xf32>",
        "vector.load vector<16xf32>",
        "llvm.x86.op vector<16xi32>",
        "scf.yield vector<16xf32>",
        "}",
        "}",
        "}",
    ]


def test_a_real_kernel_multiplies_bytes():
    spec = MatmulSpec(64, 2048, parse_scheme("w4"), parse_scheme("a8"))
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        Int8Strategy().matmul_kernels(spec)[0].kernel.emit(module, isas.AVX512)
        counts = dict(kernel_text.operations(str(module)))
    assert counts["llvm.x86.avx512.vpdpbusd.512"] >= 4 and counts["scf.for"] > 1


def random_model() -> TokenModel:
    rng = np.random.default_rng(0)
    shapes = {
        "embedding": (4, 2), "first.w": (10, 3), "first.b": (3,), "second.w": (15, 4),
        "second.b": (4,), "kernel0.w": (11, 5), "kernel0.b": (5,), "kernel1.w": (5, 3),
        "kernel1.b": (3,), "time0.w": (13, 5), "time0.b": (5,), "time1.w": (5, 1),
        "time1.b": (1,), "mean": (2,),
    }  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return TokenModel({"": 0, "a": 1, "b": 2, "c": 3}, {**arrays, "scale": np.ones(2, np.float32)})


def test_convolutions_are_those_of_their_definition():
    model, tokens = random_model(), list("abcabca?") * 6
    x = model.arrays["embedding"][model.indices(tokens)]
    for name in ("first", "second"):
        w = model.arrays[f"{name}.w"].reshape(token_model.WIDTH, x.shape[1], -1)
        starts = range(0, len(x) - token_model.WIDTH + 1, token_model.STRIDE)
        rows = [np.einsum("te,teo->o", x[s : s + token_model.WIDTH], w) for s in starts]
        x = np.maximum(np.array(rows) + model.arrays[f"{name}.b"], 0)
    described = model.describe(tokens, "avx2")
    np.testing.assert_allclose(described[:8], [*x.mean(axis=0), *x.max(axis=0)], rtol=1e-5)
    np.testing.assert_allclose(described[8:], [np.log2(48) / 8, 0.5, 0], rtol=1e-6)


def test_short_and_long_texts_are_described():
    model = random_model()
    for count in (0, 3, token_model.LONGEST + 100):
        kernel = model.describe(["a"] * count, "avx512")
        assert kernel.shape == (11,) and np.isfinite(kernel).all()
        assert model.allocation(kernel).spills >= 0
    logs = model.log_residuals(np.stack([kernel, kernel]), np.zeros((2, 2)))
    assert logs.shape == (2,) and logs[0] == logs[1]


def test_a_model_survives_a_file(tmp_path: Path):
    model, tokens = random_model(), list("abcabc") * 9
    model.save(tmp_path / "tokens.npz")
    again = TokenModel.load(tmp_path / "tokens.npz")
    assert again.vocabulary == model.vocabulary
    np.testing.assert_allclose(
        again.describe(tokens, "plain"), model.describe(tokens, "plain"), rtol=0.02, atol=0.02
    )
    (tmp_path / "tokens.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match="no token model"):
        TokenModel.load(tmp_path / "tokens.npz")
