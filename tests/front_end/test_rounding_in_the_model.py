"""Models that round weights and activations themselves: ternary products stay ternary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.onnx_import.importer import import_model
from abqc.dialects.formats import parse_scheme, quantize_activation
from abqc.dialects.weight_store import WeightStore
from front_end.oracle import compiled, expected, outputs
from onnx_models import node

F32 = np.float32
K, N = 70, 37

NUMBERS = {
    "last": np.array([-1]), "first": np.array([0]),
    "tiny": np.array(1e-5, F32), "large": np.array(0.5, F32), "one": np.array(1, F32),
    "minus1": np.array(-1, F32), "127": np.array(127, F32), "100": np.array(100, F32),
    "-128": np.array(-128, F32), "-127": np.array(-127, F32), "7": np.array(7, F32),
    "-8": np.array(-8, F32), "-3": np.array(-3, F32),
}  # fmt: skip


def ternary(rng: np.random.Generator, n: int = N, k: int = K) -> np.ndarray:
    """A weight N x K of rows of zeros, +s and -s, f32."""
    scale = rng.uniform(0.01, 3, (n, 1)).astype(F32)
    return rng.integers(-1, 2, (n, k)).astype(F32) * scale


def product(w: np.ndarray) -> onnx.ModelProto:
    """`y = x w^T`."""
    n, k = w.shape
    return models.model(
        [node("MatMul", "x w", "y", "product")],
        [("x", F32, ["m", k])],
        [("y", F32, ["m", n])],
        {"w": np.ascontiguousarray(w.T)},
    )


@dataclass(frozen=True)
class Imported:
    text: str
    store: WeightStore
    symbol: str


def imported(proto: onnx.ModelProto, folder: Path, *, keep_codes: bool = True) -> Imported:
    found = import_model(models.save(proto, folder), work_dir=folder, keep_codes=keep_codes)
    return Imported(str(found.module), found.store, found.nodes[-1].weight)


def codes_of(proto: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    found = imported(proto, folder, **options)
    return found.store.quantized(found.symbol)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_of_three_values_become_codes_to_the_bit(tmp_path: Path, dtype: type) -> None:
    w = ternary(np.random.default_rng(0)).astype(dtype).astype(F32)
    w[3] = 0
    w[4] = -np.abs(w[4])  # two values are enough
    tensor = codes_of(product(w), tmp_path)
    assert tensor.scheme.text == "wt:channel:sym" and tensor.scale.dtype == F32
    np.testing.assert_array_equal(tensor.codes, np.sign(w))
    np.testing.assert_array_equal(tensor.dequantize(), w)


@pytest.mark.parametrize("change", ["one more value", "an ulp", "infinity"])
def test_other_floats_stay_floats(tmp_path: Path, change: str) -> None:
    w = ternary(np.random.default_rng(1))
    w[-1, :3] = [0.5, -0.5, 0]
    w[-1, 3:] = 0
    w[-1, 5] = {
        "one more value": F32(0.25), "an ulp": np.nextafter(F32(0.5), F32(1)), "infinity": np.inf,
    }[change]  # fmt: skip
    assert codes_of(product(w), tmp_path) is None


def test_codes_are_not_looked_for_unless_asked(tmp_path: Path) -> None:
    assert codes_of(product(ternary(np.random.default_rng(2))), tmp_path, keep_codes=False) is None


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, 5), (np.uint8, 1)])
def test_wider_codes_that_are_ternary_become_so(tmp_path: Path, dtype: type, zero: int) -> None:
    rng = np.random.default_rng(3)
    steps = rng.integers(-1, 2, (N, K))
    proto = models.model(
        [
            node("DequantizeLinear", "q s z", "w", axis=0),
            node("Transpose", "w", "wt", perm=[1, 0]),
            node("MatMul", "x wt", "y", "product"),
        ],
        [("x", F32, ["m", K])],
        [("y", F32, ["m", N])],
        {
            "q": (steps + zero).astype(dtype),
            "s": rng.uniform(0.1, 1, N).astype(F32),
            "z": np.full(N, zero, dtype),
        },
    )
    tensor = codes_of(proto, tmp_path)
    assert tensor.scheme.text == "wt:channel:sym"
    np.testing.assert_array_equal(tensor.codes, steps)


def absmean(opset: int) -> list[onnx.NodeProto]:
    """`w` rounded to three values by its mean magnitude, as BitNet b1.58 does: `u`."""
    limits = "r minus1 one" if opset >= 11 else "r"
    attributes = {} if opset >= 11 else {"min": -1.0, "max": 1.0}
    return [
        node("Abs", "w", "magnitude"),
        node("ReduceMean", "magnitude", "mean", keepdims=0),
        node("Max", "mean tiny", "kept"),
        node("Reciprocal", "kept", "s"),
        node("Mul", "w s", "steps"),
        node("Round", "steps", "r"),
        node("Clip", limits, "c", **attributes),
        node("Div", "c s", "u"),
    ]


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("n", [30, 2000])  # small constants and large ones are folded in two ways
def test_weights_rounded_in_the_graph(tmp_path: Path, n: int, straight_through: bool) -> None:
    w = np.random.default_rng(4).standard_normal((n, K), F32)
    nodes = absmean(18)
    if straight_through:
        nodes += [node("Sub", "u w", "d"), node("Add", "w d", "estimated")]
    end = "estimated" if straight_through else "u"
    nodes += [
        node("Transpose", end, "wt", perm=[1, 0]),
        node("MatMul", "x wt", "y", "product"),
    ]
    proto = models.model(
        nodes, [("x", F32, ["m", K])], [("y", F32, ["m", n])], {"w": w, **NUMBERS}, 18
    )
    tensor = codes_of(proto, tmp_path)
    assert tensor.scheme.text == "wt:channel:sym"
    mean = np.abs(w).mean(dtype=np.float64)
    np.testing.assert_array_equal(tensor.codes, np.clip(np.rint(w / mean), -1, 1))
    np.testing.assert_allclose(tensor.scale, mean, rtol=1e-6)


def test_arithmetic_of_old_opsets_is_left_to_the_run(tmp_path: Path) -> None:
    """Before opset 7 an attribute said where the second operand begins."""
    w = np.ones((2000, K), F32)
    proto = models.model(
        [node("Add", "w b", "v", axis=0, broadcast=1), node("MatMul", "x v", "y", "product")],
        [("x", F32, [3, 2000])],
        [("y", F32, [3, K])],
        {"w": w, "b": np.arange(2000, dtype=F32)},
        6,
    )
    model = compiled(proto, tmp_path)
    x = np.random.default_rng(5).standard_normal((3, 2000), F32)
    wanted = x @ (w + np.arange(2000, dtype=F32)[:, None])
    np.testing.assert_allclose(outputs(model, {"x": x})[0], wanted, rtol=1e-4)


RANGE = [node("Abs", "x", "a"), node("ReduceMax", "a last", "m")]
CLIP = node("Clip", "r -128 127", "c")
FACTOR = [*RANGE, node("Max", "m tiny", "f"), node("Div", "127 f", "s")]
BY_FACTOR = [node("Mul", "x s", "t"), node("Round", "t", "r"), CLIP, node("Div", "c s", "q")]
BY_STEP = [node("Div", "x s", "t"), node("Round", "t", "r"), CLIP, node("Mul", "s c", "q")]


def replaced(nodes: list[onnx.NodeProto], old: str, new: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes with another in the place of the one that makes `old`."""
    return [new if old in item.output else item for item in nodes]


ROUNDED: dict[str, list[onnx.NodeProto]] = {
    "127 over the range": FACTOR + BY_FACTOR,
    "by a reciprocal": [
        *RANGE,
        node("Clip", "m tiny", "f"),
        node("Reciprocal", "f", "i"),
        node("Mul", "i 127", "s"),
        *replaced(BY_FACTOR, "t", node("Mul", "s x", "t")),
    ],
    "a step": [*RANGE, node("Max", "tiny m", "f"), node("Div", "f 127", "s"), *BY_STEP],
    "a step with a floor": [
        *RANGE,
        node("Div", "m 127", "g"),
        node("Max", "g tiny", "s"),
        *BY_STEP,
    ],
    "not clipped": FACTOR + replaced(BY_FACTOR, "c", node("Identity", "r", "c")),
    "clipped evenly": FACTOR + replaced(BY_FACTOR, "c", node("Clip", "r -127 127", "c")),
    "straight through": [
        *FACTOR,
        *replaced(BY_FACTOR, "q", node("Div", "c s", "e")),
        node("Sub", "e x", "d"),
        node("Add", "d x", "q"),
    ],
    "4 bits": replaced(FACTOR, "s", node("Div", "7 f", "s"))
    + replaced(BY_FACTOR, "c", node("Clip", "r -8 7", "c")),
}

OTHERS: dict[str, list[onnx.NodeProto]] = {
    "no floor": [*RANGE, node("Div", "127 m", "s"), *BY_FACTOR],
    "a floor that counts": replaced(FACTOR, "f", node("Max", "m large", "f")) + BY_FACTOR,
    "a number is added": replaced(FACTOR, "f", node("Add", "m tiny", "f")) + BY_FACTOR,
    "other codes": replaced(FACTOR, "s", node("Div", "100 f", "s")) + BY_FACTOR,
    "clipped early": FACTOR + replaced(BY_FACTOR, "c", node("Clip", "r -128 100", "c")),
    "clipped to less": FACTOR + replaced(BY_FACTOR, "c", node("Clip", "r -3 127", "c")),
    "clipped by what is computed": FACTOR
    + replaced(BY_FACTOR, "c", node("Clip", "r limit 127", "c")),
    "another axis": replaced(FACTOR, "m", node("ReduceMax", "a first", "m")) + BY_FACTOR,
    "rounded down": FACTOR + replaced(BY_FACTOR, "r", node("Floor", "t", "r")),
    "scaled back by another": FACTOR + replaced(BY_FACTOR, "q", node("Div", "c f", "q")),
    "the range of another": replaced(FACTOR, "a", node("Abs", "z", "a")) + BY_FACTOR,
}


def rounded_product(nodes: list[onnx.NodeProto], w: np.ndarray) -> onnx.ModelProto:
    n, k = w.shape
    return models.model(
        [*nodes, node("MatMul", "q w", "y", "product")],
        [("x", F32, ["m", "h", k]), ("z", F32, ["m", "h", k]), ("limit", F32, [])],
        [("y", F32, ["m", "h", n])],
        {"w": np.ascontiguousarray(w.T), **NUMBERS},
        18,
    )


def feeds(rng: np.random.Generator, k: int) -> dict[str, np.ndarray]:
    x = rng.standard_normal((3, 5, k)).astype(F32) * rng.uniform(0.1, 10, (3, 5, 1)).astype(F32)
    x[1, 2] = 0
    z = rng.standard_normal(x.shape).astype(F32)
    return {"x": x, "z": z, "limit": np.array(-128, F32)}


@pytest.mark.parametrize("form", ROUNDED)
def test_rounded_rows_are_codes_of_the_product(tmp_path: Path, form: str) -> None:
    found = imported(rounded_product(ROUNDED[form], ternary(np.random.default_rng(6))), tmp_path)
    bits = 4 if form == "4 bits" else 8
    assert found.text.count("abq.quantize") == 1 and f"a{bits}:token:sym" in found.text


@pytest.mark.parametrize("form", OTHERS)
def test_other_roundings_stay_arithmetic(tmp_path: Path, form: str) -> None:
    found = imported(rounded_product(OTHERS[form], ternary(np.random.default_rng(7))), tmp_path)
    assert "abq.quantize" not in found.text
    assert found.store.quantized(found.symbol) is not None


def test_products_with_floats_keep_the_arithmetic(tmp_path: Path) -> None:
    w = np.random.default_rng(8).standard_normal((N, K), F32)
    found = imported(rounded_product(ROUNDED["a step"], w), tmp_path)
    assert "abq.quantize" not in found.text


def test_integer_products_give_what_the_reference_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    w = ternary(rng)
    model = compiled(rounded_product(ROUNDED["a step"], w), tmp_path)
    (operation,) = model.manifest["ops"]
    assert (operation["weight"], operation["activation"]) == ("wt:channel:sym", "a8:token:sym")
    given = feeds(rng, K)
    codes, scale, _ = quantize_activation(given["x"].reshape(-1, K), parse_scheme("a8:token:sym"))
    steps = codes.astype(np.int32) @ np.sign(w).T.astype(np.int32)
    wanted = (scale[:, None] * np.abs(w).max(1)) * steps.astype(F32)
    (y,) = outputs(model, given)
    np.testing.assert_array_equal(y.reshape(-1, N), wanted)


def test_rows_stay_rounded_where_the_weight_is_of_floats(tmp_path: Path) -> None:
    """Scales along K are of no format."""
    rng = np.random.default_rng(12)
    proto = rounded_product(ROUNDED["a step"], np.zeros((N, K), F32))
    proto.graph.node.insert(0, node("DequantizeLinear", "codes scales", "w", axis=0))
    (w,) = [t for t in proto.graph.initializer if t.name == "w"]
    proto.graph.initializer.remove(w)
    codes, scales = rng.integers(-127, 128, (K, N)).astype(np.int8), rng.uniform(0.1, 1, K)
    for name, array in (("codes", codes), ("scales", scales.astype(F32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = compiled(proto, tmp_path)
    assert model.manifest["ops"][0]["weight"] == "f32"
    given = feeds(rng, K)
    rows = given["x"].reshape(-1, K)
    steps, step, _ = quantize_activation(rows, parse_scheme("a8:token:sym"))
    (y,) = outputs(model, given)
    wanted = (steps * step[:, None]) @ (codes * scales.astype(F32)[:, None])
    np.testing.assert_allclose(y.reshape(-1, N), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("recipe", "weight"), [("none", "wt"), ("w4a8", "wt"), ("wt5a8", "wt5"), ("w4a4 rotate", "wt")]
)
def test_ternary_weights_are_kept_whatever_the_recipe(
    tmp_path: Path, recipe: str, weight: str
) -> None:
    rng = np.random.default_rng(10)
    w = ternary(rng)
    proto = product(w)
    model = compiled(proto, tmp_path, recipe)
    (operation,) = model.manifest["ops"]
    assert operation["weight"] == f"{weight}:channel:sym"
    x = rng.standard_normal((5, K), F32)
    (y,), (wanted,) = outputs(model, {"x": x}), expected(proto, {"x": x})
    bits = {"none": 22, "w4a4 rotate": 2}.get(recipe, 6)
    assert np.abs(y - wanted).max() < np.ptp(wanted) * 2.0**-bits


def test_a_gpu_rounds_no_floats_that_are_not_asked_for(tmp_path: Path) -> None:
    """Kernels with codes would make halves of them, which end at 65504."""
    path = models.save(product(ternary(np.random.default_rng(11))), tmp_path)
    for recipe, weight in (("none", "f32"), ("wta16", "wt:channel:sym")):
        options = {"target": "sm_80", "device": "ptx-vm", "output": tmp_path / "model.so"}
        model = abqc.compile(path, quant=recipe, **options)
        assert model.manifest["ops"][0]["weight"] == weight
        if recipe == "none":
            x = np.full((2, K), 1e6, F32)
            (y,), (wanted,) = outputs(model, {"x": x}), expected(onnx.load(path), {"x": x})
            np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1)


def test_straight_through_needs_a_rounding(tmp_path: Path) -> None:
    """x + (f(x) - x) is kept where f rounds nothing: floats may be far from it."""
    proto = models.model(
        [
            node("Mul", "x tiny", "f"),
            node("Sub", "f x", "d"),
            node("Add", "x d", "y"),
        ],
        [("x", F32, ["m"])],
        [("y", F32, ["m"])],
        NUMBERS,
    )
    x = np.array([1e10, 1, -3], F32)
    (y,) = outputs(compiled(proto, tmp_path), {"x": x})
    np.testing.assert_array_equal(y, x + (x * F32(1e-5) - x))
