"""Compile kernels and count what became of them: the data set of the token model.

    python tests/bench/costmodel/compile_kernels.py kernels.jsonl.gz --count 5000 [--seconds 200]

Appends a line for each kernel that the file does not have yet: its strategy, formats, ISA and
schedule, its operations and tokens (costmodel/kernel_text.py), and, counted in LLVM's assembly,
the distinct vector and general registers, the spills (stores to the stack that the register
allocator added) and their bytes. Stop it at any time and start it again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kernel_set
from abqc.codegen.arithmetic.half_floats import lower_half_floats
from abqc.codegen.llvm import kernels_to_llvm
from abqc.costmodel import kernel_text
from abqc.dialects.mlir import ir

_SPILL = re.compile(r"# (?:(\d+)-byte|\w+) (?:Folded )?Spill")
_VECTOR = re.compile(r"%[xyz]mm(\d+)")
_GENERAL = re.compile(r"%(?:[er]?([abcd])[xl]|[er]?([sd]i|[sb]p)l?|r(\d+)[dwb]?)\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_RAW)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    known = {(row["kernel"], row["isa"]) for row in read(args.file)}
    with gzip.open(args.file, "at", encoding="utf-8") as file:
        for candidate in kernel_set.sampled(args.seed):
            if len(known) >= args.count or time.perf_counter() > end:
                break
            key = candidate.kernel.name, candidate.isa.name
            if key not in known:
                known.add(key)
                file.write(json.dumps(compiled(candidate)) + "\n")
    print(f"{args.file}: {len(known)} kernels")


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


def compiled(candidate: kernel_set.Candidate) -> dict[str, Any]:
    """The line of a kernel."""
    kernel, isa = candidate.kernel, candidate.isa
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, isa)
        text = str(module)
        lower_half_floats(module, isa)
        llvm, machine = kernels_to_llvm(module, isa, [kernel.name])
        machine.set_asm_verbosity(True)
        assembly = machine.emit_assembly(llvm)
    return {
        "kernel": kernel.name,
        "isa": isa.name,
        "strategy": candidate.strategy.name,
        "weight": candidate.weight,
        "activation": candidate.activation,
        "k": candidate.spec.k,
        **counts(assembly),
        "operations": kernel_text.operations(text),
        "tokens": kernel_text.tokens(text),
    }


def counts(assembly: str) -> dict[str, int]:
    """What register allocation came to."""
    spills = [int(match[1] or 8) for match in _SPILL.finditer(assembly)]
    general = {next(filter(None, match.groups())) for match in _GENERAL.finditer(assembly)}
    return {
        "vector_registers": len(set(_VECTOR.findall(assembly))),
        "general_registers": len(general),
        "spills": len(spills),
        "spilled_bytes": sum(spills),
        "assembly_lines": assembly.count("\n"),
    }


_RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
