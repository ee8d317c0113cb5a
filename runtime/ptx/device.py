"""A device that executes PTX: memory, and launches of kernels on it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..gpu_limits import GpuLimits, limits_of
from ..tensor_parameter import TensorParameter
from .batch import Batch, Dim3, Launch
from .dependents import Dependence, LaunchRecord
from .errors import PtxFault
from .memory import GlobalMemory
from .module import Kernel, PtxModule
from .parser import parse
from .program import Program
from .scheduler import Scheduler
from .syntax import Float, Symbol, Variable
from .tensor_map import encode_tiled

# Lanes of a batch: enough to make numpy's calls cheap, few enough for registers to stay in caches.
_BATCH_LANES = 8_192
_BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class Unwritten:
    """A buffer that a kernel is to write before anybody reads it: reading it is a fault, and what
    is left of it is poison."""

    count: int
    dtype: type = np.float32

    @property
    def nbytes(self) -> int:
        return self.count * np.dtype(self.dtype).itemsize

    @property
    def shape(self) -> tuple[int]:
        return (self.count,)


class Device:
    """`memory_bytes` of global memory and the limits of a GPU of a compute capability (InputError
    where they are not known).

    `check_unwritten`: reading memory that nobody wrote is a fault. `check_races`: so are unordered
    accesses to shared memory, and lanes of one instruction that write different values to one
    place. `instruction_limit`: of one batch, against endless loops. `batch_lanes`: how many threads
    run at once, about.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        memory_bytes: int = 1 << 30,
        *,
        check_unwritten: bool = True,
        check_races: bool = True,
        instruction_limit: int = 50_000_000,
        batch_lanes: int = _BATCH_LANES,
    ) -> None:
        self.capability = capability
        self.limits = limits_of(capability)
        self.memory = GlobalMemory(memory_bytes, check_unwritten, check_races)
        self.check_unwritten = check_unwritten
        self.check_races = check_races
        self.instruction_limit = instruction_limit
        self.batch_lanes = batch_lanes
        self._launches = 0
        self._symbols: dict[int, tuple[PtxModule, dict[str, int]]] = {}

    # -- memory

    def allocate(self, nbytes: int) -> int:
        """The address of `nbytes` of global memory, not yet written."""
        return self.memory.allocate(nbytes)

    def free(self, address: int) -> None:
        self.memory.free(address)

    def write(self, address: int, array: np.ndarray) -> None:
        self.memory.write(address, np.asarray(array))

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """A copy, as bytes."""
        return self.memory.read(address, nbytes)

    # -- modules

    def load(self, module: PtxModule) -> dict[str, int]:
        """The addresses of a module's global and constant variables, which live from now on."""
        known = self._symbols.get(id(module))
        if known is None:
            variables = [v for v in module.variables if v.space in ("global", "const")]
            addresses = {v.name: self.memory.allocate(v.bytes, v.name) for v in variables}
            for variable in variables:
                self._initialize(variable, addresses)
            known = self._symbols[id(module)] = (module, addresses)
        return known[1]

    def unload(self, module: PtxModule) -> None:
        """Frees the module's variables."""
        known = self._symbols.pop(id(module), None)
        for address in known[1].values() if known else ():
            self.memory.free(address)

    def _initialize(self, variable: Variable, addresses: dict[str, int]) -> None:
        """Variables start as zero where their declaration says nothing else."""
        dtype = np.dtype(f"u{variable.type.bytes}")
        values = np.zeros(variable.elements, dtype)
        for index, value in enumerate(variable.initial):
            if isinstance(value, Symbol):
                value = addresses[value.name] + value.offset
            bits = value.bits if isinstance(value, Float) else value
            values[index] = bits & int(np.iinfo(dtype).max)
        self.memory.write(addresses[variable.name], values)

    # -- launches

    def launch(
        self,
        kernel: Kernel,
        grid: Dim3,
        block: Dim3,
        parameters: Sequence[int | float | bytes],
        shared_bytes: int = 0,
        counters: Any = None,
        *,
        after: Sequence[LaunchRecord] = (),
        complete: Sequence[LaunchRecord] = (),
    ) -> LaunchRecord:
        """Runs a kernel to its end; PtxFault where it does wrong.

        `after`: launches that it may overlap with, by programmatic edges or attributes; `complete`:
        others that it depends on. What was launched before and is not named has ended.
        """
        _check_extents(self.limits, kernel, grid, block, shared_bytes)
        program = kernel.program
        data = _pack(kernel, program, parameters)
        symbols = self.load(kernel.module)
        address = self.memory.allocate(len(data), "of the kernel's parameters")
        try:
            self.memory.write(address, data)
            launch = Launch(self, program, grid, block, shared_bytes, data, address, symbols)
            self._launches += 1
            dependence = Dependence(self._launches, kernel.name, after, complete)
            self.memory.dependence = dependence
            if program.hands_over and self.check_races:
                self.memory.watch_handovers()
            self._run(launch, counters, dependence)
            return dependence.record()
        finally:
            self.memory.dependence = self.memory.handovers = None
            self.memory.free(address)

    def _run(self, launch: Launch, counters: Any, dependence: Dependence) -> None:
        size = self._blocks_at_once(launch)
        if counters is not None:
            counters.begin(launch.program.kernel, launch.grid, launch.block)
        scheduler: Scheduler | None = None
        with np.errstate(all="ignore"):
            for first in range(0, launch.blocks, size):
                count = min(size, launch.blocks - first)
                if scheduler is None or scheduler.batch.blocks != count:
                    scheduler = Scheduler(Batch(launch, count), counters)
                scheduler.batch.start(first)
                if self.memory.handovers is not None:
                    self.memory.handovers.batch = scheduler.batch
                dependence.start(scheduler.batch.lanes)
                scheduler.run()

    def _blocks_at_once(self, launch: Launch) -> int:
        """As many blocks as make a batch: by threads, and by the memory that they need."""
        registers = launch.program.register_bytes
        local = 2 * launch.program.local_bytes
        needed = launch.padded_threads * (registers + local) + 8 * launch.shared_bytes
        by_memory = _BATCH_BYTES // max(needed, 1)
        by_threads = self.batch_lanes // launch.padded_threads
        return max(1, min(by_memory, by_threads, launch.blocks))


def _check_extents(
    limits: GpuLimits, kernel: Kernel, grid: Dim3, block: Dim3, shared_bytes: int
) -> None:
    threads = block[0] * block[1] * block[2]
    name = kernel.name
    if min(*grid, *block) < 1:
        raise PtxFault(f"an empty launch: grid {grid}, block {block}", kernel=name)
    if grid[0] >= 1 << 31 or max(grid[1:]) >= 1 << 16:
        raise PtxFault(f"a grid of {grid} blocks, of which a device runs 2^31 - 1", kernel=name)
    most = min(limits.threads_per_block, kernel.max_threads or limits.threads_per_block)
    if threads > most:
        raise PtxFault(f"a block of {threads} threads, at most {most}", kernel=name)
    if kernel.required_threads and threads != kernel.required_threads:
        raise PtxFault(
            f"a block of {threads} threads, .reqntid says {kernel.required_threads}", kernel=name
        )
    cluster = kernel.function.bounds.get("reqnctapercluster", (1,))
    if max(cluster) > 1:
        raise PtxFault(f"clusters of {cluster} blocks are not supported", kernel=name)
    shared, most = kernel.shared_bytes + shared_bytes, limits.shared_per_block
    if shared > most:
        raise PtxFault(f"{shared} bytes of shared memory, at most {most}", kernel=name)


def _pack(
    kernel: Kernel, program: Program, parameters: Sequence[int | float | bytes]
) -> np.ndarray:
    """The parameters as bytes, where the kernel expects them."""
    if len(parameters) != len(kernel.parameters):
        raise PtxFault(
            f"{len(parameters)} parameters, {len(kernel.parameters)} expected", kernel=kernel.name
        )
    data = bytearray(program.parameter_bytes)
    for declared, value in zip(kernel.parameters, parameters, strict=True):
        start = program.parameter_offsets[declared.name]
        data[start : start + declared.bytes] = _encoded(declared, value, kernel)
    return np.frombuffer(bytes(data), np.uint8)


def _encoded(declared: Variable, value: int | float | bytes, kernel: Kernel) -> bytes:
    size = declared.bytes
    if isinstance(value, bytes):
        if len(value) != size:
            raise PtxFault(
                f"parameter {declared.name} has {size} bytes, not {len(value)}", kernel=kernel.name
            )
        return value
    if isinstance(value, (float, np.floating)):
        if declared.type.is_integer and declared.type.kind != "b":
            raise PtxFault(f"parameter {declared.name} is no float", kernel=kernel.name)
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], float(value))
    if declared.type.kind == "f":
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], float(value))
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def run_kernel(
    text: str,
    name: str,
    grid: int | Dim3,
    threads: int | Dim3,
    arguments: Sequence[np.ndarray | Unwritten | int | float],
    shared_bytes: int = 0,
    *,
    device: Device | None = None,
    counters: Any = None,
    maps: Sequence[TensorParameter] = (),
) -> list[np.ndarray]:
    """Runs one kernel on buffers made of the arrays; returns these as they are afterwards.
    `maps`: of its parameters, behind the arguments."""
    device = device or Device()
    module = _parsed(text)
    addresses: list[int] = []
    parameters: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray | Unwritten):
            addresses.append(device.allocate(argument.nbytes))
            parameters.append(addresses[-1])
            if isinstance(argument, np.ndarray):
                device.write(addresses[-1], argument)
        else:
            parameters.append(argument)
    if name not in module.kernels:
        raise PtxFault(f"the module has no kernel {name}, but {', '.join(module.kernels)}")
    parameters += [encode_tiled(*each.tiled(parameters)) for each in maps]
    device.launch(
        module.kernels[name], _dim3(grid), _dim3(threads), parameters, shared_bytes, counters
    )
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray | Unwritten)]
    results = [
        device.read(address, array.nbytes).view(array.dtype).reshape(array.shape)
        for address, array in zip(addresses, arrays, strict=True)
    ]
    for address in addresses:
        device.free(address)
    device.unload(module)
    return results


@lru_cache(maxsize=64)
def _parsed(text: str) -> PtxModule:
    return parse(text)


def _dim3(extents: int | Dim3) -> Dim3:
    return (extents, 1, 1) if isinstance(extents, int) else extents
