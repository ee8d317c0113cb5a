from pathlib import Path

import numpy as np
import pytest
from abqc.errors import RecipeError
from integer_passes import nodes_of, passed
from onnx_models import model, node

W = {"w": np.eye(6, dtype=np.float32), "two": np.array(2, np.float32)}
X = [("x", np.float32, ["n", 6])]
Y = [("y", np.float32, ["n", 6])]


def marks(tmp_path: Path, *nodes: object, recipe: str = "w8 a8:tensor rtn integer") -> list[str]:
    marked, _, in_float, _ = passed(model(nodes, X, Y, W), tmp_path, recipe)
    assert not in_float("abq.fake_quantize") and not in_float("abq.quantize")
    return nodes_of(marked)


def test_a_product_that_is_clipped_has_codes_behind_the_clip(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Relu", "a", "r", "relu"),
        node("MatMul", "r w", "y", "last"),
    )
    assert found == ["x", "relu"]


def test_a_value_that_others_read_too_has_codes_before_the_clip(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Relu", "a", "r", "relu"),
        node("MatMul", "r w", "b", "second"),
        node("Add", "a b", "s", "add"),
        node("MatMul", "s w", "y", "last"),
    )
    assert found == ["x", "first", "relu", "second", "add"]


def test_residual_additions_have_codes_whoever_reads_them(tmp_path: Path) -> None:
    found = marks(
        tmp_path, node("MatMul", "x w", "a", "first"), node("Add", "x a", "y", "residual")
    )
    assert found == ["x", "first", "residual"]


def test_a_sum_that_is_clipped_has_codes_behind_the_clip(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Add", "x a", "s", "residual"),
        node("Relu", "s", "r", "relu"),
        node("MatMul", "r w", "y", "last"),
    )
    assert found == ["x", "first", "relu"]


def test_what_follows_floats_alone_is_floats_too(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("Mul", "x two", "d", "double"),
        node("MatMul", "d w", "a", "first"),
        node("Softmax", "a", "s", "softmax"),
        node("Mul", "s two", "t", "twice"),
        node("MatMul", "t w", "y", "last"),
    )
    assert found == ["double", "twice"]


def test_functions_of_one_value_have_codes_at_both_ends(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Sigmoid", "a", "s", "sigmoid"),
        node("Mul", "a s", "m", "mul"),
        node("Mul", "m two", "d", "double"),
        node("MatMul", "d w", "y", "last"),
    )
    assert found == ["x", "first", "double"]


def test_a_normalization_is_floats_to_its_end(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Add", "x a", "h", "residual"),
        node("Mul", "h h", "h2", "square"),
        node("ReduceMean", "h2", "m", "mean", axes=[1]),
        node("Sqrt", "m", "r", "sqrt"),
        node("Reciprocal", "r", "i", "reciprocal"),
        node("Mul", "h i", "n", "normalized"),
        node("Mul", "n two", "g", "gain"),
        node("MatMul", "g w", "y", "last"),
    )
    assert found == ["x", "first", "residual", "gain"]


def test_what_no_rule_knows_is_entered_at_its_end(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Softmax", "a", "s", "softmax"),
        node("MatMul", "s w", "y", "last"),
    )
    assert found == ["x", "softmax"]


def test_rules_decide_by_node(tmp_path: Path) -> None:
    found = marks(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Relu", "a", "r", "relu"),
        node("MatMul", "r w", "y", "last"),
        recipe='"*" w8 a8:tensor rtn integer\n"first" none',
    )
    assert found == ["relu"]


def test_without_the_word_there_are_none(tmp_path: Path) -> None:
    proto = model([node("MatMul", "x w", "y", "first")], X, Y, W)
    with pytest.raises(RecipeError, match="only calibration fixes"):
        passed(proto, tmp_path, "w8 a8:tensor rtn")
