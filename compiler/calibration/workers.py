"""Who does the work of a calibration: tasks on files of a folder, in several processes.

Nothing passes between tasks but files, and what a task makes depends on nothing else: so whoever
has the files can do it, in any order, and again if he dies. Results come in the order of tasks. A
process computes on one thread, of numpy too, whose results would depend on their number.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from abqc.codegen.processes import end_with_parent
from abqc.errors import CompileError, InputError
from abqc.runtime.environment import NUM_THREADS

HINT = "it is a number of processes, or the scheduler of a cluster: dask:tcp://host:8786"


class Task(Protocol):
    """Picklable work on files. `reads` and `writes` name files of the folder."""

    @property
    def reads(self) -> Sequence[str]: ...
    @property
    def writes(self) -> Sequence[str]: ...

    def run(self, folder: Path) -> Any:
        """Do it; what is returned is picklable and small."""
        ...


class Workers(Protocol):
    """Processes that do tasks."""

    @property
    def count(self) -> int:
        """How many tasks they do at a time."""
        ...

    def map(self, tasks: Sequence[Task], folder: Path, at_once: int | None = None) -> Iterator[Any]:
        """What each task returns, in their order; its files lie in `folder` by then.

        At most `at_once` are worked on, or lie done, at a time. Raises what a task raises, and
        CompileError where processes die.
        """
        ...

    def close(self) -> None: ...


def check_workers(text: str | int | None) -> None:
    """Raise InputError unless `text` says who does the work, as `HINT` has it; None may be, too."""
    if text is None:
        return
    words = str(text)
    if words.startswith("dask:") and words != "dask:":
        return
    if not words.isdecimal() or not int(words):
        raise InputError(f"'{text}' says nothing of who calibrates", hint=HINT)


def open_workers(text: str | int | None) -> Workers:
    """The workers that `text` asks for, which the caller closes; None: a process for each thread
    that runs would take.

    Raises InputError for what is no text of workers, CompileError for a cluster that is not there.
    """
    check_workers(text)
    if text is not None and str(text).startswith("dask:"):
        from .dask_workers import DaskWorkers

        return DaskWorkers(str(text).removeprefix("dask:"))
    if text is None:
        return Processes(NUM_THREADS.get() or len(os.sched_getaffinity(0)))
    return Processes(int(text))


class Processes:
    """Processes of this machine, forked from this one when there is first something to do."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._all: list[_Process] = []

    def map(self, tasks: Sequence[Task], folder: Path, at_once: int | None = None) -> Iterator[Any]:
        waiting, done = deque(enumerate(tasks)), dict[int, Any]()
        limit = at_once or len(tasks)
        busy: dict[Any, tuple[_Process, int]] = {}  # by connection
        idle = self._processes(min(self.count, len(tasks)))

        def hand_out(first: int) -> None:
            while idle and waiting and waiting[0][0] < first + limit:
                at, task = waiting.popleft()
                process = idle.pop()
                process.send(task, folder)
                busy[process.connection] = process, at

        try:
            for number in range(len(tasks)):
                hand_out(number)
                while number not in done:
                    for ready in multiprocessing.connection.wait(list(busy)):
                        process, at = busy.pop(ready)
                        done[at] = process.receive()
                        idle.append(process)
                    hand_out(number)
                yield done.pop(number)
        finally:
            if busy:  # something was raised: nobody will ask for what they do
                self.close()

    def _processes(self, count: int) -> list[_Process]:
        while len(self._all) < count:
            self._all.append(_Process(self._all))
        return self._all[:count]

    def close(self) -> None:
        for process in self._all:
            process.end()
        self._all.clear()


class _Process:
    """A process that does one task after the other."""

    def __init__(self, others: Sequence[_Process]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        ours = [self.connection, *(other.connection for other in others)]
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(theirs, ours), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, task: Task, folder: Path) -> None:
        try:
            self.connection.send((task, folder))
        except (BrokenPipeError, ConnectionError) as error:
            raise self._death() from error

    def receive(self) -> Any:
        try:
            error, answer = self.connection.recv()
        except (EOFError, ConnectionError) as lost:
            raise self._death() from lost
        if error is not None:
            raise error
        return answer

    def _death(self) -> CompileError:
        self._process.join()
        status = self._process.exitcode or 0
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return CompileError(
            f"a process of the calibration died ({how})",
            hint="the system may be out of memory: --calib-workers 1 takes least",
        )

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, not_ours: Sequence[Connection]) -> None:
    """In the process: tasks until the other end is closed."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    for other in not_ours:
        other.close()
    while True:
        try:
            task, folder = connection.recv()
        except (EOFError, ConnectionError):
            return
        failure: Exception | None = None
        answer = None
        try:
            answer = task.run(folder)
        except Exception as error:
            failure = sendable(error)
        connection.send((failure, answer))


def sendable(error: Exception) -> Exception:
    """The error for another process, with its traceback as a note."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return CompileError(f"{type(error).__name__}: {error}")
    return error
