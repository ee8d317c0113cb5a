"""Measure a kit on the GPU of this machine.

    python run.py [--only rates,check,table,peers,attention,models] [--minutes 9] [--output DIR]

Needs numpy and an NVIDIA driver; PyTorch for the columns of cuBLAS. Writes results.json, results.md
and samples.jsonl, anew every few seconds. What matters most comes first; what is not reached in the
time is said. Exit status 1 where a kernel or a model gives wrong results, or anything fails.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from abqc.errors import AbqcError  # noqa: E402
from gpukit import bars, report, work  # noqa: E402
from gpukit import kit as kits  # noqa: E402
from gpukit.parts import PARTS, Record  # noqa: E402

# What users name, and the parts it takes.
CHOICES = {
    "rates": ["rates", "probes"],
    "check": ["check", "operators", "sanitizer"],
    "table": ["table", "baselines"],
    "peers": ["peers"],
    "attention": ["attention", "attention-peers"],
    "models": ["models", "launches"],
}
MACHINE = "machine"  # the part that comes before all others
MINUTES = 9.0
WRITE_SECONDS, SAY_SECONDS = 3.0, 30.0


def main() -> int:
    arguments = _parse()
    signal.signal(signal.SIGTERM, _ended)
    try:
        kit = kits.read(arguments.kit)
        results: Path = arguments.output
        results.mkdir(parents=True, exist_ok=True)
        if arguments.worker:
            return work.work(kit, arguments.worker, *arguments.items, results)
        deadline = time.monotonic() + 60 * arguments.minutes
        return _run(kit, arguments.only, results, deadline, arguments.start_seconds)
    except AbqcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _ended(number: int, frame: Any) -> None:
    """What there is so far is written on the way out, and the worker ends with us."""
    raise SystemExit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=_chosen, default=list(CHOICES), help=",".join(CHOICES))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="stop after so many")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--kit", type=Path, default=HERE, help="the folder that build.py wrote")
    parser.add_argument(
        "--start-seconds", type=float, default=work.START_SECONDS, help=argparse.SUPPRESS
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--items", type=_range, default=(0, 0), help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(text: str) -> list[str]:
    chosen = text.split(",")
    if wrong := [name for name in chosen if name not in CHOICES]:
        raise argparse.ArgumentTypeError(f"no part {wrong[0]}; parts are {', '.join(CHOICES)}")
    return chosen


def _range(text: str) -> tuple[int, int]:
    begin, _, end = text.partition(":")
    return int(begin), int(end)


def _steps(kit: kits.Kit, only: list[str]) -> list[tuple[str, int]]:
    """Parts and how far to do them, in turns: what the bars need before all other, and of that the
    checks before the times."""
    first = bars.first_items(kit)
    everything = {name: len(part.names(kit)) for name, part in PARTS.items()}
    steps = [(name, everything[name]) for name in ("rates", "probes")]
    steps += [(name, first[name]) for name in ("check", "table", "baselines")]
    rest = (
        "operators",
        "attention",
        "attention-peers",
        "models",
        "launches",
        "check",
        "table",
        "baselines",
        "peers",
        "sanitizer",
    )
    steps += [(name, everything[name]) for name in rest]
    chosen = {part for choice in only for part in CHOICES[choice]}
    return [(name, end) for name, end in steps if name in chosen]


def _run(
    kit: kits.Kit,
    only: list[str],
    results: Path,
    deadline: float,
    start_seconds: float = work.START_SECONDS,
) -> int:
    command = work.worker_command(Path(__file__).resolve(), kit.folder.resolve(), results.resolve())
    steps = _steps(kit, only)
    for name in {MACHINE, *PARTS}:
        (results / f"{name}.jsonl").unlink(missing_ok=True)
    log = _Log(kit, results)

    def do(name: str, end: int | None = None) -> list[Record]:
        return work.supervise(
            kit,
            name,
            results,
            command,
            log.progress,
            end=end,
            start_seconds=start_seconds,
            deadline=deadline,
        )

    (machine,) = do(MACHINE) or [{"error": "there was no time to ask it"}]
    if error := machine.get("error"):
        raise AbqcError(f"the GPU cannot be used: {error}")
    log.machine |= {key: value for key, value in machine.items() if key not in ("item", "name")}
    try:
        for name, end in steps:
            log.do(name, partial(do, name, end))
    finally:
        log.write()
        print(report.summary(kit, log.machine, log.records))
    return 1 if report.failures(log.records) else 0


class _Log:
    """The results so far: on the disk every few seconds, and a word about them now and then."""

    def __init__(self, kit: kits.Kit, results: Path) -> None:
        self.machine: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join([sys.executable, *sys.argv]),
            "kit": {"target": kit.target, "date": kit.date, "notes": kit.notes},
        }
        self.records: dict[str, list[Record]] = {}
        self._kit = kit
        self._results = results
        self._written = self._said = float("-inf")

    def do(self, name: str, step: Callable[[], list[Record]]) -> None:
        """A step of a part. Whatever goes wrong with it, the next one has its chance."""
        try:
            self.records[name] = step()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.records.setdefault(name, []).append({"name": "its supervisor", "error": text})
        self.write()

    def progress(self, name: str, records: list[Record], total: int) -> None:
        if name != MACHINE:
            self.records[name] = records
        now = time.monotonic()
        if now - self._written > WRITE_SECONDS:
            self.write()
            self._written = now
        if now - self._said > SAY_SECONDS:
            print(f"{name}: {len(records)} of {total}", file=sys.stderr, flush=True)
            self._said = now

    def write(self) -> None:
        report.write(self._kit, self.machine, self.records, self._results)


if __name__ == "__main__":
    sys.exit(main())
