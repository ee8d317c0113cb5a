"""One form of all kernels, compiled in a process of its own: `python -m abqc.codegen.kernel_job`.

Forms (instruction sets, GPU targets) compile at the same time, which threads cannot do (llvmlite
takes one lock for all of LLVM), and a crash of LLVM becomes an error instead of the end of the host
process.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..dialects.mlir import ir
from ..errors import CompileError
from .cpu.polynomials import expand_math
from .isa import Isa
from .llvm import compile_kernels
from .strategy import Kernel


class Job(Protocol):
    """Work for a process of its own; pickled on the way there."""

    @property
    def form(self) -> str:
        """What is compiled, for file names and messages."""
        ...

    def compile(self) -> bytes:
        """The result, as the contents of a file."""
        ...


@dataclass(frozen=True)
class KernelJob:
    """What a CPU form's object is made from.

    `outlined` is a module (text) with the kernels that are None in `kernels`; numbers of kernels
    are places in `names`.
    """

    isa: Isa
    names: tuple[str, ...]
    kernels: tuple[Kernel | None, ...]
    outlined: str

    @property
    def form(self) -> str:
        return self.isa.name

    def compile(self) -> bytes:
        """The object, with the table `abqc_kernels_<isa>`."""
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.parse(self.outlined)
            for kernel in self.kernels:
                if kernel is not None:
                    kernel.emit(module, self.isa)
            expand_math(module)
            table = f"abqc_kernels_{self.isa.name}"
            return compile_kernels(module, self.isa, self.names, table, linkage="internal")


class RunningJob:
    """A job in its process; `finish` gives the path of the result."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job = job
        self.path = path
        self.log = path.with_suffix(".log")
        with open(self.log, "wb") as log, open(path.with_suffix(".job"), "w+b") as request:
            pickle.dump(job, request)
            request.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "abqc.codegen.kernel_job", str(path)],
                stdin=request,
                stdout=log,
                stderr=log,
            )

    def finish(self) -> Path:
        status = self.process.wait()
        if status != 0:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise CompileError(
                f"compiling the {self.job.form} kernels failed (status {status}): "
                + (lines[-1] if lines else "the process died without a word")
            )
        return self.path

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def start(jobs: Sequence[Job], work: Path) -> list[RunningJob]:
    """Start all jobs; what they make goes to `work`."""
    return [RunningJob(job, work / f"kernels_{job.form}.o") for job in jobs]


def main() -> None:
    job = pickle.load(sys.stdin.buffer)
    Path(sys.argv[1]).write_bytes(job.compile())


if __name__ == "__main__":
    # Under this name the classes are other ones than those that were pickled.
    from abqc.codegen import kernel_job

    kernel_job.main()
