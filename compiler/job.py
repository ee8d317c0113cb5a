"""A compile in a process of its own: whatever MLIR or LLVM do there, the caller lives on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abqc import errors
from abqc.errors import AbqcError, CompileError

from .fork_client import Server

Progress = Callable[[str, int, int], None]

SERVER = Server("abqc.compiler.worker:compile_request")


@dataclass(frozen=True)
class Request:
    """What to compile, and where to; `work` is an empty directory for what is made on the way.

    `calib` is a file or folder of calibration data, `calib_workers` who works on them, `budget`
    what mixed precision may take. `cpu` narrows the CPUs that a library has kernels for
    (`isa.of_cpu`).
    `strict`: what the recipe asks for and cannot have is an error, not a note. `last_logits`: of a
    decoder's logits those of the last token alone.
    """

    model: Path
    quant: str | Path
    target: str
    output: Path
    work: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dump_dir: Path | None = None
    calib: Path | None = None
    calib_workers: str | int | None = None
    budget: str | None = None
    cpu: str | None = None
    strict: bool = False
    last_logits: bool = False

    @property
    def partial(self) -> Path:
        """Where the library is written before it takes its name: beside it, so that it can."""
        return self.output.parent / f".{self.output.name}.{self.work.name}"


def run(request: Request, progress: Progress, server: Server = SERVER) -> list[str]:
    """Compile in another process; the notes for the user.

    Raises the AbqcError of that process, or CompileError if it dies. `request.work` is gone
    afterwards, however it ends.
    """
    with server.start(request, scratch=(request.work, request.partial)) as worker:
        last_pass, notes = _listen(worker, progress)
        if notes is None:
            raise _death(worker.status, last_pass, worker.log())
    return notes


def _listen(messages: Iterable[dict[str, Any]], progress: Progress) -> tuple[str, list[str] | None]:
    """Hand on what the process says; the last pass it named, and its notes if it got to its end."""
    last_pass = "its start"
    for message in messages:
        if "progress" in message:
            progress(*message["progress"])
        elif "pass" in message:
            last_pass = message["pass"]
        elif "error" in message:
            raise _revive(message["error"])
        elif "done" in message:
            return last_pass, message["done"]
    return last_pass, None


def _revive(error: dict[str, Any]) -> AbqcError:
    """The error as it was raised; its traceback is a note, which `--debug` shows."""
    kind = getattr(errors, error["type"], CompileError)
    revived: AbqcError = kind(error["message"], node=error["node"], hint=error["hint"])
    revived.add_note(error["traceback"])
    return revived


def _death(status: int | None, last_pass: str, log: str) -> CompileError:
    said = log.strip().splitlines()
    error = CompileError(
        f"the compiler died ({_how(status)}) in {last_pass}" + (f": {said[-1]}" if said else ""),
        hint="the system may be out of memory"
        if status == -signal.SIGKILL
        else "compile again with --dump-dir to keep the IR that it was given",
    )
    error.add_note("\n".join(said[-40:]))
    return error


def _how(status: int | None) -> str:
    if status is None:
        return "with its server"
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"
