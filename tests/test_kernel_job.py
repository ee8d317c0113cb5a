"""Jobs in forked processes: what fails is named, and no job outlives the block that began it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from abqc.codegen import kernel_job
from abqc.codegen.isa import PLAIN, Isa
from abqc.codegen.kernel_job import KernelJob
from abqc.errors import CompileError

EMPTY = "func.func @a(%i: index) { return }"


class Endless:
    """A job that has to be ended."""

    isa_name = "endless"

    def compile(self) -> bytes:
        time.sleep(100)
        return b""


def test_kernel_that_cannot_be_compiled_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compile_kernels(module: object, isa: Isa, names: list[str]) -> bytes:
        raise RuntimeError("LLVM\ncannot")

    monkeypatch.setenv("ABQC_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel_job, "compile_kernels", compile_kernels)
    job = KernelJob(PLAIN, ("a",), (None,), EMPTY)
    message = (
        r"compiling the plain kernels failed \(status 1\): CompileError: kernel a: LLVM cannot"
    )
    with kernel_job.running([job], tmp_path) as (running,), pytest.raises(CompileError) as caught:
        running.finish()
    assert re.fullmatch(message, str(caught.value))


def test_jobs_of_a_block_that_fails_are_ended(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(ValueError, match="other"),
        kernel_job.running([Endless(), Endless()], tmp_path) as jobs,
    ):
        raise ValueError("other")
    assert not any(Path(f"/proc/{job.pid}").exists() for job in jobs)
    assert os.listdir("/proc/self/fd") == before


def test_second_job_that_cannot_start_ends_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[int] = []
    fork = os.fork

    def fork_once() -> int:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(fork())
        return started[0]

    monkeypatch.setattr(os, "fork", fork_once)
    with (
        pytest.raises(BlockingIOError),
        kernel_job.running([Endless(), Endless()], tmp_path),
    ):
        pass
    assert not Path(f"/proc/{started[0]}").exists()
