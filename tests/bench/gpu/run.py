"""Measure a kit on the GPU of this machine.

    python run.py [--only rates,check,table,models] [--output results]

Needs numpy and an NVIDIA driver; PyTorch for the columns of cuBLAS. Writes results.json, results.md
and samples.jsonl. Exit status 1 where a kernel or a model gives wrong results, or fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from abqc.errors import AbqcError  # noqa: E402
from gpukit import kit as kits  # noqa: E402
from gpukit import report, work  # noqa: E402

# What users name, and the parts it takes.
CHOICES = {
    "rates": ["rates"],
    "check": ["check"],
    "table": ["table", "baselines"],
    "models": ["models"],
}


def main() -> int:
    arguments = _parse()
    try:
        kit = kits.read(HERE)
        results: Path = arguments.output
        results.mkdir(parents=True, exist_ok=True)
        if arguments.worker:
            return work.work(kit, arguments.worker, arguments.begin, results)
        return _run(kit, arguments.only, results)
    except AbqcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=_chosen, default=list(CHOICES), help=",".join(CHOICES))
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(text: str) -> list[str]:
    chosen = text.split(",")
    if wrong := [name for name in chosen if name not in CHOICES]:
        raise argparse.ArgumentTypeError(f"no part {wrong[0]}; parts are {', '.join(CHOICES)}")
    return chosen


def _run(kit: kits.Kit, only: list[str], results: Path) -> int:
    command = work.worker_command(Path(__file__).resolve(), results.resolve())
    machine = report.describe_machine(kit, [sys.executable, *sys.argv])
    records: dict[str, list] = {}
    for name in (part for choice in only for part in CHOICES[choice]):
        records[name] = work.supervise(kit, name, results, command, _progress)
        print(file=sys.stderr)
        report.write(kit, machine, records, results)  # what there is, should the next part hang
    print((results / "results.md").read_text())
    return 1 if report.failures(records) else 0


def _progress(name: str, done: int, total: int) -> None:
    print(f"\r{name}: {done} of {total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
