"""Writes docs/conformance.md from the results of a run: `report.py RESULTS ... --output FILE`.

Where the results are of several versions of abqc's sources, the page says so.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance import results
from conformance.cases import GROUPS, all_cases
from conformance.exclusions import EXCLUSIONS, exclusion
from conformance.results import FAILED, Row
from conformance.variants import VARIANTS

PEER = "emx-onnx-cgen"
_BAD = ("run-error", "internal", "wrong", "crash", "time-out")

_HEAD = """# Conformance

Made by `make conformance`: do not edit. The tests are those of onnx's own backend suite,
onnx {onnx}, in three forms: as they are; with all inputs but the first made constants; with the
sizes of the first input left open, each under a name of its own, and those of the outputs unknown.
Every test is compiled for the CPU in float (`--quant none`), run with all its sets of values, and
compared as onnx does: types and shapes exactly, values within the test's tolerances.

*Refused* is an error that names node, reason and remedy when compiling. *Failed* is all else: a
wrong result, an error when running, an internal error, a crash, more than a minute.
"""

_NOT_RUN = ("excluded", "not-applicable")
_MIXED = "The code changed while these tests ran; what failed was run again with its last state.\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows: dict[results.Key, Row] = {}
    for path in options.results:
        rows |= results.read(path)
    write(list(rows.values()), options.output)
    return 0


def write(rows: list[Row], output: Path) -> None:
    """The page, written whole or not at all."""
    ours = [row for row in rows if row["backend"] == "abqc"]
    sources = {row["made_with"] for row in ours if row["status"] not in _NOT_RUN}
    peer = [row for row in rows if row["backend"] == PEER]
    parts = [
        _HEAD.format(onnx=version("onnx")),
        _MIXED if len(sources) > 1 else "",
        _by_group(ours, peer),
        _shares(ours),
        _by_operator(ours, peer),
        _exclusions(),
        _not_passed(ours),
    ]
    scratch = output.with_suffix(".tmp")
    scratch.write_text("\n".join(part for part in parts if part))
    scratch.rename(output)


def _by_group(ours: list[Row], peer: list[Row]) -> str:
    lines = ["## By group"]
    sizes = Counter(case.group for case in all_cases())
    passed = Counter(row["group"] for row in peer if row["status"] == "passed")
    made_with = peer[0]["made_with"] if peer else PEER
    for variant in VARIANTS:
        found = [row for row in ours if row["variant"] == variant]
        if not found:
            continue
        peers = variant == "plain" and bool(peer)
        cells = ["tests", "passed", "refused", "failed", "excluded", "without this form"]
        lines += [f"\n{_title(variant)}\n", _row(["group", *cells, *([made_with] * peers)])]
        lines.append(_rule(1 + len(cells) + peers))
        for group in (*GROUPS, "all"):
            of_group = [row for row in found if group in ("all", row["group"])]
            count = results.count(of_group)
            tests = sum(sizes.values()) if group == "all" else sizes[group]
            values = [tests, count["passed"], count["refused"], _bad(count), count["excluded"]]
            values.append(count["not-applicable"])
            if peers:
                values.append(sum(passed.values()) if group == "all" else passed[group])
            lines.append(_row([group, *values]))
    return "\n".join(lines) + "\n"


def _title(variant: str) -> str:
    return {
        "plain": "As they are:",
        "constants": "All inputs but the first are constants:",
        "symbolic": "The sizes of the first input are open:",
    }[variant]


def _shares(ours: list[Row]) -> str:
    """Of the node tests that pass as they are, how many pass in the other forms."""
    status = {(row["variant"], row["name"]): row["status"] for row in ours if _is_node(row)}
    plain = [name for (v, name), s in status.items() if v == "plain" and s == "passed"]
    lines = []
    for variant in VARIANTS[1:]:
        known = [status.get((variant, name)) for name in plain]
        tried = [s for s in known if s not in (None, "not-applicable")]
        if tried:
            passed = tried.count("passed")
            lines.append(
                f"- {_title(variant).rstrip(':').lower()}: {passed} of {len(tried)}, "
                f"{100 * passed / len(tried):.1f} %"
            )
    if not lines:
        return ""
    return "Of the node tests that pass as they are, with this form:\n\n" + "\n".join(lines) + "\n"


def _is_node(row: Row) -> bool:
    return row["group"] == "node"


def _by_operator(ours: list[Row], peer: list[Row]) -> str:
    table: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in filter(_is_node, ours):
        table[row["operator"]][row["variant"]].append(row["status"])
    for row in filter(_is_node, peer):
        table[row["operator"]][PEER].append(row["status"])
    columns = [*VARIANTS, *([PEER] if peer else [])]
    lines = [
        "## By operator\n",
        "Node tests, expansions among them: passed of those that were not excluded.\n",
        _row(["operator", *columns]),
        _rule(1 + len(columns)),
    ]
    for operator in sorted(table, key=str.lower):
        cells = [_fraction(table[operator][column]) for column in columns]
        lines.append(_row([operator, *cells]))
    return "\n".join(lines) + "\n"


def _fraction(statuses: Iterable[str]) -> str:
    counted = [s for s in statuses if s not in ("excluded", "not-applicable")]
    return f"{counted.count('passed')} of {len(counted)}" if counted else ""


def _exclusions() -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for pattern, reason in EXCLUSIONS.items():
        reasons[reason].append(f"`{pattern}`")
    counts = Counter(exclusion(case.name) for case in all_cases())
    lines = ["## Excluded\n", _row(["reason", "tests", "names"]), _rule(3)]
    lines += [_row([r, counts[r], ", ".join(names)]) for r, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _not_passed(ours: list[Row]) -> str:
    lines = ["## Not passed\n"]
    for variant in VARIANTS:
        found = [row for row in ours if row["variant"] == variant and row["status"] in FAILED]
        if not found:
            continue
        lines += [f"\n{_title(variant)}\n", _row(["test", "what", "why"]), _rule(3)]
        for row in sorted(found, key=lambda row: (row["status"], row["name"])):
            why = (row.get("message") or "")[:160].replace("|", "\\|")
            lines.append(_row([row["name"], row["status"], why]))
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def _bad(count: Counter[str]) -> int:
    return sum(count[status] for status in _BAD)


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _rule(columns: int) -> str:
    return _row(["---"] * columns)


if __name__ == "__main__":
    raise SystemExit(main())
