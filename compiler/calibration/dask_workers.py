"""Calibration by a cluster of Dask (https://distributed.dask.org): files travel with the tasks.

A task is sent with what it reads and answered with what it writes, so that a worker may be anywhere
and may be lost: Dask gives its tasks to another one.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
from abqc import __version__
from abqc.errors import AbqcError, CompileError
from abqc.runtime.environment import asks_for_one_thread

from .kept import sources_digest
from .runs import own_isa
from .tasks import forget_libraries
from .workers import Task

CONNECT_SECONDS = 10
WORKERLESS_SECONDS = 60  # that a cluster may be without workers: those that die are started again
AHEAD = 2  # tasks for each thread of the cluster: one is sent while another is worked on


class DaskWorkers:
    """The workers of a cluster, by the address of its scheduler.

    Raises CompileError where there is no such cluster, or a worker that would compute other bits.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise CompileError(
                "calibrating by Dask needs the package distributed",
                hint="pip install distributed, here and where the workers are",
            ) from error
        self._distributed = distributed
        self._address = address
        try:
            # Its thread talks to the scheduler and holds nothing that forks of this process need.
            self._client = distributed.Client(
                address, timeout=CONNECT_SECONDS, set_as_default=False
            )
        except (OSError, ValueError) as error:
            raise CompileError(
                f"there is no scheduler of Dask at '{address}'",
                hint="start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
            ) from error
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        found = self._client.run(_as_worker, on_error="return")
        if not found:
            raise CompileError(
                f"the cluster at '{self._address}' has no workers",
                hint=f"start them with `dask worker {self._address}`",
            )
        for worker, answer in sorted(found.items()):
            if isinstance(answer, AbqcError):
                raise answer
            if isinstance(answer, Exception):  # it cannot import abqc, or not this part of it
                raise CompileError(
                    f"the worker {worker} cannot calibrate: {answer}",
                    hint="install the same version of abqc there as here",
                )
            _compare(answer, identity(), worker)

    @property
    def count(self) -> int:
        return max(1, sum(self._client.nthreads().values()))

    def map(self, tasks: Sequence[Task], folder: Path, at_once: int | None = None) -> Iterator[Any]:
        limit = min(AHEAD * self.count, at_once or len(tasks))
        counts = Counter(file for task in tasks for file in task.reads)
        common = {
            file: self._client.scatter((folder / file).read_bytes(), hash=False, broadcast=True)
            for file, count in counts.items()
            if count > 1
        }
        waiting, sent = deque(tasks), deque[tuple[Task, Any]]()
        while waiting or sent:
            while waiting and len(sent) < limit:
                task = waiting.popleft()
                sent.append((task, self._send(task, folder, common)))
            task, future = sent.popleft()
            answer, files = self._result(future)
            for name, content in zip(task.writes, files, strict=True):
                (folder / name).write_bytes(content)
            yield answer

    def _send(self, task: Task, folder: Path, common: dict[str, Any]) -> Any:
        reads = list(task.reads)
        contents = [
            common[name] if name in common else (folder / name).read_bytes() for name in reads
        ]
        with warnings.catch_warnings():
            # It would have what is large scattered, but that is lost with the worker that has it.
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self._client.submit(_do, task, identity(), reads, *contents, pure=False)

    def _result(self, future: Any) -> Any:
        deadline = time.monotonic() + WORKERLESS_SECONDS
        try:
            while True:
                try:
                    return future.result(timeout=1)
                except TimeoutError:
                    now = time.monotonic()
                    if self._client.nthreads():
                        deadline = now + WORKERLESS_SECONDS
                    if now > deadline:
                        raise CompileError(
                            f"the cluster at '{self._address}' has lost all its workers",
                            hint="start some and compile again: what is done has been kept",
                        ) from None
        except self._distributed.scheduler.KilledWorker as error:
            raise CompileError(
                f"workers of the cluster at '{self._address}' died of a task: {error}",
                hint="they may be out of memory; their logs say more",
            ) from error
        except (OSError, CancelledError) as error:
            raise CompileError(
                f"the scheduler of Dask at '{self._address}' is gone",
                hint="compile again: what is done has been kept",
            ) from error

    def close(self) -> None:
        self._client.close()


def identity() -> tuple[str, str, str, str]:
    """What the bits of a result depend on: abqc, its sources, numpy, the instruction set."""
    return __version__, sources_digest().hex(), np.__version__, own_isa().name


def _as_worker() -> tuple[str, str, str, str]:
    """The identity of a worker. CompileError where its numpy may compute on several threads."""
    if not asks_for_one_thread():
        raise CompileError(
            "numpy may compute on several threads in a worker of Dask, and then not the same bits",
            hint="start workers with their nanny, or with OMP_NUM_THREADS=1",
        )
    return identity()


def _compare(theirs: tuple[str, ...], ours: tuple[str, ...], worker: str) -> None:
    """Raise CompileError where a worker is not like this process."""
    what = ("abqc", "abqc's sources", "numpy", "instruction set")
    for name, there, here in zip(what, theirs, ours, strict=True):
        if there != here:
            raise CompileError(
                f"the worker {worker} would compute other bits: its {name} is {there}, here {here}",
                hint="ABQC_ISA chooses an instruction set that all have"
                if name == "instruction set"
                else "install the same version there as here",
            )


def _do(
    task: Task, ours: tuple[str, ...], reads: Sequence[str], *contents: bytes
) -> tuple[Any, list[bytes]]:
    """On a worker: the task's answer, and the files that it writes."""
    _compare(_as_worker(), ours, "that came late")
    with tempfile.TemporaryDirectory(prefix="abqc-") as name:
        folder = Path(name)
        for file, content in zip(reads, contents, strict=True):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for file in task.writes:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            answer = task.run(folder)
        finally:
            forget_libraries()  # another task's folder may have the same name
        return answer, [(folder / file).read_bytes() for file in task.writes]
