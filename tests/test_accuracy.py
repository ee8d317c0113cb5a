"""The scripts of the accuracy table: texts, models, figures, page. Nothing is fetched here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from abqc.compiler.evaluation.metrics import WindowLikelihood
from abqc.compiler.read_recipe import parse_recipe
from accuracy import lines, make_gguf, make_models, make_tokens, page, results, texts
from accuracy.rows import ROWS, Row
from accuracy.subjects import SUBJECTS, likelihood_figures
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

WINDOWS = [WindowLikelihood(4, 3.0, 3.0 + d, 0.1, 0.75) for d in (0.1, 0.3)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABQC_TEST_CACHE", str(tmp_path))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "measured")
    return tmp_path


def test_paragraphs_are_plain_and_long() -> None:
    long = "word &amp; " * 12
    page_text = (
        f"<head><p>{long}</p></head><p class='x'>{long}<b>bold</b></p>"
        f'<pre>{long}</pre><p>short</p><div class="para">{long}</div>'
    )
    flat = "word & " * 12
    assert texts.html_paragraphs(page_text) == [flat + "bold", flat.strip()]


def test_dictionaries_lose_headwords_and_braces() -> None:
    body = "    " + "text {with reference} " * 5
    assert texts.dictionary_paragraphs(f"headword\n\n{body}\n\n    short") == [
        ("text with reference " * 5).strip()
    ]


def test_sentences_are_whole_and_unlike() -> None:
    texts.folder().mkdir()
    text = (
        "One two three four five six. Too short. One two three four five six. No end here we go on"
    )
    (texts.folder() / "handbook.txt").write_text(
        f"{text}\n\nSeven is a word of five letters, no?\n"
    )
    assert texts.sentences("handbook", 2) == [
        "One two three four five six.",
        "Seven is a word of five letters, no?",
    ]
    with pytest.raises(texts.Unavailable, match="has 2 sentences, 3 are needed"):
        texts.sentences("handbook", 3)


def test_windows_are_spread_over_a_text() -> None:
    assert make_tokens.spread(np.arange(10), 3).tolist() == [0, 3, 6]


def rms_norm(x: str, gain: str, name: str) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Mul", [x, x], [f"{name}.square"])
    yield helper.make_node("ReduceMean", [f"{name}.square", "axis"], [f"{name}.mean"])
    yield helper.make_node("Add", [f"{name}.mean", "epsilon"], [f"{name}.sum"])
    yield helper.make_node("Sqrt", [f"{name}.sum"], [f"{name}.root"])
    yield helper.make_node("Div", [x, f"{name}.root"], [f"{name}.scaled"])
    yield helper.make_node("Mul", [f"{name}.scaled", gain], [name])


def small_decoder(width: int = 8, inner: int = 12, vocabulary: int = 20) -> onnx.ModelProto:
    """A layer with the names of models/export_smollm2.py; its attention is o_proj(q_proj(x))."""
    rng = np.random.default_rng(0)
    constants = {
        "embed_tokens.weight": rng.normal(size=(vocabulary, width)),
        "layers.0.input_layernorm.weight": rng.uniform(0.5, 2, width),
        "layers.0.post_attention_layernorm.weight": rng.uniform(0.5, 2, width),
        "norm.weight": rng.uniform(0.5, 2, width),
        "epsilon": np.array(1e-5),
        **{n: rng.normal(size=(width, width)) for n in ("q", "o")},
        **{n: rng.normal(size=(width, inner)) for n in ("gate", "up")},
        "down": rng.normal(size=(inner, width)),
    }

    def product(name: str, x: str, weight: str) -> onnx.NodeProto:
        return helper.make_node(
            "MatMul", [x, weight], [weight + ".y"], name=f"layers.0.{name}_proj"
        )

    nodes = [
        helper.make_node("Gather", ["embed_tokens.weight", "input_ids"], ["x0"]),
        *rms_norm("x0", "layers.0.input_layernorm.weight", "n0"),
        product("self_attn.q", "n0", "q"),
        product("self_attn.o", "q.y", "o"),
        helper.make_node("Add", ["x0", "o.y"], ["x1"]),
        *rms_norm("x1", "layers.0.post_attention_layernorm.weight", "n1"),
        product("mlp.gate", "n1", "gate"),
        product("mlp.up", "n1", "up"),
        helper.make_node("Mul", ["gate.y", "up.y"], ["inner"]),
        product("mlp.down", "inner", "down"),
        helper.make_node("Add", ["x1", "down.y"], ["x2"]),
        *rms_norm("x2", "norm.weight", "n2"),
        helper.make_node("Transpose", ["embed_tokens.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["n2", "t"], ["logits"], name="lm_head"),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "seq", vocabulary])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()]
        + [numpy_helper.from_array(np.array([-1], np.int64), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_off_the_grid_the_model_is_the_same() -> None:
    ids = {"input_ids": np.arange(7)[None]}
    model = small_decoder()
    (expected,) = ReferenceEvaluator(model).run(None, ids)
    turned = make_models.take_off_grid(small_decoder())
    (actual,) = ReferenceEvaluator(turned).run(None, ids)
    assert np.abs(expected - actual).max() < 1e-4 * np.ptp(expected)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in turned.graph.initializer}
    assert all(np.all(after[name] == 1) for name in after if name.endswith("norm.weight"))
    assert all(not np.allclose(before[n], after[n]) for n in ("q", "o", "gate", "up", "down"))


def test_orthogonal_matrices_are() -> None:
    q = make_models.orthogonal(9, seed=1)
    assert np.allclose(q @ q.T, np.eye(9))
    assert not np.allclose(q, make_models.orthogonal(9, seed=2))


def test_halves_become_pairs() -> None:
    rows = np.arange(8.0)[:, None] * np.ones((1, 3))
    assert make_gguf.interleave_halves(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "ab", 2), ("kitten", "sitting", 3), ("x", "x", 0)]
)
def test_edit_distance(a: str, b: str, edits: int) -> None:
    assert lines.edit_distance(a, b) == lines.edit_distance(b, a) == edits


def test_reading_merges_repeats_and_drops_blanks() -> None:
    scores = np.eye(4)[[1, 1, 0, 1, 2, 2, 3, 0]]
    assert lines.read(scores, ["", "a", "b", " "]) == "aab "


def test_rows_have_names_of_their_own_and_known_models() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.model for row in ROWS} <= SUBJECTS.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_recipes_of_rows_are_recipes(row: Row) -> None:
    assert parse_recipe(row.recipe).rules


def test_a_result_counts_for_what_it_was_made_of() -> None:
    row = Row("r", "smollm2", "w4a8")
    assert results.load("r", row.made_of) is None
    results.save("r", row.made_of, {"bits": 4.0})
    assert results.load("r", row.made_of) == results.read("r")
    assert results.load("r", Row("r", "smollm2", "w3a8").made_of) is None
    assert results.load("r", Row("r", "smollm2", "w4a8", bar="1").made_of) is not None


def test_the_page_holds_rows_and_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "accuracy.md")
    row = next(row for row in ROWS if row.name == "w4g128")
    about = {"bits": 4.13, "compile_seconds": 61.0}
    figures = likelihood_figures(WINDOWS)
    results.save(row.name, row.made_of, about | figures)
    peer = {"engine": "llama.cpp", "format": "Q4_0", "types": "Q4_0 106 M", "bits": 4.5}
    results.save("peer-llama-Q4_0", {}, peer | figures)
    text = page.write().read_text("utf-8")
    assert "| `w4:g128 a8 gptq` | yes | 4.13 | +0.2000 ± 0.1000 | 0.12 |" in text
    assert "| llama.cpp | Q4_0 | Q4_0 106 M | 4.50 | +0.2000 ± 0.1000 |" in text
    assert page.summary(about | figures).startswith("4.130 bits a weight, dNLL +0.2000")
