"""The page of the zoo says what failed, and why what is not within its tolerance is right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from zoo.check import Comparison
from zoo.entry import Entry, Source
from zoo.report import page, read, reason
from zoo.run import Outcome


def outcome(
    quant: str, state: str = "ok", why: str = "", cosine: float = 1.0, reason: str = ""
) -> Outcome:
    runs = [asdict(Comparison({}, error=2e-6, cosine=cosine))]
    return Outcome("m", quant, state, why, seconds=1.5, bytes=2_000_000, runs=runs, reason=reason)


def test_the_last_line_of_a_model_and_a_recipe_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [outcome("none", "run", "died"), outcome("none"), outcome("w8a8")]
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    assert {key: found.state for key, found in read([path]).items()} == {
        ("m", "none"): "ok",
        ("m", "w8a8"): "ok",
    }


def test_figures_and_reasons() -> None:
    entry = Entry("m", Source("", ""), "a model", "MIT")
    outcomes = {
        ("m", "none"): outcome("none"),
        ("m", "w8a8"): outcome("w8a8", why="the rounding loses it", cosine=0.5, reason="recipe"),
        ("m", "w4a8"): outcome("w4a8", "disagrees", "cosine 0.100", cosine=0.1),
    }
    text = page([entry], outcomes)
    assert "| m | a model | 2.0e-06 | 0.5000 recipe | 0.1000 fails | 1.5 | 2.00 |" in text
    assert "- m, w8a8: the rounding loses it" in text
    assert "| w4a8 | 1 | 0 | 0 | 1 |" in text


def test_lines_without_a_field_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = asdict(outcome("none"))
    del line["reason"]
    path.write_text(json.dumps(line) + "\n")
    assert read([path]) == {}


def test_an_outcome_has_its_reason() -> None:
    assert reason(outcome("w8a8", "empty", "RecipeError: ...")) == "empty"
    assert reason(outcome("w8a8", "disagrees", "cosine 0.1")) == "fails"
    assert reason(outcome("none", why="noise", reason="noise")) == "noise"
    assert reason(outcome("w8a8")) == ""
