"""A page of docs/benchmarks with plots, of what a kit has measured on a GPU.

    python tests/bench/gpu/page.py results/results.json [--name h200]

Writes docs/benchmarks/<name>.md and docs/benchmarks/<name>-*.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from gpukit import peer_report  # noqa: E402
from gpukit.markdown import number, rows_of  # noqa: E402
from line_plot import Series, lines  # noqa: E402

PAGES = HERE.parents[2] / "docs" / "benchmarks"
MICRO = 1e6
ABOUT = ("device", "driver", "date", "command")

Record = dict[str, Any]
Records = dict[str, list[Record]]
Shape = tuple[int, int]  # K, N


def page(data: dict[str, Any], name: str) -> tuple[str, dict[str, str]]:
    """The text, and the plots by the names of their files."""
    machine, records = data["machine"], dict(data["records"])
    records["table"] = [r for r in records.get("table", []) if "error" not in r]
    plots: dict[str, str] = {}
    sections = [
        f"# {machine['device']}",
        "What `tests/bench/gpu` has measured ([gpu-kit.md](../gpu-kit.md) says how): weights from "
        "memory, graphs of at least 16 launches, medians. Totals include quantizing or rounding "
        "the activations, which come as f32; cuBLAS gets f16.",
        "\n".join(f"- {key}: {machine[key]}" for key in ABOUT if key in machine),
        *_bars(data),
        *_one_row(records, name, plots),
        *_rows(records, name, plots),
        *_peers(records, name, plots),
        *_models(records),
    ]
    if data["failures"]:
        sections.append("## Failures\n\n" + "\n".join(f"- {text}" for text in data["failures"]))
    if data["unreached"]:
        sections.append("Not reached: " + ", ".join(data["unreached"]) + ".")
    return "\n\n".join(sections) + "\n", plots


def _bars(data: dict[str, Any]) -> list[str]:
    rows = [
        [bar["what"], f"{bar['limit']:g}", number(bar["measured"], 1, 2), bar["verdict"]]
        for bar in data["bars"]
    ]
    return ["## Bars", "\n".join(rows_of(["what", "bar", "measured", ""], rows))]


def _formats(records: Records) -> list[str]:
    return list(dict.fromkeys(r["format"] for r in records["table"]))


def _shapes(records: Records) -> list[Shape]:
    """Those with most formats, not what is there for the cost model to learn from."""
    formats: dict[Shape, set[str]] = {}
    for r in records["table"]:
        formats.setdefault((r["k"], r["n"]), set()).add(r["format"])
    found = [shape for shape, own in formats.items() if 2 * len(own) > len(_formats(records))]
    return sorted(found, key=lambda shape: shape[0] * shape[1])


def _counts(records: Records, shape: Shape) -> list[int]:
    """Likewise of a shape's rows."""
    formats: dict[int, set[str]] = {}
    for r in records["table"]:
        if (r["k"], r["n"]) == shape:
            formats.setdefault(r["m"], set()).add(r["format"])
    most = max(map(len, formats.values()))
    return sorted(m for m, own in formats.items() if 2 * len(own) >= most)


def _seconds(records: Records) -> Callable[[str, Shape, int], float | None]:
    """Our best total of a format, a shape and so many rows."""
    best = {f: peer_report.best_of_ours(records, f) for f in _formats(records)}

    def of(format: str, shape: Shape, m: int) -> float | None:
        line = best[format].get((*shape, m))
        return line["total_seconds"] if line else None

    return of


def _one_row(records: Records, name: str, plots: dict[str, str]) -> list[str]:
    """Latency by bits: a row for each shape, a column for each format."""
    formats, seconds = _formats(records), _seconds(records)
    if not formats:
        return []
    cublas = peer_report.cublas_seconds(records, "")
    rows = []
    for shape in _shapes(records):
        base = cublas.get((*shape, 1))
        cells = [_cell(seconds(format, shape, 1), base) for format in formats]
        rows.append([str(shape[0]), str(shape[1]), number(base, MICRO), *cells])
    series = []
    for shape in _shapes(records):
        points = {
            _weight_bits(f): s
            for f in sorted(formats, key=lambda f: _activation_bits(f))
            if _activation_bits(f) == 8 and (s := seconds(f, shape, 1)) is not None
        }
        if len(points) > 1:
            line = sorted((bits, s * MICRO) for bits, s in points.items())
            series.append(Series(f"K={shape[0]} N={shape[1]}", line))
    text = [
        "## One row",
        "Microseconds in all, and in brackets how many times as fast as cuBLAS in f16.",
        "\n".join(rows_of(["K", "N", "cuBLAS f16", *formats], rows)),
    ]
    if series:
        title = "One row, activations of 8 bits: latency by bits of a weight"
        plots[f"{name}-latency-bits"] = lines(title, "bits of a weight", "us", series)
        text.append(f"![latency by bits]({name}-latency-bits.svg)")
    return text


def _weight_bits(format: str) -> int:
    return int(format[1:].partition("A")[0])


def _activation_bits(format: str) -> int:
    return int(format.partition("A")[2])


def _cell(seconds: float | None, base: float | None) -> str:
    if seconds is None:
        return "-"
    times = f" ({base / seconds:.2f})" if base else ""
    return number(seconds, MICRO) + times


def _rows(records: Records, name: str, plots: dict[str, str]) -> list[str]:
    """The smallest and the largest shape by rows."""
    formats, seconds = _formats(records), _seconds(records)
    shapes = _shapes(records)
    if not shapes:
        return []
    cublas = {kind: peer_report.cublas_seconds(records, of) for kind, of in _KINDS.items()}
    text = ["## By rows", "Likewise, for the smallest and the largest of the shapes."]
    for shape in dict.fromkeys((shapes[0], shapes[-1])):
        counts = _counts(records, shape)
        table, base = [], cublas["f16"]
        for m in counts:
            own = base.get((*shape, m))
            cells = [_cell(seconds(format, shape, m), own) for format in formats]
            int8 = number(cublas["int8"].get((*shape, m)), MICRO)
            table.append([str(m), number(own, MICRO), int8, *cells])
        head = ["M", "cuBLAS f16", "cuBLAS int8", *formats]
        text += [f"### K = {shape[0]}, N = {shape[1]}", "\n".join(rows_of(head, table))]
        times = [
            Series(
                format,
                [
                    (m, base[(*shape, m)] / s)
                    for m in counts
                    if (s := seconds(format, shape, m)) and (*shape, m) in base
                ],
            )
            for format in formats
        ]
        times = [one for one in times if one.points]
        if times:
            file = f"{name}-rows-{shape[0]}-{shape[1]}"
            title = f"K = {shape[0]}, N = {shape[1]}: times as fast as cuBLAS in f16"
            plots[file] = lines(title, "rows", "times", times)
            text.append(f"![by rows]({file}.svg)")
    return text


_KINDS = {"f16": "", "int8": "W8A8"}


def _peers(records: Records, name: str, plots: dict[str, str]) -> list[str]:
    """peer_report's tables; of each format and the largest shape a plot."""
    if not records.get("peers"):
        return []
    text = ["## Other engines", "\n".join(peer_report.section(records))]
    for format in peer_report.formats(records):
        own = [
            r
            for r in records["peers"]
            if "seconds" in r and r["format"] == format and r["values_agree"]
        ]
        if not own:
            continue
        shape = max({(r["k"], r["n"]) for r in own}, key=lambda s: s[0] * s[1])
        series = _throughput(records, format, shape, own)
        if max(len(one.points) for one in series) > 1:
            file = f"{name}-peers-{format}"
            title = f"{format}, K = {shape[0]}, N = {shape[1]}: operations a second in all"
            plots[file] = lines(title, "rows", "10^12 operations/s", series)
            text.append(f"![{format} and other engines]({file}.svg)")
    return text


def _throughput(records: Records, format: str, shape: Shape, own: list[Record]) -> list[Series]:
    """Ours, cuBLAS's and each engine's, by rows."""
    work = 2e-12 * shape[0] * shape[1]
    ours = peer_report.best_of_ours(records, format)
    found = {"abqc": {key: r["total_seconds"] for key, r in ours.items()}}
    found["cuBLAS f16"] = peer_report.cublas_seconds(records, "")
    for r in own:
        times = found.setdefault(peer_report.label(r), {})
        times[peer_report.product(r)] = r["total_seconds"]
    series = []
    for engine, seconds in found.items():
        points = sorted((m, work * m / s) for (k, n, m), s in seconds.items() if (k, n) == shape)
        if points:
            series.append(Series(engine, points, dashed=engine != "abqc"))
    return series


def _models(records: Records) -> list[str]:
    keys = ("host_seconds", "host_again_seconds", "device_seconds", "device_again_seconds")
    rows = [
        [r["name"], *(number(r.get(key), MICRO) for key in keys)]
        for r in records.get("models", [])
        if "error" not in r
    ]
    head = ["run", "host us", "again", "GPU us", "again"]
    return ["## Models", "\n".join(rows_of(head, rows))] if rows else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--name", default="h200")
    parser.add_argument("--output", type=Path, default=PAGES)
    arguments = parser.parse_args()
    data = json.loads(arguments.results.read_text())
    text, plots = page(data, arguments.name)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    for name, svg in plots.items():
        (arguments.output / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
