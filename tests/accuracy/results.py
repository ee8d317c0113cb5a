"""Results of the accuracy table: a JSON file a row, kept beside this file.

They are part of the repository: a row takes minutes to an hour, and what one machine has measured
need not be measured by the next.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "measured"


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def all_of(pattern: str) -> list[dict[str, Any]]:
    """The results whose names match `pattern`, in the order of their names."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob(f"{pattern}.json"))]


def read(name: str) -> dict[str, Any] | None:
    """The result of a row, whatever it was made of; None where there is none."""
    path = path_of(name)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def load(name: str, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a row, or None where there is none of the same `made_of`."""
    result = read(name)
    return result if result is not None and result["made_of"] == made_of else None


def save(name: str, made_of: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Write a result with the day and the CPU; the file appears whole or not at all."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cpu": _cpu()}
    result = {"made_of": made_of} | where | figures
    made = path.with_suffix(".tmp")
    made.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    made.replace(path)
    return result


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
