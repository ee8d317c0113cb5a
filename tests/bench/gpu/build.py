"""Build a kit that measures the kernels on a GPU which is elsewhere.

    python tests/bench/gpu/build.py [--target sm_90a] [--output kit] [--peers FOLDER]

Needs abqc, and no GPU. The folder is complete: copy it to where the GPU is, and run run.py there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1]):
    sys.path.insert(0, str(folder))

import abqc  # noqa: E402
from abqc.codegen.gpu.arch import GpuArch  # noqa: E402
from abqc.codegen.targets.cuda import CudaTarget, target_names  # noqa: E402
from abqc.errors import AbqcError, InputError  # noqa: E402
from gpubuild.attention import attention_jobs  # noqa: E402
from gpubuild.cases import check_cases  # noqa: E402
from gpubuild.images import Images, Progress  # noqa: E402
from gpubuild.matmuls import other_formats, sampled, select  # noqa: E402
from gpubuild.memory_kernels import memory_kernels  # noqa: E402
from gpubuild.models import model_feeds  # noqa: E402
from gpubuild.operators import operator_feeds  # noqa: E402
from gpubuild.plan import Plan  # noqa: E402
from gpubuild.probes import probes  # noqa: E402
from gpubuild.rate_kernels import mma_rates  # noqa: E402
from gpubuild.wgmma import wgmma_rates  # noqa: E402
from gpukit.kit import Kit, RateJob  # noqa: E402
from gpukit.peers import FOLDER as PEERS  # noqa: E402

RESERVED = 2 << 20  # bytes of a kit that are left free

# What is copied of abqc: none of it imports more than numpy.
MODULES = (
    "__init__.py",
    "errors.py",
    "compiler/__init__.py",
    "compiler/cuda_driver.py",
    "costmodel/__init__.py",
    "costmodel/interface.py",
    "costmodel/ranking.py",
    "costmodel/samples.py",
    "runtime/*.py",
)


def build(
    plan: Plan, target_name: str, folder: Path, progress: Progress, peers: Path | None = None
) -> Kit:
    """Write a kit to `folder`, which must not exist or be empty. `peers`: a folder with other
    engines, which is copied."""
    target = CudaTarget.named(target_name)
    if target is None or len(target.archs) != 1:
        raise InputError(
            f"a kit is for one GPU target, not '{target_name}'", hint=f"one of {target_names()}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty")
    if peers is not None:
        copy_peers(peers, folder)
    arch = target.archs[0]
    images = Images(arch, folder, plan.assembled, progress)
    for kernel in memory_kernels():
        images.add(kernel)
    for name, text, threads in probes(arch):
        images.add_ptx(name, text, threads)
    rates, notes = _rates(plan, arch, images)
    progress("choosing schedules")
    attention = attention_jobs(plan, target, images)
    chosen = [*select(plan, target), *sampled(plan, target)]
    checked = [*chosen, *other_formats(plan, target)]
    for kernel in (k for c in checked for k in c.kernels):
        images.add(kernel)
    progress("test cases")
    cases = check_cases(plan, checked, folder)
    feeds, missing = model_feeds(plan, target_name, folder, progress)
    operators = operator_feeds(plan, target_name, folder, progress)
    notes += missing + [f"{name} spills registers" for name in images.spilled]
    kit = Kit(
        folder,
        target_name,
        arch.capability,
        arch.specific,
        datetime.now(UTC).isoformat(timespec="seconds"),
        plan.check_rows,
        plan.copy_bytes,
        plan.probe,
        images.built,
        rates,
        cases,
        [c.job(images) for c in chosen],
        feeds,
        operators,
        attention,
        notes,
    )
    _copy_modules(folder)
    kit.write()
    kit = replace(kit, kernels=images.with_ptx(plan.max_bytes - folder_bytes(folder) - RESERVED))
    kit.write()
    size = folder_bytes(folder)
    assert size <= plan.max_bytes, f"the kit has {size} bytes, more than {plan.max_bytes}"
    return kit


def _rates(plan: Plan, arch: GpuArch, images: Images) -> tuple[list[RateJob], list[str]]:
    jobs = []
    for kernel, job in mma_rates(arch, plan.turns):
        images.add(kernel)
        jobs.append(job)
    if not plan.wgmma:
        return jobs, []
    if arch.name != "sm_90a":
        return jobs, [f"wgmma: {arch.name} has none"]
    for text, job in wgmma_rates(plan.turns):
        images.add_ptx(job.kernel, text, threads=256)
        jobs.append(job)
    return jobs, []


def copy_peers(peers: Path, folder: Path) -> None:
    """Into a kit: what gpukit/peers.py looks for."""
    if not peers.is_dir():
        raise InputError(f"{peers} is no folder with other engines")
    shutil.copytree(peers, folder / PEERS, dirs_exist_ok=True)


def _copy_modules(folder: Path) -> None:
    """run.py, its package, and what these need of abqc."""
    shutil.copy(HERE / "run.py", folder)
    shutil.copytree(
        HERE / "gpukit", folder / "gpukit", ignore=shutil.ignore_patterns("__pycache__")
    )
    root = Path(abqc.__file__).parent
    for pattern in MODULES:
        for source in root.glob(pattern):
            copy = folder / "abqc" / source.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--output", type=Path, default=Path("kit"))
    parser.add_argument("--max-kernels", type=int, default=Plan.max_kernels)
    parser.add_argument("--peers", type=Path, help="a folder with other engines to measure")
    arguments = parser.parse_args()
    begin = time.monotonic()
    try:
        plan = Plan(max_kernels=arguments.max_kernels)
        kit = build(plan, arguments.target, arguments.output, _progress, arguments.peers)
    except AbqcError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"\n{arguments.output}: {len(kit.kernels)} kernels, {len(kit.cases)} cases, "
        f"{len(kit.operators)} runs of operators, "
        f"{len(kit.table)} lines of the table, {len(kit.feeds)} runs of models; "
        f"{folder_bytes(arguments.output) / 1e6:.1f} MB in {time.monotonic() - begin:.0f} s"
    )
    for note in kit.notes:
        print(f"note: {note}")
    return 0


def _progress(text: str) -> None:
    print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
