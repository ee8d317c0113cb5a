"""A compile in a process of its own: whatever MLIR or LLVM do there, the caller lives on.

The child (`python -m abqc.compiler.job`) reads a pickled request and writes one JSON object a line:
{"progress": [step, done, total]}, {"pass": name}, and at the end {"error": ...} or {"done": notes}.
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from abqc import errors
from abqc.errors import AbqcError, CompileError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to compile, and where to; `work` is an empty directory for what is made on the way."""

    model: Path
    quant: str | Path
    target: str
    output: Path
    work: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dump_dir: Path | None = None


def run(request: Request, progress: Progress) -> list[str]:
    """Compile in a child process; the notes for the user.

    Raises the AbqcError of the child, or CompileError if it dies.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "abqc.compiler.job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(request, process.stdin)
            process.stdin.close()
            last_pass, notes = _listen(process.stdout, progress)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if notes is None:
            raise _death(status, last_pass, log)
        return notes


def _listen(lines: IO[bytes], progress: Progress) -> tuple[str, list[str] | None]:
    """Hand on what the child says; the last pass it named, and its notes if it came to its end."""
    last_pass = "start"
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # something that a library printed
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
    """The error as the child raised it; its traceback is a note, which `--debug` shows."""
    kind = getattr(errors, error["type"], CompileError)
    revived: AbqcError = kind(error["message"], node=error["node"], hint=error["hint"])
    revived.add_note(error["traceback"])
    return revived


def _death(status: int, last_pass: str, log: IO[bytes]) -> CompileError:
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()
    how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    error = CompileError(
        f"the compiler died ({how}) in {last_pass}" + (f": {said[-1]}" if said else ""),
        hint="compile again with --dump-dir to keep the IR that it was given",
    )
    error.add_note("\n".join(said[-40:]))
    return error


def main() -> None:
    from abqc.compiler.build import build

    request = pickle.load(sys.stdin.buffer)

    def say(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    try:
        notes = build(
            request,
            lambda step, done, total: say({"progress": [step, done, total]}),
            lambda name: say({"pass": name}),
        )
    except AbqcError as error:
        say({"error": _describe(error, type(error).__name__, error.message)})
    except MemoryError as error:
        say({"error": _describe(error, "CompileError", "out of memory")})
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}"
        say({"error": _describe(error, "CompileError", text)})
    else:
        say({"done": notes})


def _describe(error: BaseException, kind: str, message: str) -> dict[str, Any]:
    return {
        "type": kind,
        "message": message,
        "node": getattr(error, "node", None),
        "hint": getattr(error, "hint", None),
        "traceback": "".join(traceback.format_exception(error)),
    }


if __name__ == "__main__":
    # Under this name the classes are other ones than those that were pickled.
    from abqc.compiler import job

    job.main()
