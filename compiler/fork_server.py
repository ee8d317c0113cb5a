"""The server whose forks do the work: it imports a module once, for all jobs.

    python -P -m abqc.compiler.fork_server FD MODULE:FUNCTION

FD is a socket to the client (`fork_client.py`). One byte on it, with the descriptors of a job's
socket and log, is a job; the job's socket then carries a pickled `Job`. The server forks, and the
child calls FUNCTION(request, say): `say` sends a dict as a line of JSON. When the child has ended,
{"exit": status} follows, negative for a signal, and the socket closes. A client that closes its end
ends the job: its process group is killed and its scratch files are removed. The end of the client
ends all jobs and the server.

The server has one thread, so that a fork finds no lock held by another.

A client that has a second job may have many: the server then does what MODULE lists as
PREPARATIONS, functions without arguments, one at a time where it would only wait. They import and
build what some jobs need, so that later ones find it done.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import resource
import selectors
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from abqc.codegen.processes import end_with_parent
from abqc.runtime.environment import adopt

T = TypeVar("T")

Say = Callable[[dict[str, Any]], None]
Work = Callable[[Any, Say], None]


@dataclass(frozen=True)
class Job:
    """A request, and the surroundings that its process takes over from the client.

    `scratch` are the files and directories that must not outlive the job.
    """

    request: Any
    directory: str
    environment: dict[str, str]
    umask: int
    scratch: tuple[Path, ...]


class Server:
    """Forks a process for every job and tells the client how each ended."""

    def __init__(
        self,
        control: socket.socket,
        work: Work,
        preparations: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.control = control
        self.work = work
        self.preparations = list(preparations)
        self.begun = 0  # jobs
        self.jobs: dict[int, tuple[socket.socket, Job]] = {}  # by process
        self.wakeup, self.wakes = os.pipe()
        self.selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until the client is gone."""
        for end in (self.wakeup, self.wakes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.selector.register(self.control, selectors.EVENT_READ, self._accept)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self._reap)
        while self.control.fileno() >= 0:
            prepares = bool(self.preparations) and self.begun > 1
            events = self.selector.select(0 if prepares else None)
            for key, _ in events:
                key.data()
            if prepares and not events:
                with contextlib.suppress(Exception):  # a job that needs it will say what is wrong
                    _load(self.preparations.pop(0))

    def _accept(self) -> None:
        byte, descriptors, _, _ = socket.recv_fds(self.control, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not byte:
            self._leave()
            return
        connection, log = socket.socket(fileno=descriptors[0]), descriptors[1]
        try:
            job = _read_job(connection)
            if job is not None:
                self._fork(job, connection, log)
        finally:
            os.close(log)

    def _fork(self, job: Job, connection: socket.socket, log: int) -> None:
        self.begun += 1
        pid = os.fork()
        if pid == 0:
            self._become_worker(job, connection, log)
        self.jobs[pid] = connection, job
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._end(pid))

    def _become_worker(self, job: Job, connection: socket.socket, log: int) -> None:
        """In the child; never returns."""
        status = 1
        try:
            _detach(log)
            self._close_all_but(connection)
            os.chdir(job.directory)
            os.umask(job.umask)
            adopt(job.environment)

            def say(message: dict[str, Any]) -> None:
                connection.sendall(json.dumps(message).encode() + b"\n")

            self.work(job.request, say)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _close_all_but(self, connection: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        self.selector.close()
        self.control.close()
        os.close(self.wakeup)
        os.close(self.wakes)
        for other, _ in self.jobs.values():
            other.close()

    def _reap(self) -> None:
        """Children have ended: tell the clients how."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 4096)
        for pid in list(self.jobs):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                self._end(pid)

    def _end(self, pid: int) -> None:
        """A child has ended, or its client closed the socket and wants no more of it."""
        if pid not in self.jobs:  # both, one after the other
            return
        connection, job = self.jobs.pop(pid)
        _kill_group(pid)  # with what it started and left running
        _, status = os.waitpid(pid, 0)
        for path in job.scratch:
            remove(path)
        self.selector.unregister(connection)
        with contextlib.suppress(OSError):  # the client may be gone
            end = {"exit": os.waitstatus_to_exitcode(status)}
            connection.sendall(json.dumps(end).encode() + b"\n")
        connection.close()

    def _leave(self) -> None:
        for pid in list(self.jobs):
            self._end(pid)
        self.selector.unregister(self.control)
        self.control.close()


def _read_job(connection: socket.socket) -> Job | None:
    """None if the client gave up before it had said what to do; the connection is closed then."""
    try:
        with connection.makefile("rb", buffering=0) as stream:
            job: Job = pickle.load(stream)
            return job
    except (EOFError, OSError, pickle.UnpicklingError):
        connection.close()
        return None


def remove(path: Path) -> None:
    """Remove a file or a directory with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _detach(log: int) -> None:
    """A process group of its own, output into the log, no core dumps."""
    end_with_parent()
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # it may not have made its group yet


def _load(load: Callable[[], T]) -> T:
    """What `load` gives, which imports."""
    gc.disable()  # imports leave little garbage, and a collection would look at all of them
    try:
        return load()
    finally:
        gc.freeze()  # what is imported is shared by all forks, and no collection touches it
        gc.enable()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides
    control = socket.socket(fileno=int(sys.argv[1]))
    name, _, function = sys.argv[2].partition(":")
    module = _load(lambda: importlib.import_module(name))
    work, preparations = getattr(module, function), getattr(module, "PREPARATIONS", ())
    Server(control, work, preparations).serve()
    os._exit(0)  # without taking all that is imported apart


if __name__ == "__main__":
    # Under this name the classes are other ones than those that are pickled.
    from abqc.compiler import fork_server

    fork_server.main()
