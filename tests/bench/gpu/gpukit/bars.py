"""What the results are held against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .baselines import KINDS
from .kit import Kit
from .parts import Record
from .rates import COPY_DRIVER, COPY_KERNEL, INSTRUCTION

Records = dict[str, list[Record]]

# (K, N) of each group of bars, formats and limits.
STREAMING = ((8192, 28672), {"W4A16": 0.7, "W2A8": 0.55, "W1A8": 0.4})
FASTER = ((8192, 8192), {"W4A16": 2.5, "W2A8": 3.5, "W1A8": 4.5})
MANY_ROWS, OF_RATE = 4096, 0.5


def needs(f: dict[str, Any], format: str) -> bool:
    """Whether a line of the table, by its features, is part of a bar."""
    shape, rows = (f["k"], f["n"]), f["m"]
    if rows == MANY_ROWS:
        return True
    return rows == 1 and any(
        shape == wanted and format in limits for wanted, limits in (STREAMING, FASTER)
    )


def first_items(kit: Kit) -> dict[str, int]:
    """How many items of `check`, `table` and `baselines`, which come first in them, are for bars:
    lines of the table, their kernels and their shapes."""
    lines = [job for job in kit.table if needs(job.features, job.format)]
    shapes = {(f["m"], f["n"], f["k"]) for f in (job.features for job in lines)}
    kernels = {name for job in lines for name in job.launches.kernels}
    checks = [i for i, case in enumerate(kit.cases) if kernels & set(case.launches.kernels)]
    return {
        "check": max(checks, default=-1) + 1,
        "table": len(lines),
        "baselines": len(KINDS) * len(shapes),
    }


@dataclass(frozen=True)
class Bar:
    """`measured` None: not measured."""

    what: str
    limit: float
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured >= self.limit else "not met"

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def judge(records: Records) -> list[Bar]:
    """A line for each bar, of the best schedule of its format where the bar is about speed. Kernels
    that a check found wrong, or that have no check that went well, meet none."""
    records = records | {"table": _trusted(records)}
    return [*_streaming(records), *_faster(records), *_many_rows(records)]


def _trusted(records: Records) -> list[Record]:
    """Lines of the table of kernels that were checked and are right; all where nothing was checked,
    as with `--only table`."""
    checks = records.get("check", [])
    right = {k for r in checks if not r.get("error") and not r.get("wrong") for k in r["kernels"]}
    wrong = {k for r in checks if r.get("wrong") for k in r["kernels"]}
    lines = records.get("table", [])
    if not checks:
        return lines
    return [r for r in lines if right - wrong >= set(r.get("kernels", []))]


def _good(records: Records, part: str) -> list[Record]:
    return [r for r in records.get(part, []) if "error" not in r and "missing" not in r]


def _of(records: Records, k: int, n: int, m: int, **wanted: str) -> list[Record]:
    return [
        r
        for r in _good(records, "table")
        if (r["k"], r["n"], r["m"]) == (k, n, m) and all(r[key] == v for key, v in wanted.items())
    ]


def _best(values: list[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _streaming(records: Records) -> list[Bar]:
    (k, n), limits = STREAMING
    return [
        Bar(
            f"M=1 ({k},{n}) {format}: weight bytes/s over copied bandwidth",
            limit,
            _best([bandwidth_share(records, r) for r in _of(records, k, n, 1, format=format)]),
        )
        for format, limit in limits.items()
    ]


def _faster(records: Records) -> list[Bar]:
    (k, n), limits = FASTER
    return [
        Bar(
            f"M=1 ({k},{n}) {format}: times faster than cuBLAS f16, packing counted",
            limit,
            _best([speed_over(records, r, "f16") for r in _of(records, k, n, 1, format=format)]),
        )
        for format, limit in limits.items()
    ]


def _many_rows(records: Records) -> list[Bar]:
    """For each strategy and format the worst shape, by its best schedule."""
    many = [r for r in _good(records, "table") if r["m"] == MANY_ROWS]
    pairs = sorted({(r["strategy"], r["format"]) for r in many})
    bars = []
    for strategy, format in pairs:
        own = [r for r in many if (r["strategy"], r["format"]) == (strategy, format)]
        shapes = {(r["k"], r["n"]) for r in own}
        best = [
            _best([rate_share(records, r) for r in own if (r["k"], r["n"]) == shape])
            for shape in shapes
        ]
        known = [value for value in best if value is not None]
        what = f"M={MANY_ROWS} {strategy} {format}: operations/s over the instruction's rate"
        bars.append(Bar(what, OF_RATE, min(known, default=None)))
    return bars or [Bar(f"M={MANY_ROWS}, each strategy, over its rate", OF_RATE, None)]


def bandwidth_share(records: Records, r: Record) -> float | None:
    """Weight bytes a second over the better of both copied bandwidths."""
    names = (COPY_KERNEL, COPY_DRIVER)
    found = [c["bytes_per_second"] for c in _good(records, "rates") if c["name"] in names]
    return r["weight_bytes_per_second"] / max(found) if found else None


def rate_share(records: Records, r: Record) -> float | None:
    """Operations a second over the measured rate of the instruction; None on CUDA cores."""
    rates = {c["name"]: c.get("operations_per_second") for c in _good(records, "rates")}
    shares = [
        per_second / rates[INSTRUCTION[unit]]
        for unit, per_second in r["operations_per_second"].items()
        if rates.get(INSTRUCTION[unit])
    ]
    return max(shares, default=None)


def speed_over(records: Records, r: Record, kind: str) -> float | None:
    """cuBLAS's seconds over ours, packing counted."""
    shape = (r["m"], r["n"], r["k"])
    for peer in _good(records, "baselines"):
        if peer["kind"] == kind and (peer["m"], peer["n"], peer["k"]) == shape:
            return peer["seconds"] / r["total_seconds"]
    return None
