"""Run tests of onnx's backend suite against abqc: `python tests/conformance/run.py 'GLOB' ...`.

Prints a line for each test that did not pass (`-v`: for every test) and the counts.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx

from conformance import results
from conformance.cases import GROUPS, Case, DataSet, all_cases, operators
from conformance.exclusions import exclusion
from conformance.isolate import run_isolated
from conformance.source import fingerprint
from conformance.variants import VARIANTS, make

# Compiles a model in a folder, runs it with all sets of values, and compares within rtol and atol.
Backend = Callable[[onnx.ModelProto, list[DataSet], tuple[float, float], Path], results.Row]
BACKENDS = ("abqc", "emx-onnx-cgen")


@dataclass(frozen=True)
class Task:
    """A test in one of its variants, for one backend."""

    case: Case
    variant: str
    backend: str


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")
    tasks = list(select(options))
    made_with = fingerprint(options.backend)
    done = results.read(options.results) if options.results else {}
    if not options.trust:
        done = {k: row for k, row in done.items() if row["made_with"] == made_with}
    tasks = [task for task in tasks if results.key(_row(task, {})) not in done]
    print(f"{len(tasks)} tests to run, {len(done)} results known", flush=True)
    rows = []
    for row in run(
        tasks, workers=options.workers, timeout=options.timeout, everything=options.with_excluded
    ):
        row["made_with"] = made_with
        rows.append(row)
        if options.results:
            results.append(options.results, row)
        if options.verbose or row["status"] in results.FAILED:
            print(results.line(row), flush=True)
            if options.traceback and "traceback" in row:
                print(row["traceback"])
    print(results.summary(rows))
    return any(row["status"] in results.FAILED for row in rows)


def select(options: argparse.Namespace) -> Iterator[Task]:
    """The tests that the command line names."""
    only = None
    if options.only_failed:
        known = results.read(options.only_failed).values()
        only = {(row["variant"], row["name"]) for row in known if row["status"] in results.FAILED}
    for variant in options.variant or ["plain"]:
        for case in all_cases():
            if options.group and case.group not in options.group:
                continue
            if options.patterns and not any(fnmatchcase(case.name, p) for p in options.patterns):
                continue
            if only is not None and (variant, case.name) not in only:
                continue
            yield Task(case, variant, options.backend)


def run(
    tasks: Iterable[Task], *, workers: int = 2, timeout: float = 60, everything: bool = False
) -> Iterator[results.Row]:
    """The results of the tasks, as they come; tests that are excluded come first.

    The exclusions are abqc's: with `everything`, and for other backends, there are none.
    """
    tasks = list(tasks)
    wanted = []
    for task in tasks:
        reason = exclusion(task.case.name) if task.backend == "abqc" and not everything else None
        if reason is None:
            wanted.append(task)
        else:
            yield _row(task, {"status": "excluded", "message": reason, "seconds": 0.0})
    backends = {name: _backend(name) for name in {task.backend for task in wanted}}

    def work(task: Task, folder: Path) -> results.Row:
        return run_case(task.case, task.variant, backends[task.backend], folder)

    for task, result in run_isolated(wanted, work, workers=workers, timeout=timeout):
        yield _row(task, result)


def run_case(case: Case, variant: str, backend: Backend, folder: Path) -> results.Row:
    """A test in one of its variants; "not-applicable" where it has none such."""
    model, sets = case.load()
    made = make(variant, model, sets)
    if made is None:
        return {"status": "not-applicable"}
    return backend(*made, case.tolerances, folder)


def _backend(name: str) -> Backend:
    if name == "emx-onnx-cgen":
        from conformance import peer_emx

        return peer_emx.run_model
    from conformance import backend

    backend.prepare_modules()
    return backend.run_model


def _row(task: Task, result: results.Row) -> results.Row:
    return {
        "backend": task.backend,
        "variant": task.variant,
        "group": task.case.group,
        "name": task.case.name,
        "operator": operators().get(task.case.name, task.case.group),
        "expanded": task.case.expanded,
        **result,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="names of tests, with * and ?")
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: plain")
    parser.add_argument("--backend", default="abqc", choices=BACKENDS)
    parser.add_argument(
        "--results", type=Path, help="a file to add results to; what it has of this code is not run"
    )
    parser.add_argument("--trust", action="store_true", help="nor what it has of other code")
    parser.add_argument("--only-failed", type=Path, help="what failed in this file of results")
    parser.add_argument("--with-excluded", action="store_true", help="also what is excluded")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a test")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--traceback", action="store_true")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
