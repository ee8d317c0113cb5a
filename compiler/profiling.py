"""Where a model's time goes on a CPU, by node and by kernel, beside what the machine allows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import MatmulFeatures
from abqc.dialects.formats import FLOAT_BYTES, Float
from abqc.dialects.schemes import parse_scheme
from abqc.errors import AbqcError
from abqc.runtime.profile import Profile

MIN_RUNS = 5


@dataclass(frozen=True)
class Row:
    """What a node or a kernel takes in a run: launches and seconds (the median of the runs).

    `parts` are the kernels of a node, the nodes of a kernel. `bytes` of weights are read; None for
    rows of a table. `operations` are those of products and convolutions with weights, a
    multiply-add is two. `limit` is how long these take on the machine that the cost model
    describes: the longer of the arithmetic and of reading the weights; None where nothing is known.
    """

    name: str
    parts: tuple[str, ...]
    calls: int
    seconds: float
    bytes: int | None = 0
    operations: int = 0
    limit: float | None = None

    def __add__(self, other: Row) -> Row:
        unknown = self.bytes is None or other.bytes is None
        limits = [r.limit for r in (self, other) if r.limit is not None]
        return Row(
            self.name,
            tuple(dict.fromkeys((*self.parts, *other.parts))),
            self.calls + other.calls,
            self.seconds + other.seconds,
            None if unknown else (self.bytes or 0) + (other.bytes or 0),
            self.operations + other.operations,
            sum(limits) if limits else None,
        )


@dataclass(frozen=True)
class Breakdown:
    """Medians of runs: `seconds` of a whole run, `outside` of what is in no launch; and rows, the
    longest first."""

    runs: int
    seconds: float
    outside: float
    machine: str
    nodes: list[Row]
    kernels: list[Row]

    @property
    def accounted(self) -> float:
        """What the rows and `outside` add up to: unlike `seconds`, without what disturbed runs."""
        return self.outside + sum(row.seconds for row in self.nodes)

    def as_dict(self) -> dict[str, Any]:
        def rows(of: list[Row]) -> list[dict[str, Any]]:
            return [vars(row) for row in of]

        return {
            "runs": self.runs,
            "seconds": self.seconds,
            "outside": self.outside,
            "machine": self.machine,
            "nodes": rows(self.nodes),
            "kernels": rows(self.kernels),
        }


def profile_runs(
    run: Callable[[Profile], object], budget: float
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """The launches of each run for about `budget` seconds, at least MIN_RUNS after one that does
    not count; and when each run began and ended (`time.monotonic_ns`). AbqcError where a run has
    more launches than can be noted."""
    profile = Profile()
    run(profile)
    launches: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    started = time.monotonic()
    while len(spans) < MIN_RUNS or time.monotonic() - started < budget:
        begin = time.monotonic_ns()
        run(profile)
        spans.append((begin, time.monotonic_ns()))
        launches.append(profile.launches)
        if profile.missing:
            raise AbqcError(
                f"a run has {profile.missing} launches more than are noted",
                hint="profile it with smaller inputs",
            )
    return launches, spans


def break_down(
    manifest: Mapping[str, Any],
    launches: list[np.ndarray],
    spans: list[tuple[int, int]],
    *,
    isa: str,
    threads: int,
) -> Breakdown:
    """The rows of runs that all had the same inputs."""
    table = manifest["launches"]
    count = len(table)
    took = [
        np.bincount(x["launch"], (x["end"] - x["begin"]) * 1e-9, minlength=count) for x in launches
    ]
    calls = np.bincount(launches[0]["launch"], minlength=count)
    rows = np.zeros(count, np.int64)
    rows[launches[0]["launch"]] = launches[0]["rows"]
    seconds = np.median(took, axis=0)
    limits = _Limits(manifest, isa, threads)
    every = [
        limits.row(table[i], int(calls[i]), float(seconds[i]), int(rows[i]))
        for i in np.flatnonzero(calls)
    ]
    whole = [(end - begin) * 1e-9 for begin, end in spans]
    return Breakdown(
        runs=len(spans),
        seconds=float(np.median(whole)),
        outside=float(np.median([w - t.sum() for w, t in zip(whole, took, strict=True)])),
        machine=limits.machine,
        nodes=_added(every),
        kernels=_added(replace(row, name=row.parts[0], parts=(row.name,)) for row in every),
    )


def _added(rows: Iterable[Row]) -> list[Row]:
    """Rows of one name become one; the longest first."""
    groups: dict[str, Row] = {}
    for row in rows:
        groups[row.name] = groups[row.name] + row if row.name in groups else row
    return sorted(groups.values(), key=lambda row: -row.seconds)


def alike(nodes: Iterable[Row]) -> list[Row]:
    """Nodes whose names differ in numbers alone and that have the same kernels as one row, such as
    `layers.*.up_proj (30)`; the longest first."""
    groups: dict[object, list[Row]] = {}
    for row in nodes:
        groups.setdefault((pattern(row.name), row.parts), []).append(row)
    rows = []
    for group in groups.values():
        whole = group[0]
        for row in group[1:]:
            whole += row
        name = f"{pattern(whole.name)} ({len(group)})" if len(group) > 1 else whole.name
        rows.append(replace(whole, name=name))
    return sorted(rows, key=lambda row: -row.seconds)


def pattern(name: str) -> str:
    """A name with stars for its numbers."""
    return re.sub(r"\d+", "*", name)


class _Limits:
    """What the described CPU could do at best."""

    def __init__(self, manifest: Mapping[str, Any], isa: str, threads: int) -> None:
        self._model = AnalyticModel()
        self.machine = self._model.machine
        listed = [*manifest["ops"], *manifest["float"]]
        self._products = {op["symbol"]: op for op in listed if "symbol" in op}
        self._working_set = manifest["bytes"]["weights"]
        # What tiles do beyond avx512 is not described.
        self._isa = "avx512" if isa == "amx" else isa
        self._threads = threads

    def row(self, entry: Mapping[str, Any], calls: int, seconds: float, rows: int) -> Row:
        """The row of one launch as that of its node, called `calls` times with products of `rows`
        rows."""
        name, parts, size = entry["node"] or "(no node)", (entry["kernel"],), entry["bytes"]
        total = None if size is None else calls * size
        products = [self._products[w] for w in entry["weights"] if w in self._products]
        if products and rows:
            operations = 2 * calls * rows * sum(product["n"] * product["k"] for product in products)
            limits = [self._limit(product, rows) for product in products]
            known = [limit for limit in limits if limit is not None]
            best = calls * sum(known) if len(known) == len(limits) else None
            return Row(name, parts, calls, seconds, total, operations, best)
        return Row(name, parts, calls, seconds, total)

    def _limit(self, product: Mapping[str, Any], rows: int) -> float | None:
        weight, activation = _scheme(product["weight"]), _scheme(product["activation"])
        features = MatmulFeatures(
            strategy=product["strategy"],
            m=rows,
            n=product["n"],
            k=product["k"],
            weight_bits=weight.bits if weight else _float_bits(product["weight"]),
            activation_bits=activation.bits if activation else _float_bits(product["activation"]),
            weight_bytes=product["bytes"],
            groups=weight.n_groups(product["k"]) if weight else 1,
            isa=self._isa,
            threads=self._threads,
            working_set=self._working_set,
        )
        try:
            estimate = self._model.estimate(features)
        except AbqcError:
            return None  # a strategy or an instruction set that is not described
        return max(estimate.compute, estimate.memory)


def _float_bits(text: str) -> int:
    """Of an operand that is float; f32 where another is not named."""
    return 8 * FLOAT_BYTES[cast(Float, text)] if text in FLOAT_BYTES else 32


def _scheme(text: str) -> Any:
    """A format of codes; None where the operand is float."""
    try:
        return parse_scheme(text)
    except (AbqcError, ValueError):
        return None


def trace(
    manifest: Mapping[str, Any], launches: list[np.ndarray], spans: list[tuple[int, int]]
) -> str:
    """Runs in Chrome's trace format, which chrome://tracing and Perfetto show: JSON.

    Times are microseconds from the first run's begin; an event is a run, or a launch in it, named
    by its node.
    """
    table = manifest["launches"]
    events: list[dict[str, Any]] = []
    zero = spans[0][0]
    for number, (records, (begin, end)) in enumerate(zip(launches, spans, strict=True)):
        events.append(_event(f"run {number}", "run", begin - zero, end - begin, {}))
        for record in records:
            entry = table[record["launch"]]
            about = {"kernel": entry["kernel"], "rows": int(record["rows"])}
            at, length = int(record["begin"]) - zero, int(record["end"] - record["begin"])
            events.append(_event(entry["node"] or entry["kernel"], "launch", at, length, about))
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _event(name: str, kind: str, at: int, length: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """A complete event; times in nanoseconds."""
    return {
        "name": name, "cat": kind, "ph": "X", "pid": 0, "tid": 0,
        "ts": at / 1e3, "dur": length / 1e3, "args": dict(about),
    }  # fmt: skip
