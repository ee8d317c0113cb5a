"""Part `sanitizer`: a sample of the checks under compute-sanitizer, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .kit import CheckCase, Kit

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 9  # its exit status where it found something
SECONDS = 50.0
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
LINES = 3  # of what it says


def sample(kit: Kit) -> list[tuple[int, CheckCase]]:
    """Of every strategy the case of the fewest rows, and that of the most."""
    by_strategy: dict[str, list[tuple[int, CheckCase]]] = {}
    for number, case in enumerate(kit.cases):
        by_strategy.setdefault(case.strategy, []).append((number, case))
    chosen = {}
    for cases in by_strategy.values():
        for pick in (min, max):
            number, case = pick(cases, key=lambda entry: entry[1].m)
            chosen[number] = case
    return sorted(chosen.items())


def names(kit: Kit) -> list[str]:
    return [f"{tool}: {case.name}" for tool in TOOLS for _, case in sample(kit)]


def measure(kit: Kit, index: int) -> dict[str, Any]:
    """`wrong`: what it found, in a few lines."""
    program = _program()
    if program is None:
        return {"missing": f"{PROGRAM} is not installed"}
    cases = sample(kit)
    tool, (number, case) = TOOLS[index // len(cases)], cases[index % len(cases)]
    with tempfile.TemporaryDirectory() as results:
        worker = [sys.executable, str(Path(sys.argv[0]).resolve()), "--worker", "check"]
        worker += ["--items", f"{number}:{number + 1}", "--kit", str(kit.folder)]
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND)]
        done = subprocess.run(
            [*command, *worker, "--output", results],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("=====")]
    return {
        "kernels": case.launches.kernels,
        "wrong": "" if done.returncode == 0 else _complaint(done.returncode, said),
    }


def _program() -> str | None:
    found = shutil.which(PROGRAM)
    return found or next(filter(None, (shutil.which(PROGRAM, path=p) for p in PLACES)), None)


def _complaint(status: int, said: list[str]) -> str:
    lines = [line.strip("= ") for line in said if "COMPUTE-SANITIZER" not in line][:LINES]
    return f"status {status}: " + "; ".join(filter(None, lines))
