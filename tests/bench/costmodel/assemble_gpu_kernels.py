"""Assemble GPU kernels, and count what became of them: the data of the assembly model.

    python tests/bench/costmodel/assemble_gpu_kernels.py FOLDER --count 3000 [--seconds 200]
    python tests/bench/costmodel/assemble_gpu_kernels.py FOLDER --first 12000 --family tile planes

Adds to FOLDER/gpu_kernels.jsonl.gz a line for each kernel of `gpu_kernel_set.py` that it does not
have yet: its task, schedule and bound, the operations and tokens of its MLIR, and, of ptxas and
nvdisasm: registers, spills, instructions, and those of its main loop by opcode. Kernels that spill
are assembled again with higher bounds, as `codegen/gpu/assembly/spills.py` does, a line each. No
GPU is needed. Stop it at any time and start it again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
sys.path.insert(0, str(Path(__file__).parent))

import compile_kernels
import gpu_kernel_set
from abqc.codegen.gpu.assembly.compile import assemble, compile_ptx, disassemble
from abqc.codegen.gpu.assembly.spills import STEP, bound_registers
from abqc.codegen.gpu.builder import REGISTERS
from abqc.costmodel import kernel_text
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from gpubuild.machine_loops import main_loop

TOKENS = 4096  # of a kernel, at most
BATCH = 8  # kernels of a target that are assembled together: the tools take long to start


@dataclass(frozen=True)
class Asked:
    """A kernel, its number, and the bound that it is to have (0: that of its plan)."""

    number: int
    candidate: gpu_kernel_set.GpuCandidate
    bound: int


Wanted = dict[str, Asked]  # by name


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0, help="draw")
    parser.add_argument("--count", type=int, default=4000, help="of draws")
    parser.add_argument("--family", nargs="*", default=(), help="only kernels of these")
    parser.add_argument("--doubted", action="store_true", help="what the model knows least surely")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    path = args.folder / "gpu_kernels.jsonl.gz"
    known = {row["draw"] for row in compile_kernels.read(path)}
    numbers = range(args.first, args.first + args.count)
    wanted = (number for number in numbers if number not in known)
    for batch in batches(wanted, frozenset(args.family), args.doubted):
        if time.perf_counter() > end:
            return
        added = {"added": bool(args.family or args.doubted)}  # to learn from, not to judge by
        lines = [json.dumps(row | added) + "\n" for row in assembled(batch)]
        with gzip.open(path, "at", encoding="utf-8") as file:  # a member of its own, whole
            file.writelines(lines)
    print("all of them")


def batches(numbers: Iterable[int], families: frozenset[str], doubted: bool) -> Iterator[Wanted]:
    """Kernels of one target each; all families where none is named."""
    waiting: dict[str, Wanted] = {}
    for number in numbers:
        candidate = gpu_kernel_set.draw(number, doubted)
        if candidate is None or (families and candidate.family not in families):
            continue
        target, name = candidate.task.target, candidate.kernel.name
        if name in waiting.get(target, {}) or len(waiting.get(target, {})) == BATCH:
            yield waiting.pop(target)
        asked = Asked(number, candidate, candidate.other_bound)
        waiting.setdefault(target, {})[name] = asked
    yield from waiting.values()


def assembled(batch: Wanted) -> Iterator[dict[str, Any]]:
    """The lines of kernels of one target: each with the bound that it was asked with, and larger
    ones until nothing is spilled."""
    arch = next(iter(batch.values())).candidate.task.arch
    while batch:
        with make_context(), ir.Location.unknown():
            module = ir.Module.create()
            for asked in batch.values():
                asked.candidate.kernel.emit(module, arch)
            bound_registers(module, {name: a.bound for name, a in batch.items() if a.bound})
            emitted = dict(_functions(module))
            ptx = compile_ptx(module, arch)
        code = assemble(ptx.text, arch)
        sass = disassemble(code.cubin, labels=True)
        again: Wanted = {}
        for name, asked in batch.items():
            candidate, used, (bound, text) = asked.candidate, code.resources[name], emitted[name]
            turn = main_loop(sass[name])
            yield {
                "draw": asked.number,
                "kernel": name,
                "target": arch.name,
                "bound": bound,
                "usual": candidate.usual,
                "strategy": candidate.strategy.name,
                "task": asdict(candidate.task),
                "schedule": asdict(candidate.schedule),
                "registers": used.registers,
                "stack": used.stack,
                "spill_stores": used.spill_stores,
                "spill_loads": used.spill_loads,
                "instructions": sum(not line.endswith(":") for line in sass[name]),
                "loop": dict(turn.counts) if turn else {},
                "operations": kernel_text.operations(text),
                "tokens": kernel_text.tokens(text)[:TOKENS],
            }
            threads = ptx.kernels[name].threads
            most = min(arch.registers_per_thread, arch.registers_per_sm // threads)
            if (used.spill_stores or used.spill_loads) and used.registers + STEP <= most:
                again[name] = replace(asked, bound=used.registers + STEP)
        batch = again


def _functions(module: ir.Module) -> Iterator[tuple[str, tuple[int, str]]]:
    """The name of each kernel, its bound on registers (0 without), its text."""
    for op in module.body.operations:
        attributes = op.operation.attributes
        if "sym_name" in attributes:
            bound = ir.IntegerAttr(attributes[REGISTERS]).value if REGISTERS in attributes else 0
            yield ir.StringAttr(attributes["sym_name"]).value, (bound, str(op))


if __name__ == "__main__":
    main()
