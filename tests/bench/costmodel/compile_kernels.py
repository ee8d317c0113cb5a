"""Compile kernels, and count what became of them: the data of the token model, and of timings.

    python tests/bench/costmodel/compile_kernels.py FOLDER --count 5000 [--seconds 200]

Adds to FOLDER/kernels.jsonl.gz a line for each kernel that it does not have yet: its strategy,
task, ISA and schedule, its operations and tokens (costmodel/kernel_text.py), and, counted in LLVM's
assembly, the distinct vector registers, the spills (stores to the stack that register allocation
added) and their bytes. FOLDER/objects gets what it was compiled to, if it can run here. Kernels of
the tasks that are held out come first, then those of `--count` timings of training. Stop it at any
time and start it again.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kernel_set
from abqc.codegen import isa as isas
from abqc.codegen.arithmetic.half_floats import lower_half_floats
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import kernels_to_llvm
from abqc.codegen.strategy import Kernel
from abqc.costmodel import kernel_text
from abqc.dialects.mlir import ir

_SPILL = re.compile(r"# (?:(\d+)-byte|\w+) (?:Folded )?Spill")
_VECTOR = re.compile(r"%[xyz]mm(\d+)")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    arguments(parser)
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    (args.folder / "objects").mkdir(parents=True, exist_ok=True)
    path = args.folder / "kernels.jsonl.gz"
    known = {(row["kernel"], row["isa"]) for row in read(path)}
    for candidate in (timing.candidate for timing, _ in wanted(args)):
        key = candidate.kernel.name, candidate.task.isa.name
        if time.perf_counter() > end:
            break
        pack = candidate.strategy.pack_kernel(candidate.task.spec)
        if pack and not object_path(args.folder, pack, candidate.task.isa).exists():
            compiled(pack, candidate.task.isa, args.folder)
        if key not in known:
            known.add(key)
            row = compiled(candidate.kernel, candidate.task.isa, args.folder)
            with gzip.open(path, "at", encoding="utf-8") as file:  # a member of its own, whole
                file.write(json.dumps(described(candidate) | row) + "\n")
    else:
        print("all of them")
    print(f"{path}: {len(known)} kernels")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Those that say what is wanted, and for how long."""
    parser.add_argument("--count", type=int, default=5000, help="of timings in training")
    parser.add_argument("--seed", type=int, default=0, help="of these")
    parser.add_argument("--one-row", action="store_true", help="these are of one row alone")
    parser.add_argument("--seconds", type=float, default=float("inf"))


def wanted(args: argparse.Namespace) -> Iterator[tuple[kernel_set.Timing, int | None]]:
    """Those held out, with the number of their task, and the first `count` of training."""
    for number, timing in kernel_set.exhaustive():
        yield timing, number
    for timing in itertools.islice(kernel_set.training(args.seed, args.one_row), args.count):
        yield timing, None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that was cut short at its end is left out."""
    if not path.exists():
        return []
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        try:
            for line in file:
                rows.append(json.loads(line))
        except (EOFError, ValueError):
            pass
    return rows


def object_path(folder: Path, kernel: Kernel, isa: Isa) -> Path:
    return folder / "objects" / f"{kernel.name}.{isa.name}.o"


def described(candidate: kernel_set.Candidate) -> dict[str, Any]:
    task = candidate.task
    return {
        "kernel": candidate.kernel.name,
        "isa": task.isa.name,
        "strategy": candidate.strategy.name,
        "weight": task.weight,
        "activation": task.activation,
        "half": task.half,
        "k": task.k,
        "schedule": candidate.schedule.name,
        "rows": task.rows.typical,
    }


def compiled(kernel: Kernel, isa: Isa, folder: Path) -> dict[str, Any]:
    """What there is to say of a kernel; writes its object."""
    path, isa = object_path(folder, kernel, isa), best_isa(kernel, isa)
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, isa)
        text = str(module)
        lower_half_floats(module, isa)
        llvm, machine = kernels_to_llvm(module, isa, [kernel.name])
        path.write_bytes(machine.emit_object(llvm))
        machine.set_asm_verbosity(True)
        assembly = machine.emit_assembly(llvm)
    return {
        **counts(assembly),
        "operations": kernel_text.operations(text),
        "tokens": kernel_text.tokens(text),
    }


def best_isa(kernel: Kernel, isa: Isa) -> Isa:
    """What such a kernel runs on here: the best one that extends `isa` by what it makes use of."""
    able = (other for other in isas.extending() if isa in isas.lineage(other))
    return next((other for other in able if other.adds in kernel.uses), isa)


def counts(assembly: str) -> dict[str, int]:
    """What register allocation came to."""
    spills = [int(match[1] or 8) for match in _SPILL.finditer(assembly)]
    return {
        "vector_registers": len(set(_VECTOR.findall(assembly))),
        "spills": len(spills),
        "spilled_bytes": sum(spills),
    }


if __name__ == "__main__":
    main()
