"""All kernels for one ISA, compiled in a process of its own, forked from this one.

ISAs (instruction sets, GPU targets) compile at the same time, which threads cannot do (llvmlite
takes one lock for all of LLVM), and a crash of LLVM becomes an error instead of the end of the host
process. The fork wants this process to have one thread: contexts of MLIR start none (`mlir.py`).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from ..dialects.mlir import ir
from ..errors import CompileError
from .arithmetic.expand_math import expand_math
from .arithmetic.half_floats import lower_half_floats
from .isa import Isa
from .kernel_cache import KernelCache
from .llvm import compile_kernels, functions
from .processes import end_with_parent
from .strategy import Kernel


class Job(Protocol):
    """Work for a process of its own."""

    @property
    def isa_name(self) -> str:
        """What is compiled, for file names and messages."""
        ...

    def compile(self) -> bytes:
        """The result, as the contents of a file."""
        ...


@dataclass(frozen=True)
class KernelJob:
    """What the objects of one instruction set are made from.

    `outlined` is a module (text) with the kernels that are None in `kernels`; numbers of kernels
    are places in `names`.
    """

    isa: Isa
    names: tuple[str, ...]
    kernels: tuple[Kernel | None, ...]
    outlined: str

    @property
    def isa_name(self) -> str:
        return self.isa.name

    def compile(self) -> bytes:
        """Pickled objects by the names of kernels; each defines its `kernel_symbol`."""
        cache = KernelCache()
        with ir.Context() as context, ir.Location.unknown():
            context.enable_multithreading(False)
            library = ir.Module.parse(self.outlined)  # which owns the functions
            outlined = functions(library)
            objects = {
                name: self._compile(name, kernel, outlined, cache)
                for name, kernel in zip(self.names, self.kernels, strict=True)
            }
        cache.trim()
        return pickle.dumps(objects)

    def _compile(
        self,
        name: str,
        kernel: Kernel | None,
        outlined: dict[str, ir.Operation],
        cache: KernelCache,
    ) -> bytes:
        """One kernel, from the cache if it is there."""
        module = ir.Module.create()
        if kernel is None:
            module.body.append(outlined[name].clone())
        else:
            kernel.emit(module, self.isa)
        key = cache.key(repr(self.isa), name, module.operation.get_asm())
        known = cache.get(key)
        if known is not None:
            return known
        symbol = kernel_symbol(name, self.isa.name)
        functions(module)[name].attributes["sym_name"] = ir.StringAttr.get(symbol)
        lower_half_floats(module, self.isa)
        expand_math(module)
        try:
            made = compile_kernels(module, self.isa, [symbol])
        except Exception as error:
            raise CompileError(f"kernel {name}: {error}") from error
        cache.put(key, made)
        return made


def kernel_symbol(name: str, isa: str) -> str:
    """The symbol of a kernel's entry: those of all ISAs are linked together."""
    return f"{name}.{isa}"


class RunningJob:
    """A job in its process; `finish` gives the path of the result."""

    def __init__(self, job: Job, path: Path) -> None:
        self.job = job
        self.path = path
        self.running = True
        reader, writer = os.pipe()
        self.log = open(reader, errors="replace")  # noqa: SIM115 (finish and stop close it)
        self.pid = os.fork()
        if self.pid == 0:
            self._work(writer)
        os.close(writer)

    def _work(self, log: int) -> NoReturn:
        """In the child: it writes the result, and of this process's output and clean-up it does
        nothing."""
        status = 1
        try:
            end_with_parent()
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            self.path.write_bytes(self.job.compile())
            status = 0
        except BaseException as error:
            traceback.print_exc()
            print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def finish(self) -> Path:
        with self.log:
            lines = self.log.read().strip().splitlines()
        _, status = os.waitpid(self.pid, 0)
        self.running = False
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            raise CompileError(
                f"compiling the {self.job.isa_name} kernels failed ({how}): "
                + (lines[-1] if lines else "the process died without a word")
            )
        return self.path

    def stop(self) -> None:
        if self.running:
            self.log.close()
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.running = False


@contextlib.contextmanager
def running(jobs: Sequence[Job], work: Path) -> Iterator[list[RunningJob]]:
    """All jobs, started; what they make goes to `work`. None of them outlives the block."""
    begun: list[RunningJob] = []
    try:
        for job in jobs:
            begun.append(RunningJob(job, work / f"kernels_{job.isa_name}.o"))
        yield begun
    finally:
        for one in begun:
            one.stop()
