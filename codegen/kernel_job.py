"""One form of all kernels, compiled in a process of its own, forked from this one.

Forms (instruction sets, GPU targets) compile at the same time, which threads cannot do (llvmlite
takes one lock for all of LLVM), and a crash of LLVM becomes an error instead of the end of the host
process. The fork wants this process to have one thread: contexts of MLIR start none (`mlir.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from ..dialects.mlir import ir
from ..errors import CompileError
from .cpu.half_floats import lower_half_floats
from .cpu.polynomials import expand_math
from .isa import Isa
from .llvm import compile_kernels
from .processes import end_with_parent
from .strategy import Kernel


class Job(Protocol):
    """Work for a process of its own."""

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
            lower_half_floats(module, self.isa)
            expand_math(module)
            table = f"abqc_kernels_{self.isa.name}"
            return compile_kernels(module, self.isa, self.names, table, linkage="internal")


class RunningJob:
    """A job in its process; `finish` gives the path of the result."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job = job
        self.path = path
        self.log = path.with_suffix(".log")
        self.running = True
        with open(self.log, "wb") as log:
            self.pid = os.fork()
            if self.pid == 0:
                self._work(log.fileno())

    def _work(self, log: int) -> NoReturn:
        """In the child: it writes the result, and of this process's output and clean-up it does
        nothing."""
        status = 1
        try:
            end_with_parent()
            os.dup2(log, 1)
            os.dup2(log, 2)
            self.path.write_bytes(self.job.compile())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def finish(self) -> Path:
        _, status = os.waitpid(self.pid, 0)
        self.running = False
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            raise CompileError(
                f"compiling the {self.job.form} kernels failed ({how}): "
                + (lines[-1] if lines else "the process died without a word")
            )
        return self.path

    def stop(self) -> None:
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.running = False


@contextlib.contextmanager
def running(jobs: Sequence[Job], work: Path) -> Iterator[list[RunningJob]]:
    """All jobs, started; what they make goes to `work`. None of them outlives the block."""
    begun: list[RunningJob] = []
    try:
        for job in jobs:
            begun.append(RunningJob(job, work / f"kernels_{job.form}.o"))
        yield begun
    finally:
        for one in begun:
            one.stop()
