"""The table of operators is whole, and docs/operators.md is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from abqc.compiler.onnx_import.operator_table import ABSENT, operators, text
from abqc.compiler.onnx_import.refusals import REFUSALS
from abqc.compiler.onnx_import.registry import MICROSOFT, RULES, load_rules

ROOT = Path(__file__).resolve().parents[2]


def test_every_operator_of_onnx_is_lowered_expanded_or_refused_with_a_reason() -> None:
    absent = [op.name for op in operators() if op.domain != MICROSOFT and op.state == ABSENT]
    assert absent == []


def test_nothing_is_both_lowered_and_refused() -> None:
    load_rules()
    assert [key for key in REFUSALS if key in RULES] == []


def test_onnxruntime_has_no_operator_that_the_table_does_not_know() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    names = {s.name for s in state.get_all_operator_schema() if s.domain == MICROSOFT}
    load_rules()
    known = {name for domain, name in (*RULES, *REFUSALS) if domain == MICROSOFT}
    assert sorted(names - known) == []


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == text(), "run: make operators"
