"""Parts in processes of their own: a fault on the GPU ends a process, not the run.

A worker appends a JSON line for each item to `<results>/<part>.jsonl`. After a fault every call of
the driver fails, so the worker ends, and the next one goes on behind the item that failed. So it
does where an item says nothing for as long as its part allows; two such in a row end the part. At
the deadline what is under way is given up, and its item has no record.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abqc.errors import AbqcError

from .device import KitDevice
from .kit import Kit
from .parts import PARTS, Part, Record

START_SECONDS = 60.0  # until a worker's first record: a context, PyTorch, code to load
FAULT = 3  # status of a worker whose device is lost, or may be
SILENT = 2  # items in a row without an answer: their part is given up
HOPELESS = 6  # workers in a row that end with their first item: likewise

Command = Callable[[str, int, int], list[str]]  # of the worker of a part's items from, to
Progress = Callable[[str, list[Record], int], None]  # part, its records, its items


# ---- the worker ----


def work(kit: Kit, name: str, begin: int, end: int, results: Path, part: Part | None = None) -> int:
    """Do the items `begin` to `end` of a part; the status of the process."""
    part = part or PARTS[name]
    items = part.names(kit)[:end]
    path = results / f"{name}.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        try:
            context = part.open(kit)
        except Exception as error:  # no GPU, no driver, another GPU: no item can be done
            _append(file, {"item": begin, "name": items[begin], "lost": True} | _said(error))
            return FAULT
        for number in range(begin, len(items)):
            record: Record = {"item": number, "name": items[number]}
            try:
                why = part.skip(kit, number, read(path)) if part.skip else ""
                record |= {"missing": why} if why else part.measure(context, number)
            except Exception as error:  # whatever it is, the next item has its chance
                record |= _said(error)
            _append(file, record)
            if "error" in record and _may_be_lost(context):
                return FAULT
    return 0


def _said(error: Exception) -> Record:
    name = type(error).__name__
    text = str(error) if isinstance(error, AbqcError) else f"{name}: {error}"
    return {"error": text or name}


def _append(file: Any, record: Record) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _may_be_lost(context: Any) -> bool:
    """A device answers whether it is; of one that a model or PyTorch has, nobody knows."""
    if not isinstance(context, KitDevice):
        return True
    try:
        context.call("cuCtxSynchronize")
    except AbqcError:
        return True
    return False


# ---- its supervisor ----


@dataclass(frozen=True)
class _Ended:
    """How a worker ended: why its current item has no record ("": it has one, or there was no
    time), and whether it gave no answer."""

    why: str = ""
    silent: bool = False


def supervise(
    kit: Kit,
    name: str,
    results: Path,
    command: Command,
    progress: Progress,
    *,
    end: int | None = None,
    start_seconds: float = START_SECONDS,
    item_seconds: float | None = None,
    deadline: float = math.inf,
) -> list[Record]:
    """The records of a part's items up to `end`, one for each; those that failed have `error`.

    Items that have records are not done again. `item_seconds`: how long an item may take (None: as
    its part says). `deadline` is a time of `time.monotonic`.
    """
    part = PARTS[name]
    items = part.names(kit)[:end]
    path = results / f"{name}.jsonl"
    records = read(path)
    deadline = min(deadline, time.monotonic() + part.seconds)
    silent = failed = 0
    while len(records) < len(items) and time.monotonic() < deadline:
        begin = len(records)
        watch = _Watch(
            path,
            partial(progress, name, total=len(items)),
            start_seconds,
            item_seconds or part.item_seconds,
            deadline,
        )
        ended = watch.run(command(name, begin, len(items)))
        records = read(path)
        if ended.why and len(records) < len(items):
            item = len(records)
            record = {"item": item, "name": items[item], "error": ended.why}
            with open(path, "a", encoding="utf-8") as file:
                _append(file, record)
            records.append(record)
        silent = silent + 1 if ended.silent and len(records) <= begin + 1 else int(ended.silent)
        failed = failed + 1 if len(records) == begin + 1 and "error" in records[-1] else 0
        if records and (records[-1].get("lost") or silent >= SILENT or failed >= HOPELESS):
            return _given_up(records, items)
    return records


def _given_up(records: list[Record], items: list[str]) -> list[Record]:
    why = records[-1]["error"]
    rest = range(len(records), len(items))
    record = {"error": f"not tried: {why}", "tried": False}
    return records + [{"item": i, "name": items[i], **record} for i in rest]


@dataclass(frozen=True)
class _Watch:
    """Waits for one worker."""

    path: Path  # of its records
    progress: Callable[[list[Record]], None]
    start_seconds: float
    item_seconds: float
    deadline: float

    def run(self, command: list[str]) -> _Ended:
        """Until the worker has ended, or is made to."""
        process = subprocess.Popen(command)
        try:
            return self._wait(process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> _Ended:
        first = size = self._size()
        since, allowed = time.monotonic(), self.start_seconds
        while process.poll() is None:
            time.sleep(0.1)
            if (now := self._size()) != size:
                size, since, allowed = now, time.monotonic(), self.item_seconds
                self.progress(read(self.path))
            if time.monotonic() > self.deadline:
                return _Ended()
            if time.monotonic() - since > allowed:
                return _Ended(f"no answer in {allowed:.0f} seconds", silent=True)
        if process.returncode == FAULT and self._size() != first:
            return _Ended()  # its last record says why
        if process.returncode == 0:
            return _Ended("the process ended before it was done")
        return _Ended(f"the process ended with status {process.returncode}")

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def read(path: Path) -> list[Record]:
    """The records of a part so far; a line that was cut off is none."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def worker_command(script: Path, kit: Path, results: Path) -> Command:
    """Workers are the script itself."""

    def command(name: str, begin: int, end: int) -> list[str]:
        options = ["--worker", name, "--items", f"{begin}:{end}"]
        folders = ["--kit", str(kit), "--output", str(results)]
        return [sys.executable, str(script), *options, *folders]

    return command
