"""What was measured, as results.json, results.md and samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abqc.costmodel import samples
from abqc.costmodel.interface import KernelFeatures, Sample

from . import bars, peer_report
from .kit import Kit
from .markdown import number, rows_of
from .parts import PARTS, Record
from .rates import COPY_KERNEL

Records = dict[str, list[Record]]
MOST_FAILURES = 20  # in the summary
SUMMARY = ("rates", "probes", "check", "operators", "attention", "models")
SECTIONS = (*SUMMARY, "table", "peers", "launches", "sanitizer")


def failures(records: Records) -> list[str]:
    """What failed or gave wrong results, a line each; not what other engines did not manage."""
    lines = []
    for name, items in records.items():
        if name == "peers":
            continue
        untried: dict[str, int] = {}
        for r in items:
            why = r.get("error") or r.get("wrong") or ""
            if r.get("values_agree") is False:
                why = "the values are not those expected; do not trust this rate"
            if not r.get("tried", True):
                untried[why] = untried.get(why, 0) + 1
            elif why:
                lines.append(f"{name}: {r['name']}: {why}")
        lines += [f"{name}: {count} items {why}" for why, count in untried.items()]
    return lines


def write(kit: Kit, machine: dict[str, Any], records: Records, results: Path) -> None:
    """All three files, anew."""
    measured = bars.judge(records)
    data = {
        "machine": machine,
        "bars": [bar.as_json() for bar in measured],
        "failures": failures(records),
        "unreached": unreached(kit, records),
        "records": records,
    }
    _replace(results / "results.json", json.dumps(data, indent=1))
    _replace(results / "results.md", _markdown(kit, machine, records, measured))
    _replace(results / "samples.jsonl", samples.to_text(_samples(machine, records)))


def _replace(path: Path, text: str) -> None:
    """Never half a file, whenever the run is cut off."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _samples(machine: dict[str, Any], records: Records) -> list[Sample]:
    return [
        Sample(
            KernelFeatures(**r["features"]),
            r["matmul_seconds"],
            machine["device"],
            machine["driver"],
            machine["date"],
            r["repetitions"],
        )
        for r in records.get("table", [])
        if "error" not in r
    ]


def summary(kit: Kit, machine: dict[str, Any], records: Records) -> str:
    """results.md without the long tables: a screen or three."""
    failed = failures(records)
    lines = _head(kit, machine, records, bars.judge(records), failed[:MOST_FAILURES])
    if len(failed) > MOST_FAILURES:
        lines += [f"- and {len(failed) - MOST_FAILURES} more"]
    lines += _sections(records, SUMMARY)
    return "\n".join([*lines, "", "All is in results.md and results.json."])


def _markdown(kit: Kit, machine: dict[str, Any], records: Records, measured: list[bars.Bar]) -> str:
    lines = _head(kit, machine, records, measured, failures(records))
    lines += _sections(records, (*SECTIONS,))
    return "\n".join(lines) + "\n"


def _head(
    kit: Kit,
    machine: dict[str, Any],
    records: Records,
    measured: list[bars.Bar],
    failed: list[str],
) -> list[str]:
    lines = ["# Kernels on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items() if key != "kit"]
    lines += [f"- kit: {kit.target}, built {kit.date}"]
    lines += [f"- note: {note}" for note in kit.notes]
    lines += [f"- not reached: {text}" for text in unreached(kit, records)]
    lines += ["", "## Bars", "", *rows_of(["what", "bar", "measured", ""], map(_bar, measured))]
    lines += ["", "## Failures", ""]
    return lines + ([f"- {text}" for text in failed] or ["None in what ran."])


def unreached(kit: Kit, records: Records) -> list[str]:
    """How many items of which parts had no time."""
    missing = {
        name: len(PARTS[name].names(kit)) - len(items)
        for name, items in records.items()
        if name in PARTS
    }
    return [f"{count} items of {name}" for name, count in missing.items() if count]


def _sections(records: Records, names: tuple[str, ...]) -> list[str]:
    made: dict[str, tuple[str, Callable[[], list[str]]]] = {
        "rates": ("Rates", lambda: _rates(records["rates"])),
        "check": ("Checks", lambda: [_check(records["check"])]),
        "probes": ("The GPU", lambda: _probes(records["probes"])),
        "launches": ("Launches", lambda: _launches(records["launches"])),
        "sanitizer": ("compute-sanitizer", lambda: [_sanitizer(records["sanitizer"])]),
        "operators": ("Operators", lambda: [_operators(records["operators"])]),
        "attention": ("Attention", lambda: _attention(records)),
        "table": ("Matmuls", lambda: _table(records)),
        "peers": ("Other engines", lambda: peer_report.section(records)),
        "models": ("Models", lambda: _models(records["models"])),
    }
    lines = []
    for name in names:
        if name in records:
            title, section = made[name]
            lines += ["", f"## {title}", "", *section()]
    return lines


def _bar(bar: bars.Bar) -> list[str]:
    value = "-" if bar.measured is None else f"{bar.measured:.2f}"
    return [bar.what, f"{bar.limit:g}", value, bar.verdict]


def _exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _rates(items: list[Record]) -> list[str]:
    copies = [r for r in items if "bytes_per_second" in r]
    lines = [
        f"{r['name']}: {r['bytes_per_second'] / 1e12:.3f} TB/s read and written, "
        f"{r['bytes'] / 1e9:.2f} GB."
        for r in copies
    ]
    rows = [
        [
            r["name"],
            number(r.get("operations_per_second"), 1e-12),
            {True: "yes", False: "NO"}.get(r.get("values_agree"), "-"),
        ]
        for r in items
        if r not in copies and COPY_KERNEL not in r["name"]
    ]
    return [*lines, "", *rows_of(["instruction", "10^12 operations/s", "values agree"], rows)]


def _check(items: list[Record]) -> str:
    good = [r for r in items if not r.get("error") and not r.get("wrong")]
    kernels = {name for r in good for name in r["kernels"]}
    compiled = {name for r in items for name in r.get("from_ptx", [])}
    note = f" The driver read no cubin of {len(compiled)}: it compiled PTX." if compiled else ""
    return f"{len(good)} of {len(items)} cases agree, of {len(kernels)} kernels.{note}"


_UNITS = {"Hz": (1e-9, "GHz"), "s": (1e6, "us"), "B/s": (1e-12, "TB/s")}


def _probes(items: list[Record]) -> list[str]:
    lines = []
    for r in items:
        if "error" not in r:
            scale, unit = _UNITS[r["unit"]]
            lines.append([r["name"], number(r["value"], scale, 3), unit])
    return rows_of(["what", "measured", ""], lines)


def _launches(items: list[Record]) -> list[str]:
    """Of each run the kernels, those that take longest first."""
    rows = []
    for r in items:
        for name, (count, seconds) in sorted(
            r.get("kernels", {}).items(), key=lambda entry: -entry[1][1]
        ):
            share = f"{100 * seconds / r['seconds']:.0f} %" if r["seconds"] else "-"
            rows.append([r["name"], name, str(count), number(seconds, 1e6, 1), share])
    return rows_of(["run", "kernel", "launches", "us", "of all"], rows)


def _sanitizer(items: list[Record]) -> str:
    if missing := next((r["missing"] for r in items if r.get("missing")), ""):
        return f"Not run: {missing}."
    clean = [r for r in items if not r.get("error") and not r.get("wrong")]
    return f"{len(clean)} of {len(items)} runs are clean."


def _operators(items: list[Record]) -> str:
    good = [r for r in items if not r.get("error") and not r.get("wrong")]
    return f"{len(good)} of {len(items)} runs agree, of {len({r['model'] for r in good})} models."


def _attention(records: Records) -> list[str]:
    head = ["run", "kernel", "us", "caches TB/s", "of copied", "TFLOP/s", "PyTorch f16 us"]
    copied = max(
        (r["bytes_per_second"] for r in records.get("rates", []) if "bytes_per_second" in r),
        default=None,
    )
    peers = {
        (r["rows"], r["keys"], r.get("head")): r["seconds"]
        for r in records.get("attention-peers", [])
        if "seconds" in r
    }
    rows = []
    for r in records["attention"]:
        if "error" in r:
            continue
        bandwidth = r["cache_bytes_per_second"]
        share = bandwidth / copied if copied else None
        figures = [number(r["seconds"], 1e6), number(bandwidth, 1e-12, 2), number(share, 1, 2)]
        figures += [number(r["operations_per_second"], 1e-12)]
        peer = number(peers.get((r["rows"], r["keys"], r.get("head"))), 1e6)
        rows.append([r["name"], r["kernel"], *figures, peer])
    return rows_of(head, rows)


def _table(records: Records) -> list[str]:
    head = ["K", "N", "M", "format", "kernel", "rank", "pack us", "matmul us", "total us"]
    head += ["weights / copied bandwidth", "operations / rate", "x cuBLAS f16", "x cuBLAS int8"]
    rows = []
    for r in records["table"]:
        if "error" in r:
            continue
        names = [str(r["k"]), str(r["n"]), str(r["m"]), r["format"]]
        times = [number(r[f"{t}_seconds"], 1e6) for t in ("pack", "matmul", "total")]
        shares = [bars.bandwidth_share(records, r), bars.rate_share(records, r)]
        peers = [bars.speed_over(records, r, kind) for kind in ("f16", "int8")]
        kernel = f"{r['strategy']} {r['schedule']}"
        figures = [number(value, 1, 2) for value in (*shares, *peers)]
        rows.append([*names, kernel, str(r["rank"]), *times, *figures])
    return rows_of(head, rows)


def _shape(shape: dict[str, int] | None) -> list[str]:
    """Of a graph, as runtime/statistics.py has it."""
    keys = ("launches", "path", "edges", "dependent")
    return [str(shape[key]) for key in keys] if shape else [""] * len(keys)


def _models(items: list[Record]) -> list[str]:
    head = ["run", "error / range", "allowed", "host us", "again", "GPU us", "again"]
    head += ["launches", "longest path", "edges", "early"]
    keys = ("host_seconds", "host_again_seconds", "device_seconds", "device_again_seconds")
    rows = [
        [
            r["name"],
            *(_exponent(r.get(key)) for key in ("deviation", "tolerance")),
            *(number(r.get(key), 1e6) for key in keys),
            *_shape(r.get("shape")),
        ]
        for r in items
    ]
    missing = dict.fromkeys(r["device_missing"] for r in items if r.get("device_missing"))
    return [*rows_of(head, rows), "", *(f"- no times on the GPU: {why}" for why in missing)]
