"""Calibration from data to codes: segments, samples, what a compile makes of them, bad data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.calibration.dataflow import DataFlow
from abqc.compiler.calibration.patches import Patches
from abqc.compiler.calibration.plan import read_weighed
from abqc.compiler.calibration.ranges import Range, Static
from abqc.compiler.calibration.residual import sum_of
from abqc.compiler.calibration.runs import Stream, compile_segment
from abqc.compiler.calibration.samples import TEXT_TOKENS, batches, text_samples
from abqc.compiler.calibration.segments import cut, extract, value_name
from abqc.compiler.evaluation.metrics import relative_error
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import FLOAT
from abqc.dialects.formats import parse_scheme, quantize_activation
from abqc.errors import InputError, PerformanceWarning, RecipeError
from abqc.passes.infrastructure import Unit, run_pipeline
from caches import cache_beside
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import model as small_model
from onnx_models import node, save

WIDTH, HIDDEN, LAYERS = 32, 48, 2


def blocks(path: Path, *, seed: int = 0) -> Path:
    """Residual blocks h = h + down(relu(up(h)) * mask), an own head and a mask from the input."""
    rng = np.random.default_rng(seed)
    weights, nodes = [], []

    def weight(name: str, *shape: int) -> str:
        array = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        weights.append(numpy_helper.from_array(array, name))
        return name

    nodes.append(helper.make_node("Greater", ["length", "zero"], ["visible"]))
    weights.append(numpy_helper.from_array(np.zeros((), np.int64), "zero"))
    nodes.append(helper.make_node("Cast", ["visible"], ["mask"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Unsqueeze", ["mask", "last"], ["column"]))
    weights.append(numpy_helper.from_array(np.array([-1]), "last"))
    h = "x"
    for layer in range(LAYERS):
        up, down = weight(f"up{layer}", WIDTH, HIDDEN), weight(f"down{layer}", HIDDEN, WIDTH)
        nodes += [
            helper.make_node("MatMul", [h, up], [f"u{layer}"], name=f"up{layer}"),
            helper.make_node("Relu", [f"u{layer}"], [f"r{layer}"]),
            helper.make_node("Mul", [f"r{layer}", "column"], [f"m{layer}"]),
            helper.make_node("MatMul", [f"m{layer}", down], [f"d{layer}"], name=f"down{layer}"),
            helper.make_node("Add", [h, f"d{layer}"], [f"h{layer}"]),
        ]
        h = f"h{layer}"
    nodes.append(helper.make_node("MatMul", [h, weight("head", WIDTH, 16)], ["y"], name="head"))
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape, WIDTH]),
            helper.make_tensor_value_info("length", TensorProto.INT64, shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, 16])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def data(samples: int, *, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).standard_normal((WIDTH, WIDTH)) * np.linspace(0.1, 1, WIDTH)
    x = (rng.standard_normal((samples, 12, WIDTH)) @ mix).astype(np.float32)
    return {"x": x, "length": rng.integers(0, 5, (samples, 12))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return blocks(tmp_path / "blocks.onnx")


def reference(model: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return abqc.compile(model, output=model.with_suffix(".float.so")).run(feeds)[0]


def test_segments_one_after_the_other_are_the_model(model: Path, tmp_path: Path) -> None:
    imported = import_model(model, work_dir=tmp_path)
    unit = Unit(store=imported.store, recipe=FLOAT, inputs=imported.inputs)
    operation = imported.module.operation
    run_pipeline(operation, stages(on_device=False)["simplified"], unit)
    flow = DataFlow(operation)
    products = {
        at: str(flow.id_of(op.operands[0]))
        for at, op in enumerate(flow.operations)
        if op.name == "abq.matmul"
    }
    segments = cut(flow, products)
    assert [len(segment.products) for segment in segments] == [1] * (2 * LAYERS + 1)
    assert len(segments[-1].inputs) == 1  # the residual stream; the mask is computed again
    feeds = data(2)
    stream = Stream.of([feeds], tmp_path)
    head = flow.id_of(flow.operations[segments[-1].products[0]].results[0])
    assert head is not None
    for segment in segments:
        outputs = [*segment.outputs] or [head]
        part = extract(operation, imported.inputs, segment.inputs, outputs)
        values = stream.run(compile_segment(part, FLOAT, imported.store, tmp_path), 0)
        for id_ in outputs:
            stream.keep(id_, 0, values[value_name(id_)])
    found = stream.value(value_name(head), 0)
    assert relative_error(reference(model, feeds), found) < 1e-5


def test_the_sum_behind_a_product_is_found(model: Path, tmp_path: Path) -> None:
    imported = import_model(model, work_dir=tmp_path)
    unit = Unit(store=imported.store, recipe=FLOAT, inputs=imported.inputs)
    run_pipeline(imported.module.operation, stages(on_device=False)["simplified"], unit)
    flow = DataFlow(imported.module.operation)
    products = [op for op in flow.operations if op.name == "abq.matmul"]
    added = [sum_of(op.results[0]) != op.results[0] for op in products]
    assert added == [False, True] * LAYERS + [False]


@pytest.mark.parametrize(
    "recipe",
    ["w3a8", "w2v a8", "w3:g16:asym a16", pytest.param("w4a4", marks=pytest.mark.slow)],
)
def test_calibrated_codes_are_better_than_rounded_ones(model: Path, recipe: str) -> None:
    samples, test = data(64), data(16, seed=2)
    expected = reference(model, test)
    errors = {}
    for name, calib in (("rtn", None), ("gptq", samples)):
        flag = " rtn" if calib is None else ""
        compiled = abqc.compile(
            model, quant=recipe + flag, calib=calib, output=model.with_suffix(".so")
        )
        errors[name] = float(np.square(compiled.run(test)[0] - expected).mean())
    assert errors["gptq"] < 0.7 * errors["rtn"]
    assert len(compiled.manifest["calibration"]["errors"]) == 2 * LAYERS + 1


def test_rows_are_quantized_without_their_means(model: Path) -> None:
    samples, test = data(64), data(16, seed=2)
    for feeds in (samples, test):
        feeds["x"] += np.linspace(-6, 6, WIDTH, dtype=np.float32)
    expected = reference(model, test)
    errors = []
    for recipe in ("w8 a4 gptq", "w8 a4 gptq shift"):
        compiled = abqc.compile(model, quant=recipe, calib=samples, output=model.with_suffix(".so"))
        errors.append(float(np.square(compiled.run(test)[0] - expected).mean()))
    assert errors[1] < 0.75 * errors[0]
    with pytest.raises(RecipeError, match="shift needs calibration data"):
        abqc.compile(model, quant="w8 a4 shift", output=model.with_suffix(".so"))


def test_codes_of_the_model_are_not_shifted(tmp_path: Path) -> None:
    """Rows that come as codes stay these: no mean is taken off, and the bias has none."""
    rng = np.random.default_rng(0)
    constants = {
        "q": rng.integers(-127, 128, (WIDTH, 24)).astype(np.int8),
        "s": np.full(24, 0.01, np.float32),
        "step": np.array(0.06, np.float32),
        "zero": np.array(128, np.uint8),
    }
    proto = small_model(
        [
            node("QuantizeLinear", "x step zero", "codes"),
            node("DequantizeLinear", "codes step zero", "steps"),
            node("DequantizeLinear", "q s", "w", axis=1),
            node("MatMul", "steps w", "y", "product"),
        ],
        [("x", np.float32, ["m", WIDTH])],
        [("y", np.float32, ["m", 24])],
        constants,
    )
    x = rng.standard_normal((64, WIDTH)) + np.linspace(-3, 3, WIDTH)
    feeds = {"x": x.astype(np.float32)}
    path = save(proto, tmp_path)
    options = {"calib": feeds, "output": tmp_path / "model.so"}
    plain, shifted = (
        abqc.compile(path, quant=f"w4a8 gptq{word}", **options).run(feeds)[0]
        for word in ("", " shift")
    )
    np.testing.assert_array_equal(plain, shifted)


@pytest.mark.parametrize("scheme", ["a8:tensor", "a4:tensor", "a4:tensor:sym"])
def test_static_scales_lose_least(scheme: str) -> None:
    parsed = parse_scheme(scheme)
    values = np.random.default_rng(0).standard_normal((400, 50)).astype(np.float32)
    values[7, 3] = 9  # alone
    measured = Range(0)
    for part in np.split(values, 4):
        measured.add(part)
    scale, zero = measured.choose(Static(parsed))

    def error(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> float:
        return float(np.square((codes.astype(np.float32) - zero) * scale - values).sum())

    codes = parsed.format.encode(values, scale, None if parsed.symmetric else np.float32(zero))
    whole, scales, zeros = quantize_activation(values, parsed)  # all of the range
    assert error(codes, scale, zero) <= 1.001 * error(whole, scales[:, None], zeros[:, None])
    if parsed.bits == 4:
        assert scale < 0.9 * scales[0]
    assert Range(0).choose(Static(parsed)) == (1, 0)  # nothing was read
    assert measured.choose(Static(parsed, "minmax")) == pytest.approx((scales[0], zeros[0]), 1e-6)
    clipped, _ = measured.choose(Static(parsed, "percentile"))
    assert clipped < (0.9 if parsed.bits == 4 else 1) * scales[0]  # without the one that is alone


def test_static_activations_need_no_other_rows(model: Path, tmp_path: Path) -> None:
    compiled = abqc.compile(
        model, quant="w8 a8:tensor", calib=data(64), output=tmp_path / "static.so"
    )
    feeds = data(4, seed=3)
    alone = {name: array[:1] for name, array in feeds.items()}
    expected = compiled.run(feeds)[0]
    np.testing.assert_array_equal(expected[:1], compiled.run(alone)[0])
    far = compiled.run(feeds | {"x": 1000 * feeds["x"]})[0]
    assert np.abs(far).max() < 10 * np.abs(expected).max()  # the head's codes end somewhere
    with pytest.raises(RecipeError, match="only calibration fixes"):
        abqc.compile(model, quant="w8 a8:tensor", output=tmp_path / "static.so")


def test_static_activations_of_weights_that_are_rounded(model: Path, tmp_path: Path) -> None:
    quant = "w8 a8:tensor rtn"
    compiled = abqc.compile(model, quant=quant, calib=data(64), output=tmp_path / "static.so")
    feeds = data(4, seed=3)
    expected = reference(model, feeds)
    assert relative_error(expected, compiled.run(feeds)[0]) < 0.1
    assert not compiled.manifest["calibration"]["errors"]


def test_static_activations_of_a_tied_head(tmp_path: Path) -> None:
    """Its weight is the table's, which calibration does not encode."""
    table = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)
    nodes = [
        node("Gather", "table ids", "rows", "embedding"),
        node("Transpose", "table", "weight", perm=[1, 0]),
        node("MatMul", "rows weight", "logits", "head"),
    ]
    ids, logits = ("ids", np.int64, ["batch", 5]), ("logits", np.float32, ["batch", 5, 700])
    source = save(small_model(nodes, [ids], [logits], {"table": table}), tmp_path)
    tokens = np.random.default_rng(0).integers(0, 700, (64, 5))
    with abqc.compile(source, quant="w8 a8:tensor", calib={"ids": tokens}) as compiled:
        actual = compiled.run({"ids": tokens})[0]
    assert relative_error(table[tokens] @ table.T, actual) < 0.01


def test_too_few_samples_are_noted(model: Path, tmp_path: Path) -> None:
    with pytest.warns(PerformanceWarning, match="12 rows for 48 columns: give more samples"):
        abqc.compile(model, quant="w4a8", calib=data(1), output=tmp_path / "m.so")


def test_codes_are_kept_and_taken_up_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABQC_CACHE", cache_beside(tmp_path / "cache"))
    runs = []
    for _ in range(2):
        library = abqc.compile(model, quant="w3a8", calib=data(8), output=tmp_path / "m.so")
        runs.append(library.manifest["calibration"])
    assert runs[0]["errors"] == runs[1]["errors"]
    kept = list((tmp_path / "cache" / "calibration").glob("*/*.npz"))
    assert len(kept) == 2 * LAYERS + 1
    kept[0].write_bytes(b"damaged")
    again = abqc.compile(model, quant="w3a8", calib=data(8), output=tmp_path / "m.so")
    assert again.manifest["calibration"]["errors"] == runs[0]["errors"]


def test_a_folder_and_an_iterable_are_the_same_data(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    parts = [data(3, seed=1), data(2, seed=2)]
    for number, part in enumerate(parts):
        np.savez(folder / f"{number}.npz", **part)  # type: ignore[arg-type]
    found = [
        abqc.compile(model, quant="w3a8", calib=calib, output=tmp_path / "m.so").manifest
        for calib in (folder, iter(parts))
    ]
    assert found[0]["calibration"]["errors"] == found[1]["calibration"]["errors"]


def convolutions(path: Path) -> Path:
    """Convolutions of several strides, pads and dilations, one after the other."""
    rng = np.random.default_rng(3)
    nodes, weights, x, channels = [], [], "x", 3
    for number, options in enumerate(
        (
            {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2]},
            {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3]},
            {"kernel_shape": [1, 1]},
        )
    ):
        shape = (8, channels, *options["kernel_shape"])
        array = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(channels * 4))
        weights.append(numpy_helper.from_array(array, f"w{number}"))
        nodes.append(helper.make_node("Conv", [x, f"w{number}"], [f"c{number}"], **options))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        x, channels = f"r{number}", 8
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 14, 13])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_convolutions_are_calibrated(tmp_path: Path) -> None:
    model = convolutions(tmp_path / "convolutions.onnx")
    rng = np.random.default_rng(4)
    samples, test = (
        {"x": np.cumsum(rng.standard_normal((count, 3, 14, 13)), axis=-1).astype(np.float32)}
        for count in (32, 8)
    )
    expected = reference(model, test)
    errors = []
    for calib, quant in ((None, "w3a8 search"), (samples, "w3a8")):
        compiled = abqc.compile(model, quant=quant, calib=calib, output=tmp_path / "m.so")
        errors.append(float(np.square(compiled.run(test)[0] - expected).mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_what_a_convolution_multiplies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    window, strides, dilations = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(3))
    pads = tuple(map(int, rng.integers(0, 3, 4)))
    patches = Patches(window, strides, dilations, pads)
    x = rng.standard_normal((2, 3, 15, 14)).astype(np.float32)
    weight = rng.standard_normal((5, 3, *window)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads
    )
    expected = ReferenceEvaluator(node).run(None, {"x": x, "w": weight})[0]
    rows = patches.rows(x) @ weight.reshape(5, -1).T
    np.testing.assert_allclose(
        rows.reshape(2, -1, 5), np.moveaxis(expected.reshape(2, 5, -1), 1, 2), rtol=1e-4, atol=1e-4
    )


def _specs(model: Path, tmp_path: Path) -> list[object]:
    return list(import_model(model, work_dir=tmp_path).inputs)


def test_bad_data_say_what_is_wrong(model: Path, tmp_path: Path) -> None:
    specs = _specs(model, tmp_path)
    good = data(4)

    def refused(match: str, **changed: np.ndarray) -> None:
        arrays = {name: a for name, a in (good | changed).items() if a is not None}
        np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=match):
            batches(tmp_path / "bad.npz", specs)  # type: ignore[arg-type]

    refused("has no input 'other'", other=good["x"])
    refused("no array for input 'x'", x=None)  # type: ignore[arg-type]
    refused("has type float64", x=good["x"].astype(np.float64))
    refused("has shape", x=good["x"][0])
    refused("has shape", x=good["x"][:, :, :5])
    refused("NaN or infinity", x=np.where(good["x"] > 1, np.nan, good["x"]).astype(np.float32))
    refused("differ in their number of samples", x=good["x"][:2])
    refused("are empty", x=good["x"][:0], length=good["length"][:0])
    (tmp_path / "bad.npz").write_bytes(b"PK truncated")
    with pytest.raises(InputError, match="cannot read the calibration file"):
        batches(tmp_path / "bad.npz", specs)  # type: ignore[arg-type]
    np.savez(tmp_path / "bad.npz", **good)  # type: ignore[arg-type]
    whole = (tmp_path / "bad.npz").read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "bad.npz").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot read the calibration file"):
            batches(tmp_path / "bad.npz", specs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no calibration file"):
        batches(tmp_path / "absent.npz", specs)  # type: ignore[arg-type]


def test_error_feedback_needs_data(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs calibration data"):
        abqc.compile(model, quant="w4a8 gptq", output=tmp_path / "m.so")
    with pytest.raises(RecipeError, match="nothing to calibrate"):
        abqc.compile(model, quant="w4a8 rtn", calib=data(4), output=tmp_path / "m.so")


def test_a_text_is_cut_into_windows(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["a", "b", "[UNK]"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("a b " * (3 * TEXT_TOKENS // 2) + "a")
    found = text_samples(text, tmp_path / "tokenizer.json")["input_ids"]
    assert found.shape == (3, TEXT_TOKENS) and list(found[1, :4]) == [0, 1, 0, 1]
    text.write_text("a b")
    with pytest.raises(InputError, match="2 tokens, less than a window"):
        text_samples(text, tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="there is no file"):
        text_samples(text, tmp_path / "absent.json")


def test_a_budget_beats_one_width_for_all(model: Path, tmp_path: Path) -> None:
    samples, test = data(64), data(16, seed=2)
    expected = reference(model, test)
    errors = {}
    for name, budget in (("uniform", None), ("mixed", "3.5bpw")):
        library = tmp_path / f"{name}.so"
        quant = "w3:g32 a16" if budget is None else "w4 a16"
        compiled = abqc.compile(model, quant=quant, calib=samples, budget=budget, output=library)
        errors[name] = float(np.square(compiled.run(test)[0] - expected).mean())
    assert errors["mixed"] < errors["uniform"]
    recipe = (tmp_path / "mixed.recipe.txt").read_text()
    assert '"head" w' in recipe and "# chosen for --budget 3.5bpw" in recipe
    again = abqc.compile(model, quant=recipe, calib=samples, output=tmp_path / "again.so")
    np.testing.assert_array_equal(again.run(test)[0], compiled.run(test)[0])


def test_what_formats_leave_is_kept_and_taken_up_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABQC_CACHE", cache_beside(tmp_path / "cache"))

    def chosen(budget: str = "3.5bpw") -> dict[str, str]:
        library = tmp_path / "m.so"
        abqc.compile(model, quant="w4 a16", calib=data(8), budget=budget, output=library).close()
        recipe = library.with_suffix(".recipe.txt").read_text()
        return dict(re.findall(r'"(\w+)" (w\d\S*)', recipe))

    first = chosen()
    (kept,) = (tmp_path / "cache" / "calibration").glob("*/*.txt")
    text = kept.read_text()
    weighed = json.loads(text)
    assert weighed.keys() == first.keys() and len(first) == 2 * LAYERS + 1
    weighed["head"] = [[*rest, 1e3 * error] for *rest, error in weighed["head"]]
    kept.write_text(json.dumps(weighed))
    assert parse_scheme(chosen()["head"]).bits > parse_scheme(first["head"]).bits
    assert read_weighed(text) is not None
    for damaged in (None, "", "[1]", '{"a": [1]}', text[:-3], text.replace("w2v", "w2x")):
        assert read_weighed(damaged) is None


def test_budgets_that_cannot_be_met(model: Path, tmp_path: Path) -> None:
    def compile_with(budget: str, calib: dict[str, np.ndarray] | None = None) -> None:
        output = tmp_path / "m.so"
        abqc.compile(model, quant="w4a8", calib=calib, budget=budget, output=output)

    with pytest.raises(InputError, match=r"a budget of 1\.5bpw cannot be met") as raised:
        compile_with("1.5bpw", calib=data(8))
    assert "the least is 2." in str(raised.value.hint)
    with pytest.raises(InputError, match="'much' is no budget"):
        compile_with("much", calib=data(8))
    with pytest.raises(InputError, match="a budget is spent by what calibration data show"):
        compile_with("4bpw")
