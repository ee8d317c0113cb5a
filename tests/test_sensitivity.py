"""How much products matter: noise in one at a time, against numpy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.calibration.engine import Calibration
from abqc.compiler.calibration.error_feedback import Feedback, Settings, output_error
from abqc.compiler.calibration.moments import Moments
from abqc.compiler.calibration.runs import own_isa
from abqc.compiler.calibration.sensitivity import (
    NOISE,
    Exact,
    Sensitivities,
    error_file,
    error_like,
    write_error,
)
from abqc.compiler.driver import compile_file
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects import hadamard
from abqc.dialects.formats import parse_scheme
from abqc.passes.infrastructure import Unit, run_pipeline
from caches import cache_beside
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import model as small_model
from onnx_models import node

Array = np.ndarray
# A product's weight and bias as they are with the error, by node.
Changed = dict[str, tuple[Array, Array]]


def residual() -> tuple[onnx.ModelProto, Callable[[Array, Changed], Array]]:
    """Two products that a third follows, in a residual stream; and the same in numpy."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32) / np.float32(4)
        for name, shape in (("a", (12, 20)), ("b", (20, 12)), ("c", (12, 7)))
    }
    nodes = [
        node("MatMul", "x a", "u", "a"),
        node("Relu", "u", "r"),
        node("MatMul", "r b", "d", "b"),
        node("Add", "x d", "h"),
        node("MatMul", "h c", "y", "c"),
    ]
    shapes = [("x", np.float32, ["n", "t", 12])], [("y", np.float32, ["n", "t", 7])]

    def run(x: Array, changed: Changed) -> Array:
        def product(rows: Array, name: str) -> Array:
            weight, bias = changed.get(name, (weights[name].T, np.float32(0)))
            return rows @ weight.T + bias

        h = x + product(np.maximum(product(x, "a"), 0), "b")
        return product(h, "c")

    return small_model(nodes, *shapes, weights), run


def convolutions() -> tuple[onnx.ModelProto, Callable[[Array, Changed], Array]]:
    rng = np.random.default_rng(1)
    weights = {
        "v": rng.standard_normal((6, 3, 3, 2), np.float32) / np.float32(4),
        "w": rng.standard_normal((5, 6, 1, 3), np.float32) / np.float32(4),
    }
    zeros = {"v0": np.zeros(6, np.float32), "w0": np.zeros(5, np.float32)}
    nodes = [
        node("Conv", "x v v0", "c", "v", strides=[1, 2], pads=[1, 0, 0, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r w w0", "y", "w", dilations=[1, 2]),
    ]
    shapes = [("x", np.float32, ["n", 3, 9, 12])], [("y", np.float32, ["n", 5, "h", "w"])]

    def run(x: Array, changed: Changed) -> Array:
        proto = small_model(nodes, *shapes, weights | zeros)
        for tensor in proto.graph.initializer:
            name, place = tensor.name[0], len(tensor.name) - 1
            if name in changed:
                array = changed[name][place].reshape(numpy_helper.to_array(tensor).shape)
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
        return ReferenceEvaluator(proto).run(None, {"x": x})[0]

    return small_model(nodes, *shapes, weights | zeros), run


@pytest.mark.parametrize("make", [residual, convolutions])
@pytest.mark.parametrize("recipe", ["w4 a16 gptq", "w4 a16 gptq rotate"])
def test_noise_in_one_product_at_a_time(make: Callable, recipe: str, tmp_path: Path) -> None:
    proto, run = make()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    imported = import_model(path, work_dir=tmp_path)
    unit = Unit(
        store=imported.store,
        recipe=parse_recipe(recipe),
        target=CpuTarget(),
        inputs=imported.inputs,
        outputs=imported.outputs,
    )
    module = imported.module.operation
    run_pipeline(module, stages(on_device=False)["simplified"], unit)
    rng = np.random.default_rng(2)
    shape = (4, 6, 12) if make is residual else (4, 3, 9, 12)
    xs = [rng.standard_normal(shape).astype(np.float32) + 0.3 for _ in range(3)]
    feeds = [{"x": x} for x in xs]
    masks = [None] * 3
    calibration = Calibration(module, unit, feeds, masks, tmp_path, workers=1)

    surveyed = dict(calibration.survey(write_error, error_file))
    changed = {}
    for product in surveyed:
        with np.load(calibration.folder / error_file(product)) as arrays:
            error = arrays["error"].astype(np.float32) * arrays["scale"]
            mean = arrays["mean"]
        weight = product.encoding.weight(unit.store)
        bias = -error @ mean
        if block := product.encoding.hadamard_block:
            # Rows and weights are rotated alike: so is the error, back to where rows are not.
            turned = hadamard.transform(np.eye(weight.shape[1], dtype=np.float32), block)
            weight, error = weight @ turned.T, error @ turned.T
        changed[product.node] = weight + error, bias

    folder = tmp_path / "sensitivity"
    folder.mkdir()
    measure = Sensitivities(
        module, unit, feeds[:2], masks[:2], folder, 1, lambda step, done, total: None
    )
    found = measure.measure(list(surveyed), calibration.folder)
    found = {product.node: found[product.at] for product in surveyed}
    assert found.keys() == changed.keys()
    energy = float(np.concatenate([run(x, {}) for x in xs[:2]]).var())
    for name, each in changed.items():
        lost = np.mean(
            [np.square(run(x, {name: each}) - run(x, {})).mean() / energy for x in xs[:2]]
        )
        assert found[name] == pytest.approx(lost / NOISE, rel=1e-2), name


def test_the_error_is_what_feedback_leaves() -> None:
    """As large as asked for, and spread over directions of the inputs as the real one is."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 24)) * np.logspace(0, -1.5, 24)
    moments = Moments(24)
    moments.add((rng.standard_normal((500, 24)) @ mix).astype(np.float32))
    weight = rng.standard_normal((40, 24), np.float32)
    feedback = Feedback(moments, Settings(bias=False))
    error = error_like(weight, feedback, 0)
    none = np.zeros_like(weight)
    energies = [output_error(w, none, feedback.moments).sum() for w in (error, weight)]
    assert energies[0] == pytest.approx(NOISE * energies[1], rel=1e-4)
    real = weight - feedback.encode(weight, parse_scheme("w6")).tensor.dequantize()
    vectors = np.linalg.eigh(moments.own)[1].astype(np.float32)
    mine, theirs = (np.square(e @ vectors).mean(axis=0) for e in (error, real))
    assert np.corrcoef(np.log(mine), np.log(theirs))[0, 1] > 0.9


def test_outputs_are_compared() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((2, 70, 5), np.float32)
    other = exact + np.float32(0.1) * rng.standard_normal(exact.shape, np.float32)
    exact[0, :3, 1] = other[0, :3, 1] = -np.inf  # a class that is hidden
    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in (exact, other))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.nan_to_num(p * np.log(p / q)).sum(axis=-1)
    mask = np.arange(140).reshape(2, 70) % 3
    outputs, others = {"logits": exact, "more": exact}, {"logits": other, "more": -exact}
    assert Exact(outputs, None, {}).divergence(others) == pytest.approx(each.mean(), rel=1e-3)
    found = Exact(outputs, mask, {}).divergence(others)
    assert found == pytest.approx(each[mask != 0].mean(), rel=1e-3)
    hidden = Exact(outputs, np.zeros_like(mask), {})
    assert math.isnan(hidden.divergence(others))
    assert Exact(outputs, None, {}).divergence({"logits": exact + np.float32(0.7)}) < 1e-6

    finite = np.isfinite(exact)
    lost = np.zeros_like(exact)
    lost[finite] = np.square(other[finite] - exact[finite])
    energies = {"y": 2.0, "constant": 0.0}
    constant = np.ones(3, np.float32)
    outputs, others = {"y": exact, "constant": constant}, {"y": other, "constant": constant}
    expected = lost[finite].mean() / 2
    assert Exact(outputs, None, energies).divergence(others) == pytest.approx(expected, rel=1e-4)
    counted = finite & (mask != 0)[..., None]
    found = Exact(outputs, mask, energies).divergence(others)
    assert found == pytest.approx(lost[counted].mean() / 2, rel=1e-4)
    one = Exact({"logits": exact[..., :1]}, None, {"logits": 4.0})  # no classes
    assert one.divergence({"logits": exact[..., :1] + 1}) == pytest.approx(0.25)
    for outputs, others in (({}, {}), ({"y": exact}, {"y": exact[:1]})):
        assert math.isnan(Exact(outputs, None, energies).divergence(others))


def chosen(proto: onnx.ModelProto, folder: Path, feeds: dict[str, Array], **options: Any) -> Any:
    """By node the bits of the format that a budget has bought; the warnings."""
    path = folder / "model.onnx"
    onnx.save(proto, path)
    notes: list[str] = []
    library = compile_file(
        path,
        quant="w4 a16",
        calib=feeds,
        budget="5bpw",
        cpu="x86-64-v3",
        note=notes.append,
        **options,
    )
    text = library.with_suffix(".recipe.txt").read_text()
    found = re.findall(r'"(\w+)" (w\d\w*)', text)
    return {name: int(format[1]) for name, format in found}, notes


def products(names: str, *rest: Any) -> list[Any]:
    """Nodes that multiply x by the weights, one after the other, up to h."""
    x, nodes = "x", []
    for name in names:
        nodes += [node("MatMul", f"{x} w{name}", f"m{name}", name), node("Relu", f"m{name}", name)]
        x = name
    return [*nodes, node("Identity", x, "h"), *rest]


def weights_of(names: str, width: int = 24) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shape = width, width
    return {f"w{n}": rng.standard_normal(shape, np.float32) / np.float32(5) for n in names}


def rows(count: int = 40, width: int = 24) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((count, width), np.float32)}


@pytest.mark.parametrize("kind", ["integers", "one number", "infinity", "count"])
def test_outputs_that_tell_little(kind: str, tmp_path: Path) -> None:
    """A budget is spent all the same."""
    weights, last = weights_of("abc"), ("y", np.float32, ["n", 24])
    if kind == "integers":
        nodes = products("abc", node("ArgMax", "h", "y", axis=1, keepdims=0))
        last = ("y", np.int64, ["n"])
    elif kind == "one number":
        weights["v"] = np.ones((24, 1), np.float32)
        nodes = products("abc", node("MatMul", "h v", "y", "d"))
        last = ("y", np.float32, ["n", 1])
    elif kind == "infinity":
        weights["hidden"] = np.where(np.arange(24) < 3, -np.inf, 0).astype(np.float32)
        nodes = products("abc", node("Add", "h hidden", "y"))
    else:  # of rows: it depends on what a computes, and other noise makes it another
        numbers = {"thousand": 1000, "two": 2, "zero": 0}
        weights |= {name: np.array(value, np.float32) for name, value in numbers.items()}
        weights["first"] = np.array([0])
        nodes = [
            node("MatMul", "x wa", "m", "a"),
            node("Gather", "m first", "column", axis=1),
            node("Squeeze", "column one", "values"),
            node("Mul", "values thousand", "large"),
            node("Floor", "large", "whole"),
            node("Mod", "whole two", "odd", fmod=1),
            node("Equal", "odd zero", "taken"),
            node("Compress", "m taken", "some", axis=0),
            node("MatMul", "some wb", "n1", "b"),
            node("MatMul", "n1 wc", "y", "c"),
        ]
        weights["one"] = np.array([1])
        last = ("y", np.float32, ["k", 24])
    proto = small_model(nodes, [("x", np.float32, ["n", 24])], [last], weights)
    bits, notes = chosen(proto, tmp_path, rows())
    assert 3 < np.mean(list(bits.values())) <= 5
    told = kind in ("one number", "infinity")
    assert told or any("no output that a budget compares" in text for text in notes)


@pytest.mark.parametrize("name", ["y", "logits"])
def test_outputs_of_the_middle(name: str, tmp_path: Path) -> None:
    """What becomes of them shows too, but beside logits."""
    nodes = products("abc", node("Identity", "h", name))
    outputs = [(each, np.float32, ["n", 24]) for each in ("ma", "b", name)]
    weights = weights_of("abc")
    proto = small_model(nodes, [("x", np.float32, ["n", 24])], outputs, weights)
    bits, notes = chosen(proto, tmp_path, rows(400))
    assert not notes and 3 < np.mean(list(bits.values())) <= 5
    assert bits["a"] >= bits["c"]  # which changes one output of three


def test_one_weight_of_two_products(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x wa", "m1", "first"),
        node("Relu", "m1", "r1"),
        node("MatMul", "r1 wb", "m2", "between"),
        node("Relu", "m2", "r2"),
        node("MatMul", "r2 wa", "m3", "second"),
        node("Relu", "m3", "r3"),
        node("MatMul", "r3 wc", "y", "last"),
    ]
    last = ("y", np.float32, ["n", 24])
    proto = small_model(nodes, [("x", np.float32, ["n", 24])], [last], weights_of("abc"))
    bits, notes = chosen(proto, tmp_path, rows())
    assert bits.keys() == {"first", "between", "second", "last"} and not notes


def test_workers_change_nothing_and_files_go(tmp_path: Path) -> None:
    proto, _ = residual()
    feeds = {"x": np.random.default_rng(3).standard_normal((300, 6, 12), np.float32)}
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with patch.dict(os.environ, {"ABQC_CACHE": cache_beside(folder / "cache")}):
            found.append(chosen(proto, folder, feeds, calib_workers=workers)[0])
            (kept,) = (folder / "cache" / "calibration").glob("*/*.txt")
            found.append(kept.read_text())
        assert {path.name for path in folder.iterdir()} == {
            *("cache", "model.onnx", "model.so", "model.recipe.txt"),
        }
    assert found[:2] == found[2:]


@pytest.mark.parametrize("isa", isas.ALL, ids=lambda isa: isa.name)
def test_segments_are_for_what_libraries_would_use(
    isa: isas.Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments have all their kernels for one instruction set."""
    monkeypatch.setenv("ABQC_ISA", isa.name)
    own = own_isa()
    assert own.extends is None
    if isas.runs_here(isa):
        assert own == isas.lineage(isa)[-1]
