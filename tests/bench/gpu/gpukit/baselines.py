"""Part `baselines`: cuBLAS through PyTorch on the table's shapes, measured as the table is."""

from __future__ import annotations

import statistics
from typing import Any

from .device import FEWEST, LAUNCHES, MOST, SECONDS, copies
from .kit import Kit
from .pytorch import NoPyTorch, pytorch

KINDS = ("f16", "int8")
INT8_ROWS = 17  # torch._int_mm takes no fewer rows


def shapes(kit: Kit) -> list[tuple[int, int, int]]:
    """(m, n, k) of the table."""
    every = {(f["m"], f["n"], f["k"]): None for f in (job.features for job in kit.table)}
    return list(every)


def names(kit: Kit) -> list[str]:
    return [f"cuBLAS {kind} K={k} N={n} M={m}" for m, n, k in shapes(kit) for kind in KINDS]


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """Seconds of one product of x [m, k] by one of several weights [n, k] in turns; `missing` where
    there is none."""
    (m, n, k), kind = shapes(kit)[index // len(KINDS)], KINDS[index % len(KINDS)]
    if kind == "int8" and m < INT8_ROWS:
        return {"missing": f"torch._int_mm takes at least {INT8_ROWS} rows"}
    try:
        torch = pytorch()
    except NoPyTorch as error:
        return {"missing": str(error)}
    item = 2 if kind == "f16" else 1
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    weights = [_random(torch, kind, n, k) for _ in range(copies(n * k * item, l2))]
    count = max(len(weights), LAUNCHES)
    x = _random(torch, kind, m, k)
    multiply = torch.matmul if kind == "f16" else torch._int_mm

    def every() -> None:
        for i in range(count):
            multiply(x, weights[i % len(weights)].t())

    seconds, runs = graph_seconds(torch, every)
    return {
        **{"kind": kind, "m": m, "n": n, "k": k},
        "seconds": seconds / count,
        "repetitions": runs * count,
        "torch": torch.__version__,
    }


def _random(torch: Any, kind: str, rows: int, columns: int) -> Any:
    if kind == "f16":
        return torch.randn(rows, columns, dtype=torch.float16, device="cuda")
    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device="cuda")


def graph_seconds(torch: Any, work: Any, spent: float = SECONDS) -> tuple[float, int]:
    """The median of a CUDA graph of `work` that repeats for `spent` seconds, and how often it ran;
    a first run is not counted."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()  # cuBLAS makes its handle and workspace outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return repeated_seconds(torch, graph.replay, spent)


def repeated_seconds(torch: Any, run: Any, spent: float) -> tuple[float, int]:
    """The median of `run` by events around it, and how often it ran."""
    first = _seconds(torch, run)
    runs = max(FEWEST, min(MOST, int(spent / max(first, 1e-6))))
    return statistics.median(_seconds(torch, run) for _ in range(runs)), runs


def _seconds(torch: Any, run: Any) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
