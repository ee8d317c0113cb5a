"""The results of a run: lines of JSON in a file, and their counts.

A line is {"backend", "variant", "group", "name", "operator", "status", ...}; a later line about the
same test replaces an earlier one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, str]

# From good to bad; all but the last three say what a user can act on.
STATUSES = (
    "passed", "excluded", "not-applicable", "refused", "run-error", "internal", "wrong", "crash",
    "time-out",
)  # fmt: skip
FAILED = frozenset(STATUSES) - {"passed", "excluded", "not-applicable"}


def key(row: Row) -> Key:
    return row["backend"], row["variant"], row["group"], row["name"]


def read(path: Path) -> dict[Key, Row]:
    """The latest line about each test; a last line that was cut off is left out."""
    if not path.exists():
        return {}
    rows = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[key(row)] = row
    return rows


def append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def count(rows: Iterable[Row]) -> Counter[str]:
    return Counter(row["status"] for row in rows)


def line(row: Row) -> str:
    """One line about one test."""
    message = row.get("message") or ""
    variant = "" if row["variant"] == "plain" else f" [{row['variant']}]"
    return f"{row['status']:9} {row['seconds']:6.1f} s  {row['name']}{variant}  {message[:220]}"


def summary(rows: Iterable[Row]) -> str:
    """Counts by group and variant, then the operators that failed, the worst first."""
    rows = list(rows)
    lines = []
    for backend, variant, group in sorted({key(row)[:3] for row in rows}):
        counts = count(row for row in rows if key(row)[:3] == (backend, variant, group))
        parts = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        lines.append(f"{backend} {variant} {group}: {parts}")
    failed = Counter((row["operator"], row["status"]) for row in rows if row["status"] in FAILED)
    lines += [f"{n:5} {status:9} {op}" for (op, status), n in failed.most_common(40)]
    return "\n".join(lines)
