"""Part `peers`: other engines' products of narrow weights, measured as the table is.

Which engines there are says the folder `peers` of the kit (`build.py --peers FOLDER`), besides what
is installed. Their failures are theirs: they are said in the results, and are none of this run.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import baselines
from .device import LAUNCHES, copies
from .kit import Kit
from .peer import Case, Launch, Operands, Peer
from .peer_gemlite import GemLite
from .peer_humming import Humming
from .peer_machete import Machete
from .peer_marlin import Marlin, Qqq
from .peer_torch import Fp8, Tinygemm
from .pytorch import NoPyTorch, pytorch

FOLDER = "peers"
SECONDS = 0.06  # a measurement repeats for so long, or three times
CHECKED_ROWS = 64
BROKEN = 3  # cases of a peer that broke the device: no further one is tried

Shape = tuple[int, int]  # K, N
SHAPES: tuple[Shape, ...] = (
    (8192, 28672),
    (4096, 4096),
    (8192, 8192),
    (4096, 11008),
    (11008, 4096),
)
ROWS = (1, 4, 8, 16, 64, 256, 4096)
FEW = (1, 16, 256, 4096)
ONE = (1,)
NOT_MANY = ROWS[:-1]  # tinygemm is for few rows, and takes long for many


@dataclass(frozen=True)
class Turn:
    """Some cases of a peer at some of SHAPES."""

    peer: type[Peer]
    cases: tuple[Case, ...]
    shapes: tuple[Shape, ...]
    rows: tuple[int, ...] = ROWS


W4A16, W4A8, W2A8, W1A8, W8A8 = map(Case, ("W4A16", "W4A8", "W2A8", "W1A8", "W8A8"))
GROUPED = Case("W4A16", group=128)

# In the order of what they are worth: there may be no time for the last ones.
TURNS = (
    Turn(Marlin, (W4A16,), SHAPES[:2]),
    Turn(Machete, (W4A16,), SHAPES[:2]),
    Turn(Humming, (W4A16, W4A8, W2A8, W1A8, W8A8), SHAPES[:2]),
    Turn(Qqq, (W4A8,), SHAPES[:2]),
    Turn(Tinygemm, (GROUPED,), SHAPES[:2], NOT_MANY),
    Turn(Fp8, (W8A8,), SHAPES[:2]),
    Turn(GemLite, (GROUPED, W8A8), SHAPES[1:2], FEW),
    Turn(Marlin, (W4A16,), SHAPES[2:3]),
    Turn(Machete, (W4A16,), SHAPES[2:3]),
    Turn(Humming, (W4A16, W4A8, W2A8, W1A8, W8A8), SHAPES[2:3]),
    Turn(Marlin, (GROUPED,), SHAPES[:2]),
    Turn(Machete, (GROUPED,), SHAPES[:2]),
    Turn(Humming, (GROUPED,), SHAPES[:2]),
    Turn(Qqq, (Case("W4A8", group=128),), SHAPES[:2]),
    Turn(GemLite, (GROUPED, W8A8), SHAPES[:1], FEW),
    Turn(Humming, (Case("W4A4"),), SHAPES[:2]),
    Turn(GemLite, (Case("W2A16", 128), Case("W1A16", 128)), SHAPES[1:2], ONE),
    Turn(Marlin, (W4A16,), SHAPES[3:]),
    Turn(Humming, (W4A16, W4A8, W2A8, W1A8, W8A8), SHAPES[3:]),
)


@dataclass(frozen=True)
class Item:
    """One product; `missing`: why none of this peer's is tried."""

    peer: type[Peer]
    case: Case | None = None
    m: int = 0
    n: int = 0
    k: int = 0
    missing: str = ""

    @property
    def name(self) -> str:
        if self.case is None:
            return self.peer.name
        return f"{self.peer.name} {self.case.label} K={self.k} N={self.n} M={self.m}"


@cache
def items(products: frozenset[tuple[int, int, int]], folder: Path) -> list[Item]:
    """Those of `products` (m, n, k) that are in the turns; one item for a peer that is not here."""
    found = []
    for turn in TURNS:
        if why := turn.peer.missing(folder):
            found.append(Item(turn.peer, missing=why))
            continue
        found += [
            Item(turn.peer, case, m, n, k)
            for k, n in turn.shapes
            for case in turn.cases
            for m in turn.rows
            if (m, n, k) in products
        ]
    return list(dict.fromkeys(found))


def items_of(kit: Kit) -> list[Item]:
    return items(frozenset(baselines.shapes(kit)), kit.folder / FOLDER)


def names(kit: Kit) -> list[str]:
    return [item.name for item in items_of(kit)]


def skip(kit: Kit, index: int, records: Sequence[dict[str, Any]]) -> str:
    """Why an item is not worth a try, by the records before it: such a case has ended a worker, or
    too many of its peer's."""
    every = items_of(kit)
    item = every[index]
    broken = [every[r["item"]] for r in records if r.get("error")]
    cases = {other.case for other in broken if other.peer is item.peer}
    if item.case in cases:
        return f"{item.case.label} ended a worker before" if item.case else ""
    return f"{len(cases)} cases of it ended a worker" if len(cases) >= BROKEN else ""


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """Seconds of a product, alone and with quantizing its rows; `missing` where it is not done
    here, `failed` where the peer did not manage."""
    item = items_of(kit)[index]
    about = {"peer": item.peer.name, "m": item.m, "n": item.n, "k": item.k}
    if item.case is None:
        return {**about, "missing": item.missing}
    about |= {"format": item.case.format, "group": item.case.group}
    try:
        torch = pytorch()
    except NoPyTorch as error:
        return {**about, "missing": str(error)}
    try:
        return about | _measured(torch, kit, item, item.case)
    except Exception as error:
        torch.cuda.synchronize()  # fails where the device is lost, and the worker ends
        return {**about, "failed": _last_line(error)}


def _last_line(error: Exception) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{lines[-1]} ({frame.name}, line {frame.lineno})"[:400]


def _measured(torch: Any, kit: Kit, item: Item, case: Case) -> dict[str, Any]:
    peer = _open(torch, item.peer, kit)
    if why := peer.takes(case, item.m, item.n, item.k):
        return {"missing": why}
    operands = _operands(torch, peer, case, item.n, item.k)
    x = torch.randn(item.m, item.k, dtype=getattr(torch, peer.dtype), device="cuda")
    multiply, together = peer.launches(case, operands, x)
    deviations = [
        _deviation(torch, launch(0), x, operands.dense) for launch in (multiply, together) if launch
    ]
    seconds, runs, graph = _seconds(torch, multiply, len(operands.weights))
    total = _seconds(torch, together, len(operands.weights))[0] if together else seconds
    return {
        "version": peer.version,
        "seconds": seconds,
        "total_seconds": total,
        "repetitions": runs,
        "graph": graph,
        "deviation": max(deviations) if all(map(math.isfinite, deviations)) else None,
        "values_agree": all(value <= peer.tolerance(case) for value in deviations),
    }


_opened: dict[type[Peer], Peer | Exception] = {}
_prepared: dict[Any, Operands] = {}  # one at most


def _open(torch: Any, peer: type[Peer], kit: Kit) -> Peer:
    if peer not in _opened:
        try:
            _opened[peer] = peer(torch, kit.folder / FOLDER)
        except Exception as error:
            _opened[peer] = error
    found = _opened[peer]
    if isinstance(found, Exception):
        raise found
    return found


def _operands(torch: Any, peer: Peer, case: Case, n: int, k: int) -> Operands:
    """Those of the last item, or new ones: so many copies that all together are cold."""
    key = (type(peer), case, n, k)
    if key not in _prepared:
        _prepared.clear()
        torch.cuda.empty_cache()
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        _prepared[key] = peer.operands(case, n, k, copies(n * k * case.bits[0] // 8, l2))
    return _prepared[key]


def _deviation(torch: Any, y: Any, x: Any, dense: Any) -> float:
    """Of some rows from those of float, the size of the difference over that of the rows."""
    rows = torch.arange(len(x), device=x.device)
    if len(x) > CHECKED_ROWS:
        rows = torch.cat([rows[: CHECKED_ROWS // 2], rows[-CHECKED_ROWS // 2 :]])
    expected = x[rows].float() @ dense.t()
    return float((y[rows].float() - expected).norm() / expected.norm())


def _seconds(torch: Any, launch: Launch, weights: int) -> tuple[float, int, bool]:
    """Of one launch, each with another weight; how many, and whether a graph could be had."""
    count = max(weights, LAUNCHES)

    def every() -> None:
        for i in range(count):
            launch(i % weights)

    try:
        seconds, runs = baselines.graph_seconds(torch, every, SECONDS)
        graph = True
    except Exception:
        torch.cuda.synchronize()
        seconds, runs = baselines.repeated_seconds(torch, every, SECONDS)
        graph = False
    return seconds / count, runs * count, graph
