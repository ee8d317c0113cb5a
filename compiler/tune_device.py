"""Measuring built kernels on a GPU through the driver.

Weights are cold: each launch of a graph reads another copy, and all copies together exceed L2
twice. What the operands hold does not matter to the time; they are random bytes.
"""

from __future__ import annotations

import statistics
from ctypes import c_void_p
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np
from abqc.codegen.gpu.arch import GpuArch, by_name
from abqc.compiler.cuda_driver import L2_BYTES, Cuda, Launch, Resolve
from abqc.compiler.tune import Device, spread
from abqc.compiler.tune_jobs import BuiltKernel, GpuJob
from abqc.costmodel.interface import Sample
from abqc.errors import AbqcError, InputError

ALIGNMENT = 256
L2_TIMES = 2
MAX_COPIES = 256
CHUNK = 16 << 20  # random bytes are written so many at a time


def arch_named(target: str) -> GpuArch:
    """The GPU target of a name. InputError lists them."""
    try:
        return by_name(target)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error


class GpuRunner:
    """Measures jobs on device 0."""

    def __init__(self, cuda: Cuda, repetitions: int = 10) -> None:
        self._cuda = cuda
        self._repetitions = repetitions
        self._functions: dict[str, c_void_p] = {}
        self._buffers: dict[str, tuple[int, int]] = {}

    @classmethod
    def for_target(cls, target: str, resolve: Resolve | None = None) -> Self:
        """A runner on this machine's GPU. AbqcError where there is none that runs `target`."""
        arch = arch_named(target)
        cuda = Cuda(resolve)
        own = cuda.capability
        if own != arch.capability if arch.specific else own < arch.capability:
            raise AbqcError(
                f"{cuda.name} has compute capability {own[0]}.{own[1]}, kernels for {target} do "
                "not run on it"
            )
        return cls(cuda)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cuda.__exit__(kind, error, traceback)

    @cached_property
    def device(self) -> Device:
        return Device(self._cuda.name, self._cuda.driver_version)

    def measure(self, job: GpuJob) -> list[Sample]:
        f = job.features
        stride = -(-f.weight_bytes // ALIGNMENT) * ALIGNMENT
        cold = L2_TIMES * self._cuda.attribute(L2_BYTES)
        copies = min(MAX_COPIES, 1 + -(-cold // stride))
        weights = self._buffer("weights", stride * copies)
        launches = [
            launch for i in range(copies) for launch in self._launches(job, weights + i * stride)
        ]
        runs = [s / copies for s in self._cuda.time_graph(launches, self._repetitions)]
        seconds, repetitions = statistics.median(runs), copies * len(runs)
        return [Sample(f, seconds, repetitions=repetitions, spread=spread(runs))]

    def _launches(self, job: GpuJob, weight: int) -> list[Launch]:
        """The matmul and, after a split, the reduction; arguments are those of docs/gpu.md."""
        f = job.features
        q = self._buffer("activations", f.activation_bytes)
        bias = self._buffer("bias", 4 * f.n)
        y = self._buffer("y", 4 * f.m * f.n)
        if job.reduce is None:
            shared: tuple[int, ...] = ()
            if job.counters:
                shared = (self._buffer("slots", job.slots_bytes), 0, self._zeros(job.counters))
            return [self._launch(job.kernel, job.grid, (q, weight, bias, y, f.m, f.n, *shared))]
        space = self._buffer("workspace", f.workspace_bytes)
        return [
            self._launch(job.kernel, job.grid, (q, weight, bias, space, f.m, f.n)),
            self._launch(job.reduce, job.reduce_grid, (space, q, weight, bias, y, f.m, f.n)),
        ]

    def _launch(self, kernel: BuiltKernel, grid: int, arguments: tuple[int, ...]) -> Launch:
        function = self._function(kernel)
        return Launch(function, grid, kernel.threads, kernel.shared_bytes, arguments, kernel.maps)

    def _function(self, kernel: BuiltKernel) -> c_void_p:
        if kernel.name not in self._functions:
            module = self._cuda.load(kernel.image.read_bytes())
            function = self._cuda.function(module, kernel.name, kernel.shared_bytes)
            self._functions[kernel.name] = function
        return self._functions[kernel.name]

    def _buffer(self, name: str, nbytes: int) -> int:
        """A buffer of random bytes, at least so long, that jobs share."""
        address, size = self._buffers.get(name, (0, 0))
        if size < nbytes:
            size = nbytes + ALIGNMENT
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._fill(address, size)
            self._buffers[name] = (address, size)
        return address

    def _zeros(self, words: int) -> int:
        """A buffer of zeros, which kernels leave as they find it."""
        address, size = self._buffers.get("zeros", (0, 0))
        if size < 4 * words:
            if address:
                self._cuda.free(address)
            address, size = self._cuda.allocate(4 * words), 4 * words
            self._cuda.write(address, bytes(size))
            self._buffers["zeros"] = (address, size)
        return address

    def _fill(self, address: int, nbytes: int) -> None:
        data = np.random.default_rng(0).bytes(min(CHUNK, nbytes))
        for begin in range(0, nbytes, CHUNK):
            self._cuda.write(address + begin, data[: nbytes - begin])
