"""The importer on real models: what becomes of their weights and of their shape arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from abqc.compiler.onnx_import import ImportedModel, import_model
from abqc.dialects.mlir import ir

# Model -> kinds of nodes with weights.
EXPECTED = {
    "digits_mlp": {"matmul": 3},
    "digits_cnn": {"conv": 2, "matmul": 2},
    "minilm-l3": {"gather": 3, "matmul": 18},
    "minilm-l6-int8": {"gather": 3, "matmul": 36},
    "ocr-cls": {"conv": 53, "matmul": 1},
    "ocr-det": {"conv": 85},  # two of them transposed
    "ocr-rec": {"conv": 57, "matmul": 9},
    "vad-ifless": {"conv": 12, "matmul": 4},
}


def operations(result: ImportedModel) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(op: ir.Operation) -> ir.WalkResult:
        counts[op.name] += 1
        return ir.WalkResult.ADVANCE

    assert result.module.operation.verify()
    result.module.operation.walk(count)
    return counts


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_become_abq_operations(
    name: str, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    result = import_model(real_model(name), work_dir=tmp_path)
    kinds = Counter(node.kind for node in result.nodes)
    counts = operations(result)
    assert kinds == EXPECTED[name]
    assert {kind: counts[f"abq.{kind}"] for kind in kinds} == kinds
    assert counts["tensor.reshape"] == 0
    for node in result.nodes:
        assert result.store.shape(node.weight) == node.weight_shape


def test_integer_weights_of_a_real_model_keep_their_codes(
    real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    result = import_model(real_model("minilm-l6-int8"), work_dir=tmp_path, keep_codes=True)
    for node in result.nodes:
        if node.kind == "matmul":
            tensor = result.store.quantized(node.weight)
            assert tensor is not None
            assert tensor.scheme.text == "w8:channel:sym"


@pytest.mark.slow
def test_a_decoder_with_caches(real_model: Callable[[str], Path], tmp_path: Path) -> None:
    result = import_model(real_model("smollm2"), work_dir=tmp_path)
    assert Counter(node.kind for node in result.nodes) == {"matmul": 211, "gather": 1}
    (embedding,) = (node for node in result.nodes if node.kind == "gather")
    head = next(node for node in result.nodes if node.weight_shape[0] == embedding.weight_shape[0])
    assert head.weight == embedding.weight
    counts = operations(result)
    assert counts["tensor.reshape"] == counts["arith.divsi"] == 0
    spooled = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert spooled < 4_000_000  # external data stays where it is
