"""The section of results.md that has our products beside those of other engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .markdown import number, rows_of

Record = dict[str, Any]
Records = dict[str, list[Record]]
Product = tuple[int, int, int]  # K, N, M

MICRO = 1e6
UNTRUSTED = "!"  # behind times of values that disagree
NO_GRAPH = "*"  # behind times without a graph
CUBLAS = {"W8A8": "int8"}  # what cuBLAS has at the width of the activations; others: f16


def section(records: Records) -> list[str]:
    """A table for each format, then what did not run."""
    lines = [
        "Microseconds of the product, and behind a slash with quantizing the activations where "
        "that is the engine's own work. Groups of rows with a scale stand behind its name. "
        f"{UNTRUSTED}: the values disagree with those of float; {NO_GRAPH}: without a graph. The "
        "last column is the total of the fastest of the others whose values agree, over ours: more "
        "than 1 means that ours is faster.",
        "",
    ]
    for format in formats(records):
        lines += [f"### {format}", "", *rows_of(*table(records, format)), ""]
    return [*lines, *_agreement(records), *_left_out(records)]


def formats(records: Records) -> list[str]:
    return sorted({r["format"] for r in _measured(records)})


def _measured(records: Records) -> list[Record]:
    return [r for r in records.get("peers", []) if "seconds" in r]


def label(r: Record) -> str:
    return f"{r['peer']} g{r['group']}" if r["group"] else r["peer"]


def product(r: Record) -> Product:
    return r["k"], r["n"], r["m"]


def table(records: Records, format: str) -> tuple[list[str], list[list[str]]]:
    """Its head and its rows."""
    own = [r for r in _measured(records) if r["format"] == format]
    engines = list(dict.fromkeys(label(r) for r in own))
    ours, cublas = best_of_ours(records, format), cublas_seconds(records, format)
    name = f"cuBLAS {CUBLAS.get(format, 'f16')}"
    rows = []
    for key in sorted({product(r) for r in own}):
        found = {label(r): r for r in own if product(r) == key}
        mine = ours.get(key)
        others = [r["total_seconds"] for r in found.values() if r["values_agree"]]
        ratio = min(others) / mine["total_seconds"] if others and mine else None
        rows.append(
            [
                *map(str, key),
                _both(mine, "matmul_seconds") if mine else "-",
                number(cublas.get(key), MICRO),
                *(_both(found.get(engine), "seconds") for engine in engines),
                number(ratio, 1, 2),
            ]
        )
    return ["K", "N", "M", "abqc", name, *engines, "best other / abqc"], rows


def best_of_ours(records: Records, format: str) -> dict[Product, Record]:
    """The line of the table with the smallest total, of each product."""
    lines = [r for r in records.get("table", []) if "error" not in r and r["format"] == format]
    best: dict[Product, Record] = {}
    for r in lines:
        now = best.setdefault(product(r), r)
        if r["total_seconds"] < now["total_seconds"]:
            best[product(r)] = r
    return best


def cublas_seconds(records: Records, format: str) -> dict[Product, float]:
    kind = CUBLAS.get(format, "f16")
    found = [r for r in records.get("baselines", []) if r.get("kind") == kind]
    return {product(r): r["seconds"] for r in found}


def _both(r: Record | None, alone: str) -> str:
    if r is None:
        return "-"
    text = number(r[alone], MICRO)
    if r["total_seconds"] != r[alone]:
        text += f" / {number(r['total_seconds'], MICRO)}"
    marks = UNTRUSTED * (not r.get("values_agree", True)) + NO_GRAPH * (not r.get("graph", True))
    return text + marks


def _agreement(records: Records) -> list[str]:
    own = _measured(records)
    good = [r for r in own if r["values_agree"]]
    versions = {r["peer"]: r["version"] for r in own}
    named = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    return [f"{len(good)} of {len(own)} products agree with float. {named}.", ""] if own else []


def _left_out(records: Records) -> list[str]:
    """Why others were not measured, each reason once."""
    reasons: dict[str, int] = {}
    for r in records.get("peers", []):
        why = r.get("missing") or r.get("failed") or r.get("error")
        if why and not r.get("tried", True):
            reasons[why] = reasons.get(why, 0) + 1
        elif why:
            text = f"{_who(r)}: {why}"
            reasons[text] = reasons.get(text, 0) + 1
    return list(_counted(reasons))


def _who(r: Record) -> str:
    if not r.get("format"):
        return str(r.get("peer") or r["name"])
    return f"{label(r)} {r['format']}"


def _counted(reasons: dict[str, int]) -> Iterable[str]:
    for why, count in reasons.items():
        yield f"- {why}" + (f" ({count} times)" if count > 1 else "")
