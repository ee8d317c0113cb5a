"""Work in forked children: what crashes, hangs or aborts there is a result, not the end of the run.

The parent has imported everything, so a child costs a fork. A child has a folder, its process group
and a limit on memory of its own; group and folder are gone when its result is handed out.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = dict[str, Any]

MEMORY = 12 << 30  # bytes of address space of a child beyond what its parent had
PATIENCE = 10  # seconds by the clock for each of the processor
_POLL = 0.02  # seconds


@dataclass
class _Child:
    pid: int
    task: Any
    folder: Path
    started: float


def run_isolated(
    tasks: Iterable[Task],
    work: Callable[[Task, Path], Result],
    *,
    workers: int = 2,
    timeout: float = 60,
) -> Iterator[tuple[Task, Result]]:
    """`work(task, folder)` of each task in a child of its own, `workers` at a time, as they end.

    A child that raises, dies or takes more than `timeout` seconds (of the processor, or ten times
    that of the clock, for the machine may be busy) gives {"status": "crash" or "time-out",
    "message": ...}; every result has "seconds", by the clock.
    """
    waiting = iter(tasks)
    running: list[_Child] = []
    exhausted = False
    try:
        while True:
            while not exhausted and len(running) < workers:
                task = next(waiting, None)
                if task is None:
                    exhausted = True
                else:
                    running.append(_start(task, work, timeout))
            if not running:
                return
            for child in list(running):
                status = _ended(child, timeout)
                if status is not None:
                    running.remove(child)
                    yield child.task, _result(child, status, timeout)
            time.sleep(_POLL)
    finally:
        for child in running:
            _kill(child)
            os.waitpid(child.pid, 0)
            shutil.rmtree(child.folder, ignore_errors=True)


def _start(task: Any, work: Callable[[Any, Path], Result], timeout: float) -> _Child:
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(task, work, folder, timeout)
    return _Child(pid, task, folder, time.monotonic())


def _child(task: Any, work: Callable[[Any, Path], Result], folder: Path, timeout: float) -> None:
    """What the child does; it leaves through os._exit, so that nothing of the parent's runs."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
        seconds = math.ceil(timeout)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            result = work(task, folder)
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            result = {"status": "crash", "message": f"{type(error).__name__}: {error}"[:500]}
            result["traceback"] = text[-3000:]
        (folder / "result.tmp").write_text(json.dumps(result))
        (folder / "result.tmp").rename(folder / "result.json")
        os._exit(0)
    finally:
        os._exit(70)


def _ended(child: _Child, timeout: float) -> int | None:
    """The exit status of a child that has ended, or was ended now for its time is over."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid:
        _kill(child)  # what it may have left behind
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() - child.started <= PATIENCE * timeout:
        return None
    _kill(child)
    os.waitpid(child.pid, 0)
    return -signal.SIGXCPU


def _kill(child: _Child) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _result(child: _Child, status: int, timeout: float) -> Result:
    try:
        path = child.folder / "result.json"
        if path.exists():
            result = json.loads(path.read_text())
        elif status == -signal.SIGXCPU:
            result = {"status": "time-out", "message": f"not done in {timeout:g} s"}
        else:
            how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            result = {"status": "crash", "message": f"{how}: {_last_words(child.folder)}"}
    finally:
        shutil.rmtree(child.folder, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - child.started, 2)
    return result


def _last_words(folder: Path) -> str:
    """The line of the log that says most: an assertion, or the last one."""
    log = folder / "log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    for line in lines:
        if "Assertion" in line or "LLVM ERROR" in line:
            return line[-300:]
    return lines[-1][-300:] if lines else "no message"


def _address_space() -> int:
    """The bytes that this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
