"""The page of a GPU's results and its plots."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))
import page
from line_plot import Series, lines

SCRIPT = Path(__file__).parent / "bench" / "gpu" / "page.py"


def table_line(format: str, m: int, seconds: float) -> dict[str, Any]:
    product = {"k": 4096, "n": 4096, "m": m, "format": format}
    return {**product, "matmul_seconds": seconds, "total_seconds": seconds}


@pytest.fixture
def data() -> dict[str, Any]:
    cublas = {"kind": "f16", "k": 4096, "n": 4096}
    peer = {"peer": "X", "group": 0, "version": "1", "values_agree": True, "graph": True}
    records = {
        "table": [
            table_line("W4A8", 1, 4e-6),
            table_line("W4A8", 1, 5e-6),
            table_line("W2A8", 1, 2e-6),
            table_line("W4A8", 256, 4e-5),
            {"error": "no answer", "name": "x"},
        ],
        "baselines": [
            cublas | {"m": 1, "seconds": 8e-6},
            cublas | {"m": 256, "seconds": 2e-5},
            cublas | {"m": 4, "missing": "x", "kind": "none"},
        ],
        "peers": [
            peer | table_line("W4A8", m, s) | {"seconds": s} for m, s in ((1, 6e-6), (256, 3e-5))
        ],
        "models": [{"name": "m", "host_seconds": 1e-3}, {"name": "n", "error": "x"}],
    }
    bar = {"what": "a bar", "limit": 0.5, "measured": None, "verdict": "not measured"}
    machine = {"device": "NVIDIA X", "date": "2026-11-29"}
    return {"machine": machine, "bars": [bar], "failures": [], "unreached": [], "records": records}


def test_a_page_says_what_was_measured(data: dict[str, Any]):
    text, plots = page.page(data, "x")
    assert text.startswith("# NVIDIA X\n") and "- date: 2026-11-29" in text
    assert "| a bar | 0.5 | - | not measured |" in text
    assert "| 4096 | 4096 | 8.0 | 4.0 (2.00) | 2.0 (4.00) |" in text  # the better of two lines
    assert "| 256 | 20.0 | - | 40.0 (0.50) | - |" in text
    assert "| m | 1000.0 | - | - | - |" in text
    assert set(plots) == {"x-latency-bits", "x-rows-4096-4096", "x-peers-W4A8"}
    for name, svg in plots.items():
        assert f"]({name}.svg)" in text
        ElementTree.fromstring(svg)


def test_a_run_without_a_table_has_a_page(data: dict[str, Any]):
    data["records"] = {"rates": []}
    data["unreached"] = ["9 items of table"]
    text, plots = page.page(data, "x")
    assert plots == {} and "Not reached: 9 items of table." in text


def test_pages_are_written(data: dict[str, Any], tmp_path: Path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(data))
    command = [sys.executable, SCRIPT, results, "--name", "x", "--output", tmp_path / "out"]
    subprocess.run(command, check=True)
    assert (tmp_path / "out" / "x.md").exists() and (
        tmp_path / "out" / "x-rows-4096-4096.svg"
    ).exists()


def test_lines_lie_between_round_numbers():
    """Both ends of a line of one decade are at the marks 1 and 10."""
    svg = lines("t", "x", "y", [Series("a", [(1, 1.0), (10, 10.0)]), Series("b", [(1, 2.0)], True)])
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    first, second = root.findall(f"{space}polyline")
    assert first.get("points") == "70.0,356.0 670.0,34.0"
    assert second.get("stroke-dasharray") and not first.get("stroke-dasharray")
    texts = [text.text for text in root.findall(f"{space}text")]
    assert {"1", "2", "5", "10", "a", "b"} <= set(texts)
