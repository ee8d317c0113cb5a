"""Who calibrates: processes of this machine, a cluster. The result is the same."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import pytest
from abqc.compiler import job
from abqc.compiler.calibration.libraries import Libraries
from abqc.compiler.calibration.tasks import chunks_of, shares
from abqc.compiler.calibration.workers import Processes, open_workers
from abqc.errors import CompileError, InputError, RecipeError
from abqc.runtime.environment import cache_folder
from onnx_models import model as small_model
from onnx_models import node, save


@dataclass(frozen=True)
class Square:
    """The square of a number in a file, to another file; `do` says what else happens."""

    number: int
    do: str = ""
    reads: list[str] = field(default_factory=lambda: ["numbers.npy"])

    @property
    def writes(self) -> list[str]:
        return [f"squares/{self.number}.npy"]

    def run(self, folder: Path) -> int:
        if self.do == "raise":
            raise InputError("it is odd", node="one", hint="take another")
        if self.do == "raise strangely":
            error = ValueError("strange")
            error.why = lambda: None  # type: ignore[attr-defined]
            raise error
        if self.do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "wait":
            time.sleep(60)
        time.sleep(0.01 * (self.number % 3))  # they end in another order
        numbers = np.load(folder / "numbers.npy")
        np.save(folder / self.writes[0], numbers[self.number] ** 2)
        return os.getpid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "numbers.npy", np.arange(20) + 100)
    (tmp_path / "squares").mkdir()
    return tmp_path


@pytest.fixture
def processes() -> Iterator[Processes]:
    workers = Processes(3)
    yield workers
    workers.close()


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it is met within ten seconds."""
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.1)
    return False


def children() -> set[int]:
    own = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    return set(map(int, Path(own).read_text().split()))


@pytest.mark.parametrize("at_once", [None, 1, 2, 7])
def test_results_come_in_the_order_of_tasks(
    processes: Processes, folder: Path, at_once: int | None
) -> None:
    done = []
    for number, pid in enumerate(processes.map([Square(i) for i in range(20)], folder, at_once)):
        assert np.load(folder / f"squares/{number}.npy") == (number + 100) ** 2
        if at_once is not None:
            assert len(list((folder / "squares").glob("*"))) <= number + at_once
        done.append(pid)
    assert len(done) == 20 and os.getpid() not in done
    assert list(processes.map([], folder)) == []


def test_a_task_that_fails_ends_all(processes: Processes, folder: Path) -> None:
    before = children()
    with pytest.raises(InputError, match="it is odd") as raised:
        list(processes.map([Square(0, "wait"), Square(1, "raise")], folder))
    list(processes.map([Square(0)], folder))  # and new ones can be had
    assert raised.value.node == "one" and raised.value.hint == "take another"
    assert "test_calibration_workers.py" in raised.value.__notes__[0]
    with pytest.raises(CompileError, match="ValueError: strange"):
        list(processes.map([Square(0, "raise strangely")], folder))
    processes.close()
    assert children() == before


def test_a_process_that_dies_is_an_error(processes: Processes, folder: Path) -> None:
    with pytest.raises(CompileError, match=r"died \(SIGKILL\)") as raised:
        list(processes.map([Square(0, "die"), Square(1)], folder))
    assert "out of memory" in str(raised.value)


def test_processes_end_with_the_one_that_made_them() -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from abqc.compiler.calibration.workers import Processes\n"
        "workers = Processes(2)\n"
        "workers._processes(2)\n"
        "print(*(process.pid for process in workers._all), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = parent.stdout.readline().split()
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@dataclass(frozen=True)
class Compiled:
    """In the place of a part of a model."""

    do: str = ""

    def compile(self) -> bytes:
        if self.do == "raise":
            raise RecipeError("no kernel can do it", node="one")
        if self.do == "wait":
            time.sleep(60)
        return pickle.dumps((self.do.encode(), ("x",), ("y", "z")))


def test_libraries_are_compiled_ahead(tmp_path: Path) -> None:
    before = children()
    parts: list[Any] = [Compiled(do) for do in ("a", "raise", "wait")]
    with Libraries(tmp_path) as libraries:
        numbers = [libraries.begin([part, part]) for part in parts]
        with pytest.raises(RecipeError, match="no kernel can do it") as raised:
            libraries.finish(numbers[1])
        assert raised.value.node == "one"
        found = [*libraries.finish(numbers[0]), libraries.compile(parts[0])]
        assert len({library.file for library in found}) == 3
        for library in found:
            assert (library.inputs, library.outputs) == (("x",), ("y", "z"))
            assert (tmp_path / library.file).read_bytes() == b"a"
    assert children() == before


def test_what_is_no_text_of_workers(tmp_path: Path) -> None:
    for text in ("0", "-1", "many", "dask:", "ray:auto", "", 0):
        with pytest.raises(InputError, match="says nothing of who calibrates"):
            open_workers(text)
    onnx = products(tmp_path)
    with pytest.raises(InputError, match="says nothing of who calibrates"):
        abqc.compile(onnx, quant="w4a8", calib=samples(), calib_workers="many")
    with pytest.raises(InputError, match="workers calibrate with data"):
        abqc.compile(onnx, quant="w4a8", calib_workers=2)


def test_chunks_are_of_all_batches() -> None:
    for count in (1, 2, 15, 16, 17, 100):
        chunks = chunks_of([None] * count)
        assert [b for chunk in chunks for b in chunk.batches] == list(range(count))
        assert len(chunks) == min(count, 16) and all(chunk.batches for chunk in chunks)
        for workers in (1, 2, 3, 16):
            tasks = shares(chunks, workers)
            assert [chunk for share in tasks for chunk in share] == chunks
            assert len(tasks) >= min(workers, len(chunks))


WIDTH = 24


def products(tmp_path: Path) -> Path:
    """y = h + c2(relu(c1(h))), h = c0 x + x."""
    rng = np.random.default_rng(0)
    constants = {
        f"c{number}": (rng.standard_normal((WIDTH, WIDTH)) / 5).astype(np.float32)
        for number in range(3)
    }
    nodes = [
        node("MatMul", "x c0", "p0", "first"),
        node("Add", "x p0", "h"),
        node("MatMul", "h c1", "p1", "second"),
        node("Relu", "p1", "r"),
        node("MatMul", "r c2", "p2", "third"),
        node("Add", "h p2", "y"),
    ]
    x, y = (("x", np.float32, ["m", WIDTH]), ("y", np.float32, ["m", WIDTH]))
    return save(small_model(nodes, [x], [y], constants), tmp_path)


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((2048, WIDTH)).astype(np.float32)}


def calibrated(
    folder: Path, workers: Any, progress: Any = None, *, keep: bool = False
) -> dict[str, Any]:
    """What is kept of a calibration, by file; with `keep` it takes what is kept already."""
    onnx, kept = products(folder), cache_folder() / "calibration"
    options: dict[str, Any] = {"calib": samples(), "output": folder / "m.so"}
    if not keep:
        shutil.rmtree(kept, ignore_errors=True)
    options["progress"] = progress
    abqc.compile(onnx, quant="w3 a8:tensor gptq", calib_workers=workers, **options)
    found: dict[str, Any] = {}
    for file in kept.glob("*/*.npz"):
        with np.load(file) as arrays:
            found |= {f"{file.parent.name}/{file.name}: {n}": arrays[n] for n in arrays.files}
    return found


def assert_same(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    assert expected.keys() == actual.keys() and len(expected) > 3
    for name, array in expected.items():
        np.testing.assert_array_equal(array, actual[name], err_msg=name)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes."""
    return calibrated(tmp_path_factory.mktemp("by_one"), 1)


def in_session(leader: int) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):  # it ended just now
            if os.getsid(int(entry.name)) == leader:
                found.add(int(entry.name))
    return found


def test_an_interrupted_calibration_goes_on(by_one: dict[str, Any], tmp_path: Path) -> None:
    """It leaves no process behind. The codes are the same whatever the number of processes."""
    seen: list[set[int]] = []

    def interrupt(step: str, done: int, total: int) -> None:
        if step == "calibrate" and done == 2:
            assert job.SERVER._process is not None
            seen.append(in_session(job.SERVER._process.pid))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(tmp_path, 3, interrupt)
    assert job.SERVER._process is not None
    server = job.SERVER._process.pid
    assert len(seen[0]) >= 5  # it, the job, three processes
    assert soon(lambda: in_session(server) == {server})
    kept = list((cache_folder() / "calibration").glob("*/*.npz"))
    assert 0 < len(kept) < 3
    oldest = min(file.stat().st_mtime_ns for file in kept)
    assert_same(by_one, calibrated(tmp_path, 2, keep=True))
    assert oldest in [file.stat().st_mtime_ns for file in kept]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        yield cluster


@pytest.mark.slow
def test_a_cluster_makes_the_same_codes(
    cluster: Any, by_one: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(by_one, calibrated(tmp_path, f"dask:{cluster.scheduler_address}"))


@pytest.mark.slow
def test_a_cluster_does_tasks(cluster: Any, folder: Path) -> None:
    workers = open_workers(f"dask:{cluster.scheduler_address}")
    try:
        tasks = [Square(i) for i in range(20)]
        for number, pid in enumerate(workers.map(tasks, folder)):
            assert np.load(folder / f"squares/{number}.npy") == (number + 100) ** 2
            assert pid != os.getpid()
        with pytest.raises(InputError, match="it is odd") as raised:
            list(workers.map([Square(0), Square(1, "raise")], folder))
        assert raised.value.node == "one"
        with pytest.raises(CompileError, match="died of a task"):
            list(workers.map([Square(0, "die")], folder))
    finally:
        workers.close()


@pytest.mark.slow
def test_a_cluster_that_cannot_be_used(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dask_workers = pytest.importorskip("abqc.compiler.calibration.dask_workers")
    address = f"dask:{cluster.scheduler_address}"
    ours = dask_workers.identity()
    monkeypatch.setattr(dask_workers, "identity", lambda: (*ours[:2], "0.1", ours[3]))
    with pytest.raises(CompileError, match=r"its numpy is .*, here 0\.1"):
        open_workers(address)
    monkeypatch.undo()
    monkeypatch.setattr(dask_workers, "CONNECT_SECONDS", 1)
    with pytest.raises(CompileError, match="there is no scheduler of Dask at"):
        open_workers("dask:tcp://127.0.0.1:1")
