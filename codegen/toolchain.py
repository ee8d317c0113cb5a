"""The C compiler that builds the shim and links artifacts: the system's, or one from pip."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ToolchainError
from ..runtime.environment import CC

CANDIDATES = ("cc", "gcc", "clang")


@dataclass(frozen=True)
class CCompiler:
    """A C compiler's command; `flags` make it build for any x86-64, whatever its defaults."""

    command: tuple[str, ...]
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join(self.command)

    def run(self, arguments: Sequence[str | Path], *, directory: Path, purpose: str) -> None:
        """Run in a directory; ToolchainError with the first complaints, and all of them and the
        command as a note."""
        command = [*self.command, *self.flags, *map(str, arguments)]
        try:
            result = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise ToolchainError(
                f"cannot start the C compiler '{self}': {error.strerror}"
            ) from error
        if result.returncode:
            failure = ToolchainError(
                f"the C compiler '{self}' failed to {purpose}: {_complaints(result)}"
            )
            failure.add_note(f"cd {directory} && {shlex.join(command)}\n{result.stderr}")
            raise failure

    def identity(self) -> str:
        """What names this compiler's output: its command and version."""
        path = shutil.which(self.command[0])
        age = Path(path).stat().st_mtime_ns if path else 0
        return f"{self} {' '.join(self.flags)} {_version(self.command, path, age)}"


def find_compiler() -> CCompiler:
    """$CC, else cc, gcc or clang, else ziglang's; ToolchainError where there is none."""
    named = CC.get()
    if named:
        if not shutil.which(named[0]):
            raise ToolchainError(f"there is no C compiler '{named[0]}'", hint="CC names it")
        return CCompiler(tuple(named))
    for name in CANDIDATES:
        if shutil.which(name):
            return CCompiler((name,))
    if importlib.util.find_spec("ziglang"):
        # Without a target, zig builds for this very CPU.
        command = (sys.executable, "-P", "-m", "ziglang", "cc")
        return CCompiler(command, ("-target", "x86_64-linux-gnu"))
    raise ToolchainError(
        f"there is no C compiler: neither CC nor {', '.join(CANDIDATES)}",
        hint="install one (apt: gcc), or `pip install abqc[toolchain]`",
    )


@cache
def _version(command: tuple[str, ...], path: str | None, age: int) -> str:
    """What the command says of itself; asked once for a file at `path`."""
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    except OSError:
        return ""
    return result.stdout.partition("\n")[0]


def _complaints(result: subprocess.CompletedProcess[str]) -> str:
    """The first lines that say what is wrong; that ld returned 1 only says that something is."""
    lines = [line for line in result.stderr.splitlines() if "ld returned" not in line]
    telling = [line for line in lines if "error" in line or "undefined" in line] or lines
    if telling:
        return " / ".join(telling[:3])[:600]
    if result.returncode < 0:
        return f"it was ended by {signal.Signals(-result.returncode).name}"
    return f"exit code {result.returncode}, no message"
