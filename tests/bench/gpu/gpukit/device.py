"""The GPU as a kit uses it: kernels by name, buffers that jobs share, cold weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_size_t, c_uint64, c_void_p
from typing import Literal

import numpy as np
from abqc.compiler.cuda_driver import L2_BYTES, Cuda, Launch, Resolve
from abqc.errors import AbqcError

from .graphs import instantiate
from .kit import Kit, MatmulLaunches

MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
CLOCK_KHZ = 13  # CU_DEVICE_ATTRIBUTE_CLOCK_RATE
ALIGNMENT = 256
L2_TIMES = 2  # all copies of a weight together, over the L2 cache
MAX_COPIES = 256
FILL_BYTES = 4096  # of a block of the filling kernels: 256 threads x 16 bytes
SECONDS = 0.15  # a measurement repeats for so long, within these bounds:
FEWEST, MOST = 3, 20
LAUNCHES = 16  # of a graph at least: the start of the graph itself is spread over them

# What a driver says of code that a newer ptxas has made.
UNREADABLE = (
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
)

Fill = Literal["fill_bytes", "fill_floats", "zeros"]


class KitDevice(Cuda):
    """Device 0 and a kit's kernels on it. AbqcError where the GPU cannot run them."""

    def __init__(self, kit: Kit, resolve: Resolve | None = None) -> None:
        super().__init__(resolve)
        self.kit = kit
        own = self.capability
        if own != kit.capability if kit.specific else own < kit.capability:
            raise AbqcError(
                f"{self.name} has compute capability {own[0]}.{own[1]}, this kit is for "
                f"{kit.target}",
                hint="build one with --target",
            )
        self.from_ptx: set[str] = set()  # kernels that the driver has compiled
        self._functions: dict[str, c_void_p] = {}
        self._buffers: dict[str, tuple[int, int]] = {}

    @property
    def multiprocessors(self) -> int:
        return self.attribute(MULTIPROCESSORS)

    @property
    def l2_bytes(self) -> int:
        return self.attribute(L2_BYTES)

    def launch_of(self, name: str, grid: int, *arguments: int) -> Launch:
        """A launch of a kernel of the kit."""
        image = self.kit.kernels[name]
        if name not in self._functions:
            module = self._module(name)
            self._functions[name] = self.function(module, name, image.shared_bytes)
        return Launch(
            self._functions[name],
            grid,
            image.threads,
            image.shared_bytes,
            arguments,
            image.tensor_parameters,
        )

    def _module(self, name: str) -> c_void_p:
        """A kernel's code; its PTX, where it is there, for a driver that cannot read the cubin."""
        try:
            return self.load(self.kit.image(name))
        except AbqcError as error:
            unread = any(code in str(error) for code in UNREADABLE)
            if not unread or not self.kit.kernels[name].ptx:
                raise
        self.from_ptx.add(name)
        return self.load(self.kit.image(name, ptx=True))

    def run(self, *launches: Launch) -> None:
        """Launch and wait."""
        for launch in launches:
            self.launch(launch)
        self.call("cuCtxSynchronize")

    # Memory

    def buffer(self, name: str, nbytes: int, fill: Fill | None = None) -> int:
        """A buffer of at least so many bytes that jobs share, filled when it is made."""
        address, size = self._buffers.get(name, (0, 0))
        if size < nbytes:
            if address:
                del self._buffers[name]
                self.free(address)
            size = -(-nbytes // FILL_BYTES) * FILL_BYTES
            address = self.allocate(size)
            if fill == "zeros":
                self.write(address, bytes(size))
            elif fill:
                self.run(self.launch_of(fill, size // FILL_BYTES, address, len(self._buffers) + 1))
            self._buffers[name] = (address, size)
        return address

    def upload(self, array: np.ndarray) -> int:
        """A new buffer with what is in `array`; `free` releases it."""
        address = self.allocate(max(array.nbytes, 16))
        self.write(address, np.ascontiguousarray(array).tobytes())
        return address

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """uint8 [nbytes]."""
        data = np.empty(nbytes, np.uint8)
        self.call("cuMemcpyDtoH_v2", c_void_p(data.ctypes.data), c_uint64(address), _size(nbytes))
        return data

    # Time

    def seconds(self, launches: Sequence[Launch]) -> tuple[float, int]:
        """The median of one graph of all launches, and how often it ran."""
        first = self.time_graph(launches, 1)[0]
        wanted = int(SECONDS / max(first, 1e-6))
        runs = self.time_graph(launches, max(FEWEST, min(MOST, wanted)))
        return statistics.median(runs), len(runs)

    def time_nodes(self, launches: Sequence[Launch], *, chain: bool) -> list[float]:
        """Seconds of a graph of these launches, one behind the other or side by side."""
        return self.time_executable(instantiate(self, launches, chain=chain), MOST)

    def clock(self) -> float | None:
        """Cycles a second as they are now; None where the clock stands still."""
        out = self.buffer("clock", 4096)
        self.run(self.launch_of("probe_clock", 1, out, self.kit.probe.clock_turns))
        cycles, nanoseconds = self.read(out, 16).view(np.uint64).tolist()
        return 1e9 * cycles / nanoseconds if nanoseconds else None

    def copies(self, nbytes: int) -> int:
        """How many copies of a weight are together L2_TIMES as large as the L2 cache."""
        return copies(nbytes, self.l2_bytes)

    def cold_seconds(
        self, nbytes: int, launches: Callable[[int], Sequence[Launch]]
    ) -> tuple[float, int]:
        """Seconds of `launches(weight)`, each time of another copy of a weight of `nbytes`."""
        count = self.copies(nbytes)
        base = self.buffer("weights", aligned(nbytes) * count, "fill_bytes")
        places = [base + i % count * aligned(nbytes) for i in range(max(count, LAUNCHES))]
        seconds, runs = self.seconds([launch for at in places for launch in launches(at)])
        return seconds / len(places), runs * len(places)

    def copy_seconds(self, to: int, source: int, nbytes: int) -> float:
        """The fastest of several runs of cuMemcpyDtoDAsync."""
        copy = ("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), _size(nbytes), self._stream)
        begin, end = self._event(), self._event()
        times = []
        for _ in range(1 + MOST):
            self.call("cuEventRecord", begin, self._stream)
            self.call(*copy)
            self.call("cuEventRecord", end, self._stream)
            self.call("cuEventSynchronize", end)
            times.append(self._elapsed(begin, end))
        for event in (begin, end):
            self.call("cuEventDestroy_v2", event)
        return min(times[1:])

    def _elapsed(self, begin: c_void_p, end: c_void_p) -> float:
        milliseconds = c_float()
        self.call("cuEventElapsedTime", byref(milliseconds), begin, end)
        return milliseconds.value / 1e3


def matmul_launches(
    device: KitDevice, job: MatmulLaunches, m: int, n: int, q: int, weight: int, bias: int, y: int
) -> list[Launch]:
    """The product and, after a split, the reduction; arguments are those of docs/gpu.md."""
    if job.reduce is None:
        shared = []
        if job.counters:
            slots = device.buffer("workspace", job.slots_bytes)
            shared = [slots, 0, device.buffer("counters", 4 * job.counters, "zeros")]
        return [device.launch_of(job.kernel, job.grid, q, weight, bias, y, m, n, *shared)]
    space = device.buffer("workspace", 4 * job.split * m * n)
    return [
        device.launch_of(job.kernel, job.grid, q, weight, bias, space, m, n),
        device.launch_of(job.reduce, job.reduce_grid, space, q, weight, bias, y, m, n),
    ]


def pack_launch(device: KitDevice, job: MatmulLaunches, m: int, x: int, q: int) -> list[Launch]:
    """Quantizing the activations; nothing where rows are read as f32."""
    return [device.launch_of(job.pack, job.pack_grid, x, q, m)] if job.pack else []


def copies(nbytes: int, l2_bytes: int) -> int:
    """How many buffers used in turns are cold each time."""
    return min(MAX_COPIES, 1 + -(-L2_TIMES * l2_bytes // aligned(nbytes)))


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _size(nbytes: int) -> c_size_t:
    return c_size_t(nbytes)
