"""Jobs in processes forked from a server: the side of the one who wants them done.

The server (`fork_server.py`) is started by the first job, serves all threads, and ends with this
process. One that has died is started again. A fork of this process gets a server of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from abqc.errors import CompileError
from abqc.runtime.environment import snapshot, with_one_thread

from .fork_server import Job

_END_TIMEOUT = 10  # seconds that a killed job is waited for


class Server:
    """A server process for `work`, "module:function", started when it is first needed."""

    def __init__(self, work: str) -> None:
        self.work = work
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.stop)

    def start(self, request: Any, *, scratch: Sequence[Path] = ()) -> Worker:
        """A process that does `request`, which must be picklable, in this one's environment and
        working directory. `scratch` are paths to remove when it has ended. Raises CompileError."""
        job = Job(request, os.getcwd(), snapshot(), _umask(), tuple(scratch))
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115 (the worker closes it)
        try:
            with theirs:
                self._hand_over(theirs, log)
            ours.sendall(pickle.dumps(job))
        except BaseException as error:
            ours.close()
            log.close()
            if isinstance(error, OSError):
                raise CompileError(f"cannot start the compiler's process: {error}") from error
            raise
        return Worker(ours, log, self)

    def _hand_over(self, connection: socket.socket, log: IO[bytes]) -> None:
        with self._lock:
            descriptors = [connection.fileno(), log.fileno()]
            if self._alive():
                assert self._control is not None
                with contextlib.suppress(OSError):  # it died just now
                    socket.send_fds(self._control, [b"j"], descriptors)
                    return
            self._launch()
            assert self._control is not None
            socket.send_fds(self._control, [b"j"], descriptors)

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _launch(self) -> None:
        self._discard()
        self._control, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                # -P: the working directory is not searched for modules.
                [
                    *(sys.executable, "-P", "-m", "abqc.compiler.fork_server"),
                    *(str(theirs.fileno()), self.work),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=with_one_thread(),  # jobs that have much to do work in several processes
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for this process, which ends its jobs
            )

    def stop(self) -> None:
        """End the server and all its jobs."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        if self._control is not None:
            self._control.close()  # which is how the server hears of it
        if self._process is not None:
            try:
                self._process.wait(_END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        self._process = self._control = self._log = None

    def _forget(self) -> None:
        """In a fork of this process: the server is the parent's."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # not this process's child
        self._process = self._control = self._log = None

    def last_words(self) -> str:
        """What the server itself printed, which it does only where it fails."""
        with self._lock:
            return _read(self._log) if self._log is not None else ""


class Worker:
    """A job's process. Iterating gives its messages; leaving the `with` block ends it."""

    def __init__(self, connection: socket.socket, log: IO[bytes], server: Server) -> None:
        self.status: int | None = None  # its exit status once it has ended, negative for a signal
        self._connection = connection
        self._log = log
        self._server = server

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What the job says, until it ends."""
        with self._connection.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            for line in lines:
                message = json.loads(line)
                if "exit" in message:
                    self.status = message["exit"]
                else:
                    yield message

    def log(self) -> str:
        """What the job printed; what the server did, if that is what failed."""
        return _read(self._log) or self._server.last_words()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end()
        finally:
            self._connection.close()
            self._log.close()

    def _end(self) -> None:
        """Have the job killed if it still runs, and wait until it is gone with all it made."""
        with contextlib.suppress(OSError):  # and a time-out
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(_END_TIMEOUT)
            while self._connection.recv(1 << 16):
                pass


def _read(log: IO[bytes]) -> str:
    descriptor = log.fileno()  # its offset belongs to the writer
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
