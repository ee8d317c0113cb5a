from pathlib import Path

import numpy as np
import pytest
from abqc.errors import RecipeError
from facts import Facts
from integer_cases import RECIPE
from integer_passes import passed
from onnx_models import model, node

RNG = np.random.default_rng(0)
W = {
    "wide": RNG.standard_normal((256, 6), np.float32),
    "six": RNG.standard_normal((6, 256), np.float32),
    "w": RNG.standard_normal((6, 6), np.float32),
    "large": np.full(6, 1e16, np.float32),
    "gain": RNG.standard_normal(6, np.float32),
}
X = [("x", np.float32, ["n", 6])]
Y = [("y", np.float32, ["n", 6])]


def run(
    tmp_path: Path, *nodes: object, strict: bool = False, recipe: str = RECIPE
) -> tuple[Facts, list[str]]:
    _, integers, _, unit = passed(model(nodes, X, Y, W), tmp_path, recipe, strict=strict)
    return integers, [note["node"] for note in unit.notes]


def float_loops(facts: Facts) -> list[str]:
    """The types of what loops read and write where floats are among them."""
    loops = [[str(v.type) for v in op.operands] for op in facts("linalg.generic")]
    return [" ".join(types) for types in loops if "f32" in " ".join(types)]


def test_between_two_products_are_integers_alone(tmp_path: Path) -> None:
    facts, notes = run(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Relu", "a", "r", "relu"),
        node("Mul", "r gain", "g", "gain"),
        node("MatMul", "g w", "y", "last"),
    )
    first, last = facts("abq.matmul")
    assert [str(op.results[0].type.element_type) for op in (first, last)] == ["i32", "f32"]
    assert first.opview.bias is None
    assert len(float_loops(facts)) == 1  # the model's input becomes codes
    assert not notes


def test_what_no_rule_knows_is_an_island_and_noted(tmp_path: Path) -> None:
    nodes = (
        node("MatMul", "x w", "a", "first"),
        node("Softmax", "a", "s", "softmax"),
        node("MatMul", "s w", "y", "last"),
    )
    facts, notes = run(tmp_path, *nodes)
    assert notes == ["softmax"]
    assert [str(op.results[0].type.element_type) for op in facts("abq.matmul")] == ["f32", "f32"]
    (tmp_path / "strict").mkdir()
    with pytest.raises(RecipeError, match="in floats between integers"):
        run(tmp_path / "strict", *nodes, strict=True)


def test_a_factor_beyond_fixed_point_stays_float(tmp_path: Path) -> None:
    _, notes = run(
        tmp_path,
        node("MatMul", "x w", "a", "first"),
        node("Mul", "a large", "m", "scaled"),
        node("MatMul", "m w", "y", "last"),
    )
    assert notes == ["scaled"]


@pytest.mark.parametrize(("recipe", "floats"), [("w4", ["second"]), ("w4:channel", [])])
def test_weights_in_groups_stay_float(tmp_path: Path, recipe: str, floats: list[str]) -> None:
    _, notes = run(
        tmp_path,
        node("MatMul", "x six", "a", "first"),
        node("MatMul", "a wide", "b", "second"),
        node("MatMul", "b w", "y", "last"),
        recipe=f"{recipe} a8:tensor rtn integer",
    )
    assert notes == floats
