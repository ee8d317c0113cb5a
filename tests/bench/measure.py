"""Compiling in a process of its own, measured."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from abqc.runtime.artifact import manifest_of

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Compiled:
    """A compile as a user sees it: seconds of the whole command, peak memory of its processes."""

    library: Path
    seconds: float
    peak_bytes: int

    @property
    def bytes(self) -> int:
        return self.library.stat().st_size

    @property
    def overhead(self) -> int:
        """Bytes of the artifact beyond weights, scales and constants."""
        return self.bytes - manifest_of(self.library)["bytes"]["weights"]


def compile_model(model: Path, recipe: str, library: Path, *options: str) -> Compiled:
    """Run `abqc compile` and watch it. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "abqc.compiler.cli", "compile"]
    command += [str(model), "-o", str(library), "--quant", recipe, *options]
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read().decode())
    return Compiled(library, seconds, peak)


def memory_of_tree(root: int) -> int:
    """Bytes in use by a process and all that it started, shared pages counted once (PSS)."""
    children: dict[int, list[Path]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(entry)
    total, waiting = 0, [Path("/proc") / str(root)]
    while waiting:
        entry = waiting.pop()
        waiting += children.get(int(entry.name), [])
        total += _pss(entry)
    return total


def _parent(entry: Path) -> int:
    """Of a process; 0 where it has ended."""
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _pss(entry: Path) -> int:
    try:
        lines = (entry / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
