"""Results of the accuracy table: a JSON file a row in the cache, so that nothing runs twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accuracy.texts import folder


def path_of(name: str) -> Path:
    return folder() / "results" / f"{name}.json"


def read(name: str) -> dict[str, Any] | None:
    """The result of a row, whatever it was made of; None where there is none."""
    path = path_of(name)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def load(name: str, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a row, or None where there is none of the same `made_of`."""
    result = read(name)
    return result if result is not None and result["made_of"] == made_of else None


def save(name: str, made_of: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Write a result; the file appears whole or not at all."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"made_of": made_of} | figures
    made = path.with_suffix(".tmp")
    made.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    made.replace(path)
    return result
