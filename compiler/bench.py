"""Times a compiled model, alone or interleaved with onnxruntime on the model it came from.

Both sides are timed in alternating blocks, so that a slow spell of the machine hits both, and a
block's first run is not counted: it pays for the other side's threads and cache lines. After the
peer's block there is a rest: onnxruntime's threads go on spinning for some 20 ms behind a run, on
cores that the next one would use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

BLOCK_SECONDS = 0.03
REST_SECONDS = 0.06
MIN_ROUNDS = 5
MAX_ROUNDS = 200

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of the counted runs of each side."""

    own: tuple[float, ...]
    peer: tuple[float, ...] = ()


def time_block(run: Run, budget: float, least: int = 1) -> list[float]:
    """Run once uncounted, then for `budget` seconds, at least `least` times; seconds of each."""
    run()
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < least or time.perf_counter() - started < budget:
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return seconds


def interleave(own: Run, peer: Run | None, seconds: float) -> Timing:
    """Alternate blocks of both for about `seconds`, at least MIN_ROUNDS blocks of each."""
    own_seconds: list[float] = []
    peer_seconds: list[float] = []
    started = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        own_seconds += time_block(own, BLOCK_SECONDS)
        if peer is not None:
            peer_seconds += time_block(peer, BLOCK_SECONDS)
            time.sleep(REST_SECONDS)
    return Timing(tuple(own_seconds), tuple(peer_seconds))


def report(
    timing: Timing, *, device: str, threads: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The object that `abqc bench --json` prints; ratio below 1 means faster than the peer."""
    result: dict[str, Any] = {"median_ms": 1e3 * median(timing.own)}
    if timing.peer:
        result["peer_median_ms"] = 1e3 * median(timing.peer)
        result["ratio"] = result["median_ms"] / result["peer_median_ms"]
    return result | {
        "device": device,
        "threads": threads,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "runs": len(timing.own),
    }


def to_json(result: Mapping[str, Any]) -> str:
    """One object on one line, floats with five significant digits."""
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in result.items()}
    return json.dumps(rounded)
