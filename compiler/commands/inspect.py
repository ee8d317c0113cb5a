"""Show what is in a compiled model: signature, formats, sizes, strategies and why.

Reads the manifest at the end of the file; the library is not opened.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from abqc.compiler.commands.table import byte_count, table

NAME = "inspect"
SUMMARY = "show signature, formats, sizes and strategies of a compiled model"
EXAMPLES = """examples:
  abqc inspect model.so
  abqc inspect model.so --json | python -m json.tool
"""

FLOAT = "f32"
SHOWN_LAYERS = 8
STORED_FLOATS = ("f32", "f16", "bf16")  # of weights; dialects/formats.py needs numpy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    from abqc.runtime.artifact import manifest_of

    manifest = manifest_of(args.model)
    manifest["bytes"]["total"] = args.model.stat().st_size
    print(json.dumps(manifest) if args.json else "\n\n".join(sections(manifest)))
    return 0


def sections(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The parts of the report, in order."""
    operations = manifest["ops"] + manifest["tables"]
    yield summary(manifest, operations)
    for title in ("inputs", "outputs"):
        yield tensor_table(title[:-1], manifest[title])
    if manifest.get("caches"):
        yield cache_table(manifest["caches"])
    if manifest.get("scans"):
        yield scan_table(manifest["scans"])
    if operations:
        yield operation_table(operations)
        yield from predictions(operations)
    if manifest.get("calibration", {}).get("errors"):
        yield calibration_table(manifest["calibration"])
    if manifest["float"]:
        yield float_table(manifest["float"])
    if manifest.get("notes"):
        yield table(("node", "note"), [(n["node"], n["note"]) for n in manifest["notes"]])
    for code in manifest.get("gpu", []):
        yield gpu_table(code)


def summary(manifest: Mapping[str, Any], operations: list[Mapping[str, Any]]) -> str:
    sizes = manifest["bytes"]
    lines = {
        "model": manifest["model"],
        "recipe": " / ".join(filter(None, map(str.strip, manifest["recipe"].splitlines()))),
        "target": f"{manifest['target']} ({', '.join(isas(manifest))})",
        "compiled": f"by abqc {manifest['abqc']} in {manifest['compile_seconds']:.1f} s",
        "size": f"{byte_count(sizes['total'])}: {byte_count(sizes['weights'])} weights, "
        f"{byte_count(sizes['code'])} code",
        "chosen by": f"cost model, {manifest['cost_model']}" if "cost_model" in manifest else "",
        "quantized": bits_per_weight(operations),
        "noise": weight_noise(operations),
        "integers": integers(manifest.get("integers", {})),
    }
    return "\n".join(f"{key:10} {value}" for key, value in lines.items() if value)


def integers(counts: Mapping[str, int]) -> str:
    """What the summary says of an integer-only graph."""
    if not counts:
        return ""
    floats = counts.get("islands", 0)
    return f"{counts.get('values', 0)} values from integers alone, {floats} by way of floats"


def calibration_table(calibration: Mapping[str, Any]) -> str:
    """The layers that calibration leaves the largest errors, worst first."""
    worst = sorted(calibration["errors"].items(), key=lambda item: -item[1])[:SHOWN_LAYERS]
    batches, seconds = calibration["batches"], calibration["seconds"]
    title = f"calibrated on {batches} batches in {seconds:.0f} s: largest errors of outputs"
    return table((title, "relative"), [(node, f"{error:.2e}") for node, error in worst])


def isas(manifest: Mapping[str, Any]) -> list[str]:
    """The instruction sets or GPUs that the kernels were compiled for."""
    gpus = manifest.get("gpu", [])
    return manifest["isas"] or [
        g["target"] + ("" if g["machine_code"] else " as PTX alone") for g in gpus
    ]


def gpu_table(code: Mapping[str, Any]) -> str:
    """What the assembler gave every kernel of one GPU target."""
    rows = [
        (
            name,
            kernel["threads"],
            kernel.get("registers", "?"),
            byte_count(kernel["shared"]) if kernel["shared"] else "",
            byte_count(kernel["spilled"]) if kernel.get("spilled") else "",
        )
        for name, kernel in sorted(code["kernels"].items())
    ]
    title = f"kernels for {code['target']}"
    return table((title, "threads", "registers", "shared memory", "spilled"), rows)


def bits_per_weight(operations: list[Mapping[str, Any]]) -> str:
    """What the summary says of all quantized weights."""
    count, bits = weight_bits(operations)
    return f"{count / 1e6:.2f} M weights at {bits:.2f} bits" if bits is not None else ""


def weight_bits(operations: list[Mapping[str, Any]]) -> tuple[int, float | None]:
    """Number of quantized weights, and bits per weight over them, each stored one counted once.

    A table that is gathered from a matmul's weight has no bytes of its own. No bits where nothing
    is quantized.
    """
    quantized = [op for op in operations if op["weight"] not in STORED_FLOATS and op["bytes"]]
    stored = {op["symbol"]: op for op in quantized}.values()
    count = sum(op["n"] * op["k"] for op in stored)
    if not count:
        return 0, None
    return count, 8 * sum(op["bytes"] for op in stored) / count


def weight_noise(operations: list[Mapping[str, Any]]) -> str:
    """The range of the weights' signal-to-noise ratios, and where it is worst."""
    noisy = [op for op in operations if op.get("snr_db") is not None]
    if not noisy:
        return ""
    worst = min(noisy, key=lambda op: op["snr_db"])
    best = max(op["snr_db"] for op in noisy)
    return f"weights {worst['snr_db']:.1f} to {best:.1f} dB, worst '{worst['node']}'"


def tensor_table(role: str, tensors: list[Mapping[str, Any]]) -> str:
    """One row for tensors that differ in nothing but a number in their names, such as caches."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for tensor in tensors:
        key = re.sub(r"\d+", "*", tensor["name"]), tensor["dtype"], _shape(tensor["shape"])
        groups.setdefault(key, []).append(tensor["name"])
    rows = [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names)})", dtype, shape)
        for (pattern, dtype, shape), names in groups.items()
    ]
    return table((role, "type", "shape"), rows)


def cache_table(caches: list[Mapping[str, Any]]) -> str:
    """One row for quantized caches that differ in nothing but a number in their names."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for cache in caches:
        bits = f"{8 * cache['row_bytes'] / cache['columns']:.2f}"
        kind = re.sub(r"\d+", "*", cache["input"])
        key = kind, cache["format"], cache["columns"], cache["row_bytes"], bits, cache["float"]
        groups.setdefault(key, []).append(cache["input"])
    rows = [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names)})", *about)
        for (pattern, *about), names in groups.items()
    ]
    return table(
        ("cache", "format", "elements a row", "bytes a row", "bits each", "in place of"), rows
    )


def scan_table(scans: list[Mapping[str, Any]]) -> str:
    """One row for selective scans that agree in everything but their name."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for scan in scans:
        key = scan["channels"], scan["states"], scan["operands"]
        groups.setdefault(key, []).append(scan["node"])
    rows = [(_nodes(nodes), *key) for key, nodes in groups.items()]
    return table(("selective scan", "channels", "states", "x, delta, b, c"), rows)


def operation_table(operations: list[Mapping[str, Any]]) -> str:
    """One row for ops that agree in everything but their name."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for op in operations:
        why = "predicted time" if op.get("predicted") else op["why"]
        if "patches" in op:
            why += f"; patches: {op['patches']}"
        key = (op["kind"], _size(op), _formats(op), round(op["bpw"], 2), op["strategy"], why)
        groups.setdefault(key, []).append(op["node"])
    rows = [(_nodes(nodes), *key) for key, nodes in groups.items()]
    return table(("node", "kind", "n x k", "formats", "bpw", "strategy", "why"), rows)


def predictions(operations: list[Mapping[str, Any]]) -> Iterator[str]:
    """What the cost model expects of every strategy, by rows M: a few lines for each kind of op."""
    from abqc.costmodel.ranking import Ranking

    groups: dict[tuple[str, ...], list[str]] = {}
    for op in operations:
        lines = [Ranking.of_manifest(ranking).text for ranking in op.get("predicted", [])]
        if lines and op["shares_layout"]:
            lines.append("shares its activations' layout with others")
        if lines:
            groups.setdefault((_size(op), _formats(op), *lines), []).append(op["node"])
    for (size, formats, *lines), nodes in groups.items():
        yield "\n  ".join([f"predicted for {_nodes(nodes)}, {size}, {formats}:", *lines])


def _size(op: Mapping[str, Any]) -> str:
    return f"{op['n']}x{op['k']}"


def _formats(op: Mapping[str, Any]) -> str:
    formats = " ".join(f for f in (op["weight"], op["activation"]) if f != FLOAT) or "float"
    formats += " balanced" if op.get("balanced") else ""
    if op.get("stream"):
        return f"{formats} rotated in the weights"
    return formats + (f" rotated by {op['rotated']}" if op["rotated"] else "")


def float_table(kept: list[Mapping[str, Any]]) -> str:
    """What stayed float, one row for each kind and reason."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in kept:
        groups.setdefault((entry["kind"], entry["why"]), []).append(entry)
    rows = [
        (
            _nodes([e["node"] for e in entries]),
            kind,
            byte_count(sum(e["bytes"] for e in entries)),
            why,
        )
        for (kind, why), entries in groups.items()
    ]
    return table(("stayed float", "kind", "bytes", "why"), rows)


def _nodes(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _shape(sizes: list[int | str | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "scalar"
