"""Parts in processes of their own: a fault on the GPU ends a process, not the run.

A worker appends a JSON line for each item to `<results>/<part>.jsonl`. After a fault every call of
the driver fails, so the worker ends, and the next one goes on behind the item that failed. An item
that says nothing for TIMEOUT seconds is given up the same way. At the deadline what is under way is
given up, and its item has no record.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from abqc.errors import AbqcError

from .device import KitDevice
from .kit import Kit
from .parts import PARTS, Part, Record

TIMEOUT = 60.0
FAULT = 3  # status of a worker whose device is lost
HOPELESS = 20  # items in a row that end their worker: the rest is not tried

Command = Callable[[str, int, int], list[str]]  # of the worker of a part's items from, to
Progress = Callable[[str, list[Record], int], None]  # part, its records, its items


def work(kit: Kit, name: str, begin: int, end: int, results: Path, part: Part | None = None) -> int:
    """Do the items `begin` to `end` of a part; the status of the process."""
    part = part or PARTS[name]
    items = part.names(kit)[:end]
    with open(results / f"{name}.jsonl", "a", encoding="utf-8") as file:
        try:
            context = part.open(kit)
        except AbqcError as error:
            _append(file, {"item": begin, "name": items[begin], "error": str(error), "lost": True})
            return FAULT
        for number in range(begin, len(items)):
            record: Record = {"item": number, "name": items[number]}
            try:
                record |= part.measure(context, number)
            except Exception as error:  # whatever it is, the next item has its chance
                record["error"] = str(error) or type(error).__name__
            _append(file, record)
            if "error" in record and _is_lost(context):
                return FAULT
    return 0


def _append(file: Any, record: Record) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _is_lost(context: Any) -> bool:
    if not isinstance(context, KitDevice):
        return False
    try:
        context.call("cuCtxSynchronize")
    except AbqcError:
        return True
    return False


def supervise(
    kit: Kit,
    name: str,
    results: Path,
    command: Command,
    progress: Progress,
    *,
    end: int | None = None,
    timeout: float = TIMEOUT,
    deadline: float = math.inf,
) -> list[Record]:
    """The records of a part's items up to `end`, one for each; those that failed have `error`.

    Items that have records are not done again. `deadline` is a time of `time.monotonic`.
    """
    items = PARTS[name].names(kit)[:end]
    path = results / f"{name}.jsonl"
    records = read(path)
    failures = 0
    while len(records) < len(items) and time.monotonic() < deadline:
        begin = len(records)
        process = subprocess.Popen(command(name, begin, len(items)))
        why = _wait(process, path, partial(progress, name, total=len(items)), timeout, deadline)
        records = read(path)
        if len(records) < len(items) and why:
            item = len(records)
            with open(path, "a", encoding="utf-8") as file:
                _append(file, {"item": item, "name": items[item], "error": why})
            records = read(path)
        stuck = len(records) == begin + 1 and "error" in records[-1]
        failures = failures + 1 if stuck else 0
        if records[-1].get("lost") or failures == HOPELESS:
            why = records[-1]["error"]
            rest = range(len(records), len(items))
            records += [{"item": i, "name": items[i], "error": f"not tried: {why}"} for i in rest]
    return records


def _wait(
    process: subprocess.Popen[bytes],
    path: Path,
    progress: Callable[[list[Record]], None],
    timeout: float,
    deadline: float,
) -> str:
    """Wait for a worker; why it ended before it was done, empty where its last record says so and
    at the deadline."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
            progress(read(path))
        late = time.monotonic() > deadline
        if late or time.monotonic() - since > timeout:
            process.kill()
            process.wait()
            return "" if late else f"no answer in {timeout:.0f} seconds"
    if process.returncode in (0, FAULT):
        return ""
    return f"the process ended with status {process.returncode}"


def read(path: Path) -> list[Record]:
    """The records of a part so far; a line that was cut off is none."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def worker_command(script: Path, results: Path) -> Command:
    """Workers are the script itself."""

    def command(name: str, begin: int, end: int) -> list[str]:
        options = ["--worker", name, "--items", f"{begin}:{end}", "--output", str(results)]
        return [sys.executable, str(script), *options]

    return command
