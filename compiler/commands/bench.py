"""Time a compiled model, alone or against onnxruntime on the model it came from.

Both are timed in turns, with the same inputs and number of threads. Inputs are made by type and
name (ids within the vocabulary, masks of ones, caches empty) unless given with --input.

Peers: onnxruntime:float, onnxruntime:int8 (dynamic quantization), onnxruntime:nbits4 and :nbits2
(MatMulNBits, blocks of 32, accuracy_level 4). A ratio below 1 means: faster than the peer.

With --profile: where the time goes on a CPU, by ONNX node and by kernel, beside the weights read,
the operations of products, and how long these take at best on the CPU that the cost model
describes. A file gets all launches, for chrome://tracing or https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abqc.compiler.commands.arguments import (
    add_device,
    add_huge_pages,
    add_inputs,
    add_shape,
    add_threads,
    read_inputs,
)
from abqc.compiler.commands.table import byte_count, table
from abqc.errors import AbqcError, InputError

if TYPE_CHECKING:
    from abqc.compiler.profiling import Breakdown, Row
    from abqc.runtime.model import Model
    from numpy.typing import NDArray

NO_FILE = Path()  # of --profile: tables alone
PROFILE_ROWS = 25  # of a table
TRACED_RUNS = 5

NAME = "bench"
SUMMARY = "time a compiled model, alone or against onnxruntime"
EXAMPLES = """examples:
  abqc bench model.so --shape input_ids=1x128
  abqc bench model.so --against onnxruntime:int8 model.onnx --threads 2 --shape x=1x128 --json
  abqc bench decoder.so --shape input_ids=1x1 --shape "past_*=1x3x128x64"
  abqc bench model.so --shape x=1x128 --profile trace.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the library that `abqc compile` wrote")
    parser.add_argument(
        "--against",
        nargs=2,
        metavar=("PEER", "MODEL.ONNX"),
        help="onnxruntime:float, :int8, :nbits4 or :nbits2, and the ONNX model",
    )
    add_shape(parser, "an input's shape; NAME may be a pattern")
    add_inputs(parser, "inputs that are not made up")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long to measure (default: 5)"
    )
    parser.add_argument(
        "--profile",
        metavar="FILE.json",
        nargs="?",
        type=Path,
        const=NO_FILE,
        help="print the time of each node and kernel; with a file, write every launch in Chrome's "
        "trace format",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(parser)
    add_threads(parser)
    add_huge_pages(parser)


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.bench import interleave, report, to_json
    from abqc.runtime.caches import encode_caches
    from abqc.runtime.model import load

    threads = args.threads or default_threads()
    model = load(args.model, threads=threads, device=args.device, huge_pages=args.huge_pages)
    given = read_inputs(args.input)
    feeds = model_feeds(model, dict(args.shape), given)
    peer = make_peer(args.against, threads) if args.against else None
    stored = encode_caches(model.manifest, feeds)
    found = None if args.profile is None else profile(args, model, stored, threads)
    timing = interleave(
        lambda: model.run(stored),
        (lambda: peer.run(feeds)) if peer else None,
        args.seconds,
    )
    shapes = {name: array.shape for name, array in feeds.items()}
    result = report(timing, device=model.device, threads=threads, shapes=shapes)
    if model.device != "cpu":
        result |= dataclasses.asdict(model.statistics)
    if args.json:
        print(to_json(result | ({"profile": found.as_dict()} if found else {})))
        return 0
    print(describe(result, args.against))
    if found:
        print(f"\n{profile_text(found)}")
    return 0


def profile(
    args: argparse.Namespace, model: Model, feeds: Mapping[str, Any], threads: int
) -> Breakdown:
    """Where the time of runs goes; writes the trace where one is asked for."""
    from abqc.compiler.files import write_text
    from abqc.compiler.profiling import break_down, profile_runs, trace

    launches, spans = profile_runs(lambda p: model.run(feeds, profile=p), args.seconds)
    if args.profile != NO_FILE:
        last = slice(-TRACED_RUNS, None)
        write_text(args.profile, trace(model.manifest, launches[last], spans[last]))
    return break_down(model.manifest, launches, spans, isa=model.isa, threads=threads)


def profile_text(found: Breakdown) -> str:
    """The tables of nodes and of kernels, the longest first."""
    from abqc.compiler.profiling import alike, pattern

    parts = [
        f"{1e3 * found.seconds:.3f} ms a run (median of {found.runs}), "
        f"{1e3 * found.outside:.3f} ms of it in no kernel: copies, memory, the call"
    ]
    nodes = [(row, row.parts) for row in alike(found.nodes)]
    kernels = [(row, tuple(dict.fromkeys(map(pattern, row.parts)))) for row in found.kernels]
    for name, others, rows in (("node", "kernels", nodes), ("kernel", "nodes", kernels)):
        limit = f"limit, us ({found.machine})"
        header = (name, "calls", "us", "share", "weights", "Mops", limit, others)
        shown = rows[:PROFILE_ROWS]
        parts.append(
            table(header, [(*_cells(row, found.accounted), _first(of)) for row, of in shown])
        )
        if len(rows) > len(shown):
            rest = sum(row.seconds for row, _ in rows[len(shown) :])
            parts[-1] += f"\nand {len(rows) - len(shown)} more: {1e6 * rest:.1f} us"
    return "\n\n".join(parts)


def _cells(row: Row, total: float) -> tuple[object, ...]:
    return (
        row.name,
        row.calls,
        round(1e6 * row.seconds, 1),
        f"{row.seconds / total:.1%}",
        byte_count(row.bytes) if row.bytes else "-",
        round(row.operations / 1e6, 2) if row.operations else None,
        None if row.limit is None else round(1e6 * row.limit, 1),
    )


def _first(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def default_threads() -> int:
    """What the runtime takes when nobody says otherwise: both sides must use as many."""
    import os

    from abqc.runtime.environment import NUM_THREADS

    return NUM_THREADS.get() or len(os.sched_getaffinity(0))


def model_feeds(
    model: Model, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The given inputs, and made ones for the rest, in the model's order; caches of floats."""
    from abqc.compiler.feeds import make_feeds, resolve_shapes
    from abqc.runtime.caches import float_signature

    names = [spec.name for spec in model.inputs]
    unknown = next((name for name in given if name not in names), None)
    if unknown:
        raise InputError(f"there is no input '{unknown}'", hint=f"they are {', '.join(names)}")
    known = {name: array.shape for name, array in given.items()}
    inputs = float_signature(model.manifest, model.inputs)
    made = make_feeds(
        inputs,
        resolve_shapes(inputs, dict(shapes) | known),
        vocabulary=vocabulary(model.manifest),
    )
    return {name: given.get(name, made[name]) for name in names}


def vocabulary(manifest: Mapping[str, Any]) -> int | None:
    """Rows of the largest table that is gathered from; None where there is none."""
    return max((table["n"] for table in manifest["tables"]), default=None)


def make_peer(against: list[str], threads: int) -> Any:
    from abqc.compiler.onnxruntime_peer import Peer

    family, _, kind = against[0].partition(":")
    if family != "onnxruntime":
        raise AbqcError(f"unknown peer '{against[0]}'", hint="peers are named onnxruntime:float")
    return Peer(Path(against[1]), kind or "float", threads)


def describe(result: Mapping[str, Any], against: list[str] | None) -> str:
    text = f"{result['median_ms']:.3f} ms (median of {result['runs']} runs, {_where(result)})"
    if result.get("graph_error"):
        text += f"\nkernel by kernel, for the driver refuses graphs: {result['graph_error']}"
    if against:
        text += f"\n{result['peer_median_ms']:.3f} ms {against[0]}"
        text += f"\nratio {result['ratio']:.3f} (below 1: faster than the peer)"
    return text


def _where(result: Mapping[str, Any]) -> str:
    """On what it ran."""
    device, threads = result["device"], result["threads"]
    if device == "cpu":
        return f"{threads} thread" + ("s" if threads > 1 else "")
    if device == "ptx-vm":
        return "ptx-vm: how long the PTX machine takes says nothing about a GPU"
    return device
