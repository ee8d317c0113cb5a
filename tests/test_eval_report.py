"""The report of `abqc eval`: plots, page, and the noise of activations behind it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from abqc.compiler.evaluation import report, svg
from abqc.compiler.evaluation.taps import activation_layers
from abqc.dialects.formats import parse_scheme, quantize_activation
from abqc.dialects.weight_noise import signal_to_noise
from abqc.errors import InputError, RecipeError

HISTOGRAM = {"limit": 1.0, "before": (0, 3, 1), "after": (1, 2, 1)}
DIGITS = Path(__file__).parent / "models" / "data" / "digits_mlp.onnx"


def about(recipe: str, bits: float | None, difference: float) -> dict:
    likelihood = {
        "windows": 2,
        "tokens": 10,
        "perplexity_expected": 20.0,
        "perplexity_actual": 21.0,
        "nll_difference": difference,
        "standard_error": 0.01,
        "kl": 0.1,
        "agreement": 0.9,
    }
    return {
        "file": f"{recipe}.so",
        "recipe": recipe,
        "bytes": 1000,
        "bits_per_weight": bits,
        "likelihood": likelihood,
    }


def example(layers: int = 3) -> report.Report:
    noisy = [report.Layer(f"layer{i}", "w4", float(i), HISTOGRAM) for i in range(layers)]
    exact = report.Layer("<exact>", "w8", None, HISTOGRAM)
    models = [
        report.ModelReport(about("w8a8", 8.1, 0.01), [exact, *noisy[::-1]], noisy),
        report.ModelReport(about("none", None, 0.0), [], None, "not measured: <reason>"),
    ]
    return report.Report("m<1>.onnx", "on words", models)


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


@pytest.mark.parametrize("span", [(0, 1), (2.3, 8.6), (-0.004, 0.31), (5, 5), (1e4, 9e5)])
def test_ticks_are_round_and_reach_around(span: tuple[float, float]) -> None:
    found = svg.ticks(*span)
    assert found[0] <= span[0] and found[-1] >= span[1] and 2 <= len(found) <= 10
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])


def test_bars_are_as_long_as_their_values() -> None:
    chart = svg.bar_chart(
        "t", [svg.Bar("a", 2.0, "2"), svg.Bar("b", 1.0, "1"), svg.Bar("c", None, "")]
    )
    (root,) = svgs(chart)
    lengths = [
        float(rect.attrib["width"]) for rect in root.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert lengths[0] == pytest.approx(2 * lengths[1]) and lengths[2] == 0


def test_labels_do_not_lie_on_one_another() -> None:
    places = sorted(svg._label_places([10.0, 11.0, 12.0, 100.0]))
    assert min(np.diff(places)) >= 13 and places[-1] == 100


def test_a_page_needs_no_other_file() -> None:
    text = report.page(example())
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import", text)
    assert set(re.findall(r"https?://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert len(svgs(text)) == 1 + 2 + 4 + 3  # the scatter; bars; histograms


def test_names_are_escaped() -> None:
    text = report.page(example())
    assert "m&lt;1&gt;.onnx" in text and "&lt;exact&gt;" in text and "&lt;reason&gt;" in text
    assert "<exact>" not in text and "<reason>" not in text


def test_samples_have_a_row_for_each_output() -> None:
    outputs = [
        {"name": name, "vectors": 3, "cosine": 0.9, "worst": 0.5, "top1": 0.8, "error": 0.1}
        for name in ("tokens", "classes")
    ]
    task = {"output": "classes", "labels": 3, "expected": 0.95, "actual": 0.85}
    model = {
        key: about("w4", 4.1, 0)[key] for key in ("file", "recipe", "bytes", "bits_per_weight")
    }
    model |= {"outputs": outputs, "task": task}
    text = report.page(report.Report("m", "", [report.ModelReport(model, [])]))
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len(rows) == 3 and "tokens" in rows[1] and "0.8500 (0.9500)" in rows[2]
    assert "0.9500" not in rows[1]


def test_the_worst_layers_come_first_and_exact_ones_last() -> None:
    layers = report.worst_first(example().models[0].weights)
    assert [layer.node for layer in layers] == ["layer0", "layer1", "layer2", "<exact>"]


def test_all_layers_are_in_a_table_where_bars_are_not() -> None:
    text = report.page(example(layers=report.WORST_LAYERS + 5))
    assert f"All {report.WORST_LAYERS + 6} layers" in text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "report.html"
    with pytest.raises(InputError, match="missing"):
        report.write_report(example(), target)
    report.write_report(example(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_activations_are_looked_at_as_they_are_rounded(digits: tuple) -> None:
    x = digits[0][:8]
    layers = activation_layers(DIGITS, "w8a4 rotate", False, {"X": x}, lambda *step: None)
    assert [layer.node for layer in layers] == ["MatMul", "MatMul1", "MatMul2"]
    assert all(5 < (layer.snr_db or 0) < 40 for layer in layers)
    assert all("rotated by" in layer.format for layer in layers)
    assert sum(layers[0].histogram["before"]) > 0


def test_activations_that_are_not_rotated_have_the_noise_of_their_scheme(digits: tuple) -> None:
    x = digits[0][:8]
    first, *_ = activation_layers(DIGITS, "w8a4", False, {"X": x}, lambda *step: None)
    scheme = parse_scheme(first.format)
    codes, scale, zero = quantize_activation(x, scheme)
    rounded = scheme.format.decode(codes, scale[:, None], zero[:, None])
    assert first.snr_db == pytest.approx(signal_to_noise(x, rounded), abs=0.01)


def test_activations_are_clipped_in_the_report_as_they_are_at_run_time(digits: tuple) -> None:
    x = digits[0][:8]
    plain, clipped = (
        activation_layers(DIGITS, f"w8a3 rotate{word}", False, {"X": x}, lambda *step: None)
        for word in ("", " clip")
    )
    assert ":c" not in plain[0].format and plain[0].format != clipped[0].format
    assert ":c" in clipped[0].format


def test_errors_of_the_other_process_come_back(digits: tuple) -> None:
    with pytest.raises(RecipeError, match="w99"):
        activation_layers(DIGITS, "w99", False, {"X": digits[0][:2]}, lambda *step: None)
