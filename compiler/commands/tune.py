"""Measure this machine and fit the cost model to it.

The cost model chooses strategies and schedules. It is analytic; what is measured corrects it by a
learned factor. The fitted model and the samples are kept in the user's cache folder (ABQC_CACHE)
and used by later compiles. A GPU's kernels can be built where there is no GPU (--build-only) and
measured elsewhere (--jobs).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abqc.compiler.commands.progress import Progress
from abqc.errors import InputError

if TYPE_CHECKING:
    from abqc.compiler.tune import Budget
    from abqc.costmodel.evaluate import Evaluation
    from abqc.costmodel.interface import Sample

NAME = "tune"
SUMMARY = "measure this machine and fit the cost model to it"
EXAMPLES = """examples:
  abqc tune                                            # the CPU, a few minutes
  abqc tune --quick --report
  abqc tune --target sm_90a --build-only kernels       # needs no GPU
  abqc tune --target sm_90a --jobs kernels --report    # on a machine with one
  abqc tune --target sm_90a --samples samples.jsonl    # fit to what was measured before
"""
SECONDS, QUICK_SECONDS = 600.0, 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="cpu", help="cpu or a GPU such as sm_90a (default: cpu)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--build-only", metavar="DIR", type=Path, help="build a GPU's candidates, measure nothing"
    )
    source.add_argument("--jobs", metavar="DIR", type=Path, help="measure what --build-only built")
    source.add_argument("--samples", metavar="FILE", type=Path, help="fit to samples, measure none")
    parser.add_argument(
        "--seconds", type=float, help=f"how long to measure at most (default: {SECONDS:.0f})"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"measure for {QUICK_SECONDS:.0f} seconds"
    )
    parser.add_argument("--limit", metavar="N", type=int, help="how many jobs at most")
    parser.add_argument("--report", action="store_true", help="print errors before and after")


def run(args: argparse.Namespace) -> int:
    from abqc.compiler.tune import Budget, fit_and_save

    seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    budget = Budget(seconds, args.limit)
    if args.build_only:
        return build(args.target, args.build_only, budget)
    with Progress() as progress:
        try:
            samples = collect(args, budget, progress)
        except KeyboardInterrupt:
            return interrupted(args.target)
        progress("fit")
        tuned = fit_and_save(args.target, samples)
    if args.report:
        print(describe(tuned.evaluation))
    print(tuned.text)
    return 0


def interrupted(target: str) -> int:
    from abqc.costmodel.load import model_for, samples_path

    print(
        f"abqc: interrupted; what was measured is kept in {samples_path(target)}, the cost model "
        f"stays: {model_for(target).status}",
        file=sys.stderr,
    )
    return 130


def build(target: str, folder: Path, budget: Budget) -> int:
    from abqc.compiler.tune_gpu import build_jobs

    if target == "cpu":
        raise InputError("a CPU's kernels are built when they are measured")
    with Progress() as progress:
        jobs, kernels = build_jobs(target, folder, budget.jobs, progress)
    print(f"{folder}: {jobs} jobs over {kernels} kernels; measure them with --jobs {folder}")
    return 0


def collect(args: argparse.Namespace, budget: Budget, progress: Progress) -> Sequence[Sample]:
    """The samples to fit to: those of a file, or those measured now."""
    from abqc.compiler import tune
    from abqc.costmodel import samples
    from abqc.costmodel.load import samples_path

    if args.samples:
        return samples.read(args.samples)
    path = samples_path(args.target)
    kept = tune.keep(measure(args.target, args.jobs, budget, progress), path)
    found, problems = samples.read_whole(path)
    if problems:
        print(f"abqc: {len(problems)} lines are left out: {problems[0]}", file=sys.stderr)
    return tune.same_device(found, kept.samples[0].device)


def measure(target: str, jobs: Path | None, budget: Budget, progress: Progress) -> Iterator[Sample]:
    from abqc.compiler import tune

    if target == "cpu":
        from abqc.compiler import tune_cpu

        yield from tune.measure(tune_cpu.CpuRunner(), tune_cpu.jobs(), budget, progress)
        return
    from abqc.compiler import tune_gpu

    with tune_gpu.open_jobs(target, jobs, budget.jobs, progress) as (runner, found):
        yield from tune.measure(runner, found, budget, progress)


def describe(evaluation: Evaluation) -> str:
    from abqc.compiler.commands.table import table
    from abqc.compiler.tune import HEADER, report_rows

    e = evaluation
    return (
        f"{table(HEADER, report_rows(e))}\n"
        f"chosen over best, {e.problems} problems: {e.regret_before:.3f} before, "
        f"{e.regret_after:.3f} fitted (held out)"
    )
