"""Where the time of runs goes: launches that a run notes, the tables and the trace of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler import cli
from abqc.compiler.profiling import Row, alike, break_down, profile_runs, trace
from abqc.errors import AbqcError, InputError
from abqc.runtime.model import Model
from abqc.runtime.profile import LAUNCH, Profile
from front_end import image_graph

DIGITS = Path(__file__).parent / "models" / "data" / "digits_mlp.onnx"


@pytest.fixture(scope="module")
def library(compiled: Callable[[str, str], Path]) -> Path:
    return compiled("digits_mlp", "w8a8")


@pytest.fixture(scope="module")
def model(library: Path) -> Model:
    return abqc.load(library)


def images(rows: int) -> list[np.ndarray]:
    return [np.linspace(0, 1, rows * 64, dtype=np.float32).reshape(rows, 64)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_notes_its_launches_in_order(model: Model, threads: int) -> None:
    profile = Profile()
    begin = time.monotonic_ns()
    profiled = model.run(images(7), profile=profile, threads=threads)
    end = time.monotonic_ns()
    launches = profile.launches
    assert len(launches) > 1 and profile.missing == 0
    times = np.stack([launches["begin"], launches["end"]], 1).ravel()
    assert begin <= times[0] and times[-1] <= end and (np.diff(times) >= 0).all()
    for actual, expected in zip(profiled, model.run(images(7)), strict=True):
        assert np.array_equal(actual, expected)

    table = model.manifest["launches"]
    products = {op["node"]: op for op in model.manifest["ops"]}
    seen = {}
    for launch in launches:
        entry = table[launch["launch"]]
        symbol = products.get(entry["node"], {}).get("symbol")
        if symbol in entry["weights"]:
            assert launch["rows"] == 7
            seen[entry["node"]] = entry["bytes"]
    assert seen.keys() == products.keys()
    assert all(seen[node] >= products[node]["bytes"] for node in seen)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_have_operations_and_limits(groups: int, tmp_path: Path) -> None:
    graph = image_graph.Graph(channels=8)
    weight, attributes = graph.constant(16, 8 // groups, 3, 3), {"group": groups, "strides": [2, 2]}
    graph.add("Conv", "x", weight, name="conv", **attributes)
    onnx.save(graph.model(), tmp_path / "model.onnx")
    model = abqc.compile(tmp_path / "model.onnx", cpu="native")
    (feeds,) = image_graph.images(graph, (3, 8, 41, 33))
    runs, spans = profile_runs(lambda profile: model.run(feeds, profile=profile), 0.0)
    found = break_down(model.manifest, runs, spans, isa="avx2", threads=1)
    (row,) = [row for row in found.kernels if row.name.startswith("direct_conv")]
    assert row.operations == 2 * (3 * 20 * 16) * 16 * (8 // groups * 9)
    assert row.limit is not None and row.limit > 0


def test_each_run_begins_anew(model: Model) -> None:
    profile = Profile()
    model.run(images(1), profile=profile)
    count = len(profile.launches)
    model.run(images(1), profile=profile)
    assert len(profile.launches) == count


def test_launches_without_room_are_counted(model: Model) -> None:
    whole, small = Profile(), Profile(capacity=1)
    model.run(images(3), profile=whole)
    model.run(images(3), profile=small)
    assert len(small.launches) == 1 and small.missing == len(whole.launches) - 1
    assert small.launches["launch"][0] == whole.launches["launch"][0]
    model.run(images(3), profile=Profile(capacity=0))


def test_an_older_library_has_no_launches(library: Path) -> None:
    model = abqc.load(library)
    del model.manifest["launches"]
    with pytest.raises(InputError, match="cannot be timed"):
        model.run(images(1), profile=Profile())


def test_launches_on_a_gpu_are_not_timed(tmp_path: Path) -> None:
    model = abqc.compile(DIGITS, target="sm_80", output=tmp_path / "gpu.so", device="ptx-vm")
    assert "launches" not in model.manifest
    with pytest.raises(InputError, match="compile it again for the CPU"):
        model.run(images(1), profile=Profile())
    model.manifest["launches"] = []
    with pytest.raises(InputError, match="launches on a GPU are not timed"):
        model.run(images(1), profile=Profile())


# ---- tables ----

TABLE = {
    "launches": [
        {"node": "embed", "kernel": "gather", "weights": ["table"], "bytes": None},
        {"node": "layers.0.up", "kernel": "pack", "weights": [], "bytes": 0},
        {"node": "layers.0.up", "kernel": "float_m1", "weights": ["up"], "bytes": 4096},
        {"node": "layers.1.up", "kernel": "pack", "weights": [], "bytes": 0},
        {"node": "layers.1.up", "kernel": "float_m1", "weights": ["up"], "bytes": 4096},
        {"node": "never", "kernel": "loops_1", "weights": [], "bytes": 0},
    ],
    "ops": [
        {"symbol": "up", "n": 32, "k": 32, "weight": "float", "activation": "f32",
         "strategy": "float", "bytes": 4096}
    ],
    "float": [],
    "bytes": {"weights": 50 << 20},
}  # fmt: skip


def records(*rows: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(list(rows), LAUNCH)


RUN = records(
    (0, 0, 100, 200), (1, 0, 200, 300), (2, 5, 300, 1300), (3, 0, 1400, 1500), (4, 5, 1500, 2700)
)


def test_time_by_node_and_by_kernel() -> None:
    slow = RUN.copy()
    slow["end"] += 5000
    found = break_down(
        TABLE, [RUN, RUN, slow], [(0, 3000), (0, 3000), (0, 90000)], isa="avx2", threads=1
    )
    assert found.runs == 3 and found.seconds == pytest.approx(3e-6)
    assert found.outside == pytest.approx(500e-9)
    assert found.accounted == pytest.approx(3e-6)
    assert [row.name for row in found.nodes] == ["layers.1.up", "layers.0.up", "embed"]
    first = found.nodes[0]
    assert (first.calls, first.bytes, first.operations) == (2, 4096, 2 * 5 * 32 * 32)
    assert first.seconds == pytest.approx(1300e-9) and first.parts == ("pack", "float_m1")
    rates = 105e9, 22e9  # of arithmetic, and of DRAM, where weights of 50 MiB lie
    assert first.limit == pytest.approx(max(first.operations / rates[0], 4096 / rates[1]), rel=0.3)
    assert found.nodes[2].bytes is None and found.nodes[2].limit is None
    assert [(k.name, k.calls) for k in found.kernels] == [
        ("float_m1", 2),
        ("pack", 2),
        ("gather", 1),
    ]
    assert found.kernels[0].parts == ("layers.0.up", "layers.1.up")
    assert json.loads(json.dumps(found.as_dict()))["nodes"][0]["name"] == "layers.1.up"


def test_an_instruction_set_that_is_not_described_has_no_limit() -> None:
    found = break_down(TABLE, [RUN], [(0, 3000)], isa="new", threads=1)
    assert all(row.limit is None for row in found.nodes)


def test_nodes_that_are_alike_are_one_row() -> None:
    rows = [
        Row("layers.0.up", ("float",), 1, 1.0, 8),
        Row("layers.1.up", ("float",), 1, 2.0, 8),
        Row("layers.2.up", ("int8",), 1, 4.0, 8),
        Row("head", ("float",), 1, 3.5, 8),
    ]
    found = alike(rows)
    assert [(row.name, row.calls, row.seconds) for row in found] == [
        ("layers.2.up", 1, 4.0), ("head", 1, 3.5), ("layers.*.up (2)", 2, 3.0)
    ]  # fmt: skip


def test_a_run_with_more_launches_than_can_be_noted() -> None:
    def run(profile: Any) -> None:
        profile._table.count = 1 << 20

    with pytest.raises(AbqcError, match="launches more than are noted"):
        profile_runs(run, 0.0)


def test_a_trace_has_runs_and_launches() -> None:
    events = json.loads(trace(TABLE, [RUN, RUN], [(50, 3050), (4000, 7000)]))["traceEvents"]
    assert [e["name"] for e in events if e["cat"] == "run"] == ["run 0", "run 1"]
    launch = events[3]
    assert (launch["name"], launch["ts"], launch["dur"]) == ("layers.0.up", 0.25, 1.0)
    assert launch["args"] == {"kernel": "float_m1", "rows": 5} and launch["ph"] == "X"


# ---- the command ----


def test_bench_profiles(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.json"
    arguments = ["bench", str(library), "--shape", "X=9x64", "--seconds", "0.05", "--profile"]
    assert cli.main([*arguments, str(file)]) == 0
    text = capsys.readouterr().out
    nodes = {op["node"] for op in abqc.load(library).manifest["ops"]}
    assert all(node in text for node in nodes)
    assert "ms a run (median of" in text and "limit, us (Zen 4)" in text
    events = json.loads(file.read_text())["traceEvents"]
    assert nodes <= {event["name"] for event in events}

    assert cli.main([*arguments, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert nodes <= {row["name"] for row in profile["nodes"]}
    assert profile["runs"] >= 5 and profile["outside"] > 0


def test_a_trace_that_cannot_be_written(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "absent" / "trace.json"
    arguments = ["bench", str(library), "--shape", "X=9x64", "--seconds", "0.05"]
    assert cli.main([*arguments, "--profile", str(file)]) == 1
    assert f"cannot write {file}" in capsys.readouterr().err
