"""What was measured, as results.json, results.md and samples.jsonl."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abqc.compiler.cuda_driver import Cuda
from abqc.costmodel import samples
from abqc.costmodel.interface import KernelFeatures, Sample

from . import bars
from .device import CLOCK_KHZ, MULTIPROCESSORS
from .kit import Kit
from .parts import Record
from .rates import COPY_KERNEL

Records = dict[str, list[Record]]
OPTIONAL = ("baselines",)  # parts whose items may be missing


def describe_machine(kit: Kit, command: list[str]) -> dict[str, Any]:
    """Device, driver, date and command. AbqcError where there is no GPU."""
    with Cuda() as cuda:
        return {
            "device": cuda.name,
            "capability": ".".join(map(str, cuda.capability)),
            "multiprocessors": cuda.attribute(MULTIPROCESSORS),
            "clock": f"{cuda.attribute(CLOCK_KHZ) / 1e3:.0f} MHz at most",
            "driver": cuda.driver_version,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(command),
            "python": platform.python_version(),
            "kit": {"target": kit.target, "date": kit.date, "notes": kit.notes},
        }


def failures(records: Records) -> list[str]:
    """What failed or gave wrong results, a line each."""
    lines = []
    for name, items in records.items():
        for r in items:
            why = r.get("error") or r.get("wrong")
            if r.get("values_agree") is False:
                why = "the values are not those expected; do not trust this rate"
            if why and (name not in OPTIONAL):
                lines.append(f"{name}: {r['name']}: {why}")
    return lines


def write(kit: Kit, machine: dict[str, Any], records: Records, results: Path) -> None:
    """All three files, anew."""
    measured = bars.judge(records)
    data = {
        "machine": machine,
        "bars": [bar.as_json() for bar in measured],
        "failures": failures(records),
        "records": records,
    }
    (results / "results.json").write_text(json.dumps(data, indent=1))
    (results / "results.md").write_text(_markdown(kit, machine, records, measured))
    path = results / "samples.jsonl"
    path.unlink(missing_ok=True)
    samples.write(path, _samples(machine, records))


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


def _markdown(kit: Kit, machine: dict[str, Any], records: Records, measured: list[bars.Bar]) -> str:
    lines = ["# Kernels on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items() if key != "kit"]
    lines += [f"- kit: {kit.target}, built {kit.date}"]
    lines += [f"- note: {note}" for note in kit.notes]
    lines += ["", "## Bars", "", *_rows(["what", "bar", "measured", ""], map(_bar, measured))]
    lines += ["", "## Failures", ""]
    lines += [f"- {text}" for text in failures(records)] or ["None in the parts that ran."]
    if "rates" in records:
        lines += ["", "## Rates", "", *_rates(records["rates"])]
    if "check" in records:
        lines += ["", "## Checks", "", _check(records["check"])]
    if "table" in records:
        lines += ["", "## Matmuls", "", *_table(records)]
    if "models" in records:
        lines += ["", "## Models", "", *_models(records["models"])]
    return "\n".join(lines) + "\n"


def _bar(bar: bars.Bar) -> list[str]:
    value = "-" if bar.measured is None else f"{bar.measured:.2f}"
    return [bar.what, f"{bar.limit:g}", value, bar.verdict]


def _rows(head: list[str], rows: Any) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


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
            _number(r.get("operations_per_second"), 1e-12),
            {True: "yes", False: "NO"}.get(r.get("values_agree"), "-"),
        ]
        for r in items
        if r not in copies and COPY_KERNEL not in r["name"]
    ]
    return [*lines, "", *_rows(["instruction", "10^12 operations/s", "values agree"], rows)]


def _check(items: list[Record]) -> str:
    good = [r for r in items if not r.get("error") and not r.get("wrong")]
    kernels = {name for r in good for name in r["kernels"]}
    return f"{len(good)} of {len(items)} cases agree, of {len(kernels)} kernels."


def _table(records: Records) -> list[str]:
    head = ["K", "N", "M", "format", "kernel", "rank", "pack us", "matmul us", "total us"]
    head += ["weights / copied bandwidth", "operations / rate", "x cuBLAS f16", "x cuBLAS int8"]
    rows = []
    for r in records["table"]:
        if "error" in r:
            continue
        names = [str(r["k"]), str(r["n"]), str(r["m"]), r["format"]]
        times = [_number(r[f"{t}_seconds"], 1e6) for t in ("pack", "matmul", "total")]
        shares = [bars.bandwidth_share(records, r), bars.rate_share(records, r)]
        peers = [bars.speed_over(records, r, kind) for kind in ("f16", "int8")]
        kernel = f"{r['strategy']} {r['schedule']}"
        figures = [_number(value, 1, 2) for value in (*shares, *peers)]
        rows.append([*names, kernel, str(r["rank"]), *times, *figures])
    return _rows(head, rows)


def _models(items: list[Record]) -> list[str]:
    head = ["run", "error / range", "host in and out us", "tensors on the GPU us"]
    rows = [
        [
            r["name"],
            f"{r['deviation']:.1e}" if r.get("deviation") is not None else "-",
            _number(r.get("host_seconds"), 1e6),
            _number(r.get("device_seconds"), 1e6),
        ]
        for r in items
    ]
    return _rows(head, rows)
