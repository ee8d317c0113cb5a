"""The kit's part that measures other engines: what it tries, packs, checks and reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from abqc.errors import InputError

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))
import build
from gpukit import peer_report, peers, report, work
from gpukit.parts import PARTS, Part
from gpukit.peer import Case, Operands, Peer
from gpukit.peer_humming import digest, packed
from gpukit.peer_marlin import (
    FLOAT_ROWS,
    HALVES,
    INTEGER_ROWS,
    PAIRS,
    Marlin,
    codes_in_order,
    scales_in_order,
)

torch = pytest.importorskip("torch")
KIT_SHAPES = ((8192, 28672), (4096, 4096))


def kit_of(folder: Path) -> Any:
    """What the part reads of a kit."""
    lines = [{"m": m, "n": n, "k": k} for k, n in KIT_SHAPES for m in (1, 16)]
    return SimpleNamespace(folder=folder, table=[SimpleNamespace(features=f) for f in lines])


class Clock:
    """Stands for an event."""

    def record(self) -> None:
        pass

    synchronize = record

    def elapsed_time(self, other: Clock) -> float:
        return 16.0


class NoGpu:
    """PyTorch without a GPU as a PyTorch with one, whose tensors are arrays of this machine."""

    def __init__(self, alive: bool = True) -> None:
        properties = SimpleNamespace(L2_cache_size=1 << 10)
        self.cuda = SimpleNamespace(
            synchronize=self._synchronize,
            empty_cache=lambda: None,
            Event=lambda enable_timing: Clock(),
            get_device_properties=lambda number: properties,
        )
        self._alive = alive

    def _synchronize(self) -> None:
        if not self._alive:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in ("rand", "randn", "randint", "ones", "empty"):
            return found
        return lambda *arguments, device=None, **options: found(*arguments, **options)


class Exact(Peer):
    """A peer that multiplies floats."""

    name = "Exact"
    version = "1"

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        codes = self.random_codes(case.bits[0], n, k) - 8
        dense = self.dense(codes, self.random_scales(n, 1))
        return Operands([dense] * copies, dense)

    def launches(self, case: Case, operands: Operands, x: Any) -> Any:
        def multiply(i: int) -> Any:
            return x.float() @ operands.weights[i].t()

        return multiply, multiply if case.bits[1] == 8 else None


class Wrong(Exact):
    name = "Wrong"

    def launches(self, case: Case, operands: Operands, x: Any) -> Any:
        return (lambda i: 2 * x.float() @ operands.weights[i].t()), None


class NoNumber(Exact):
    """Right alone, but not with quantizing its rows."""

    name = "NoNumber"

    def launches(self, case: Case, operands: Operands, x: Any) -> Any:
        multiply, _ = super().launches(case, operands, x)
        return multiply, lambda i: float("nan") * multiply(i)


class Broken(Exact):
    name = "Broken"

    def launches(self, case: Case, operands: Operands, x: Any) -> Any:
        raise ValueError("first line\nno kernel for this")


ENGINES = (Exact, Wrong, NoNumber, Broken)


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a few peers and one product of 64 by 32."""
    cases = (Case("W4A16"), Case("W4A8"))
    turns = [peers.Turn(peer, cases, ((64, 32),), (1, 100)) for peer in ENGINES]
    monkeypatch.setattr(peers, "TURNS", tuple(turns))
    monkeypatch.setattr(peers, "_opened", {})
    monkeypatch.setattr(peers, "_prepared", {})
    peers.items.cache_clear()
    lines = [{"m": m, "n": 32, "k": 64} for m in (1, 100)]
    yield SimpleNamespace(folder=tmp_path, table=[SimpleNamespace(features=f) for f in lines])
    peers.items.cache_clear()


def records_of(kit: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(peers, "pytorch", NoGpu)
    return [
        {"item": i, "name": name, **peers.measure(kit, i)}
        for i, name in enumerate(peers.names(kit))
    ]


def test_every_product_is_checked_and_timed(kit: Any, monkeypatch: pytest.MonkeyPatch):
    """There are no graphs here: the time is that of launches one behind the other."""
    records = records_of(kit, monkeypatch)
    assert [r["name"] for r in records][:2] == [
        "Exact W4A16 K=64 N=32 M=1",
        "Exact W4A16 K=64 N=32 M=100",
    ]
    exact = [r for r in records if r["peer"] == "Exact"]
    assert len(exact) == 4 and all(r["values_agree"] and not r["graph"] for r in exact)
    assert exact[0]["seconds"] == pytest.approx(0.016 / 16) == exact[0]["total_seconds"]
    assert not any(r["values_agree"] for r in records if r["peer"] == "Wrong")
    infinite = [r for r in records if r["peer"] == "NoNumber"]
    assert not any(r["values_agree"] or r["deviation"] for r in infinite)
    broken = [r["failed"] for r in records if r["peer"] == "Broken"]
    assert len(broken) == 4 and all("no kernel for this (launches" in text for text in broken)
    assert report.failures({"peers": records}) == []


def test_a_lost_device_ends_the_worker(kit: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "pytorch", lambda: NoGpu(alive=False))
    number = next(i for i, name in enumerate(peers.names(kit)) if name.startswith("Broken"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        peers.measure(kit, number)


def test_what_ended_a_worker_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Peer, "missing", classmethod(lambda cls, folder: ""))
    peers.items.cache_clear()
    kit = kit_of(tmp_path)
    every = peers.items_of(kit)
    humming = [i for i, item in enumerate(every) if item.peer.name == "humming"]
    first = humming[0]
    assert peers.skip(kit, first, []) == ""
    broken = [{"item": first, "error": "status 3"}]
    assert peers.skip(kit, first + 1, broken) == "W4A16 ended a worker before"
    later = next(i for i in humming if every[i].case == peers.W2A8)
    assert peers.skip(kit, later, broken) == ""
    cases = {every[i].case: i for i in humming}
    broken = [{"item": i, "error": "status 3"} for i in list(cases.values())[:3]]
    last = list(cases.values())[-1]
    assert peers.skip(kit, last, broken) == "3 cases of it ended a worker"
    assert peers.skip(kit, 0, broken) == ""
    peers.items.cache_clear()


def test_a_worker_asks_whether_an_item_is_worth_it(tmp_path: Path):
    def skip(kit: Any, number: int, records: list[dict[str, Any]]) -> str:
        return "as the one before" if records and records[0].get("bad") else ""

    part = Part(lambda kit: ["a", "b"], lambda kit, i: {"bad": True}, False, skip=skip)
    assert work.work(SimpleNamespace(), "peers", 0, 2, tmp_path, part) == 0
    records = work.read(tmp_path / "peers.jsonl")
    assert records[0]["bad"] and records[1]["missing"] == "as the one before"


def test_a_part_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    part = Part(lambda kit: ["a", "b"], lambda kit, i: {}, False, seconds=0.0)
    monkeypatch.setitem(PARTS, "peers", part)
    assert work.supervise(SimpleNamespace(), "peers", tmp_path, None, None) == []
    assert PARTS["table"].seconds == float("inf")


def test_peers_that_are_not_here_say_so(tmp_path: Path):
    peers.items.cache_clear()
    kit = kit_of(tmp_path)
    missing = {item.peer: item.missing for item in peers.items_of(kit) if item.case is None}
    assert missing[Marlin] == "there is no peers/libmarlin.so.xz in the kit"
    number = peers.names(kit).index("Marlin")
    assert peers.measure(kit, number)["missing"] == missing[Marlin]
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "libmarlin.so.xz").touch()
    peers.items.cache_clear()
    assert peers.names(kit)[0] == "Marlin W4A16 K=8192 N=28672 M=1"
    assert len(set(peers.names(kit))) == len(peers.names(kit))
    peers.items.cache_clear()


def test_a_folder_of_peers_goes_into_the_kit(tmp_path: Path):
    peer, kit = tmp_path / "mine", tmp_path / "kit"
    (peer / "cubins").mkdir(parents=True)
    (peer / "cubins" / "a.cubin").write_bytes(b"a")
    kit.mkdir()
    build.copy_peers(peer, kit)
    assert (kit / "peers" / "cubins" / "a.cubin").read_bytes() == b"a"
    with pytest.raises(InputError, match="no folder with other engines"):
        build.copy_peers(tmp_path / "none", kit)


def unpacked(words: np.ndarray, n: int, k: int, rows: Any, word: tuple[int, ...]) -> np.ndarray:
    """Codes [k, n], read word by word as a lane's operands of mma.sync lie."""
    behind, step = rows
    codes = np.zeros((k, n), np.int64)
    flat = words.astype(np.int64) & 0xFFFFFFFF
    for tile in range(k // 16):
        for place, value in enumerate(flat[tile].tolist()):
            block, lane, part = place // 128, place // 4 % 32, place % 4
            for nibble, which in enumerate(word):
                half, index = divmod(which, 4)
                row = 16 * tile + lane % 4 * step + behind[index]
                column = 64 * block + 16 * part + 8 * half + lane // 4
                codes[row, column] = value >> 4 * nibble & 15
    return codes


@pytest.mark.parametrize(("rows", "word"), [(FLOAT_ROWS, PAIRS), (INTEGER_ROWS, HALVES)])
def test_weights_lie_as_marlin_reads_them(rows, word):
    n, k = 128, 32
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
    words = codes_in_order(torch, codes, rows, word)
    assert words.shape == (k // 16, 2 * n)
    np.testing.assert_array_equal(unpacked(words.numpy(), n, k, rows, word), codes.t().numpy())


def test_scales_lie_as_marlin_reads_them():
    scale = torch.arange(128.0).reshape(1, 128)
    assert scales_in_order(scale, True)[0, :3].tolist() == [0, 8, 16]
    assert scales_in_order(scale, False)[0, :9].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2]
    assert sorted(scales_in_order(scale, False)[0].tolist()) == list(range(128))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_are_packed_from_the_lowest_bits(bits):
    codes = torch.randint(0, 2**bits, (3, 64), dtype=torch.int32)
    words = packed(torch, codes, bits).numpy().view(np.uint32)
    each = 32 // bits
    found = words[:, np.arange(64) // each] >> (np.arange(64) % each * bits) & (2**bits - 1)
    np.testing.assert_array_equal(found, codes.numpy())


def test_a_kernel_is_known_by_its_text():
    assert digest("a", "b") == digest("a", "b") != digest("a", None)


def test_ours_beside_the_others(kit: Any, tmp_path: Path):
    product = {"k": 4096, "n": 4096, "m": 1}
    ours = product | {"format": "W4A8", "matmul_seconds": 4e-6, "total_seconds": 5e-6}
    other = product | {"peer": "X", "format": "W4A8", "group": 0, "version": "1", "graph": True}
    fast = other | {"seconds": 8e-6, "total_seconds": 1e-5, "values_agree": True}
    wrong = other | {"seconds": 1e-6, "total_seconds": 1e-6, "values_agree": False}
    records = {
        "table": [ours, ours | {"total_seconds": 9e-6}],
        "baselines": [product | {"kind": "f16", "seconds": 2e-5}],
        "peers": [
            fast,
            wrong | {"peer": "Y", "group": 128, "graph": False},
            {"name": "Z", "peer": "Z", "missing": "it is not in the kit"},
            other | {"failed": "no kernel"},
            {"name": "rest", "error": "not tried: x", "tried": False},
        ],
    }
    head, rows = peer_report.table(records, "W4A8")
    assert head == ["K", "N", "M", "abqc", "cuBLAS f16", "X", "Y g128", "best other / abqc"]
    assert rows == [["4096", "4096", "1", "4.0 / 5.0", "20.0", "8.0 / 10.0", "1.0!*", "2.00"]]
    text = "\n".join(peer_report.section(records))
    assert "1 of 2 products agree" in text and "- Z: it is not in the kit" in text
    assert "- X W4A8: no kernel" in text and "- not tried: x" in text
    machine = {"device": "x", "driver": "y", "date": "z"}
    real = SimpleNamespace(folder=tmp_path, table=[], target="sm_90a", date="now", notes=[])
    report.write(real, machine, {"peers": records["peers"]}, tmp_path)
    assert "## Other engines" in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["failures"] == []
