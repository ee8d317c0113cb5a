"""Compiling in a process of its own, measured."""

from __future__ import annotations

import os
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


def compile_model(model: Path, recipe: str, library: Path) -> Compiled:
    """Run `abqc compile` and watch it. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "abqc.compiler.cli", "compile"]
    command += [str(model), "-o", str(library), "--quant", recipe]
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of_group(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read().decode())
    return Compiled(library, seconds, peak)


def memory_of_group(group: int) -> int:
    """Bytes in use by the processes of a group, shared pages counted once (PSS)."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getpgid(int(entry.name)) == group:
                total += _pss(entry)
        except (OSError, ProcessLookupError):
            continue
    return total


def _pss(entry: Path) -> int:
    for line in (entry / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0
