"""The CUDA driver through ctypes: what measuring kernels needs, and nothing else.

    with Cuda() as cuda:
        module = cuda.load(cubin)
        kernel = cuda.function(module, "name", shared_bytes)
        seconds = cuda.time_graph([Launch(kernel, grid, threads, shared_bytes, (pointer, 128))])

Names and constants are those of cuda.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from abqc.errors import AbqcError
from abqc.runtime.tensor_parameter import (
    MAP_ALIGNMENT,
    MAP_BYTES,
    TensorParameter,
    TiledTensor,
)

Resolve = Callable[[str], int | None]  # a function of the driver by name -> its address

CAPABILITY_MAJOR, CAPABILITY_MINOR, L2_BYTES = 75, 76, 38  # CU_DEVICE_ATTRIBUTE_*
MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
STATIC_SHARED_LIMIT = 48 << 10  # more must be asked for


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; an argument is a device pointer or a 32-bit integer in its slot.
    `maps`: the tensor maps behind these."""

    function: c_void_p
    grid: int
    threads: int
    shared_bytes: int
    arguments: tuple[int, ...]
    maps: tuple[TensorParameter, ...] = ()


class Cuda:
    """Device 0, its primary context and one stream. AbqcError where a call of the driver fails."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        """`resolve` stands for the driver's library: for tests, and for other drivers."""
        self._resolve = resolve or _system_driver()
        self._allocated: list[int] = []
        self.call("cuInit", c_uint(0))
        self._device = c_int()
        self.call("cuDeviceGet", byref(self._device), c_int(0))
        context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self.call("cuCtxPushCurrent_v2", context)
        self._stream = c_void_p()
        self.call("cuStreamCreate", byref(self._stream), c_uint(1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:  # after a fault every further call fails, and hides the first
            self.free_all()
            self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. AbqcError names it and what went wrong."""
        status = self._function(name)(*arguments)
        if status:
            raise AbqcError(f"{name} failed: {self._error_text(status)}")

    def address(self, name: str) -> int:
        """Of a function of the driver."""
        address = self._resolve(name)
        if not address:
            raise AbqcError(f"the CUDA driver has no {name}", hint="update the driver")
        return address

    def _function(self, name: str) -> Callable[..., int]:
        return ctypes.CFUNCTYPE(c_int)(self.address(name))

    def _error_text(self, status: int) -> str:
        text = c_char_p()
        address = self._resolve("cuGetErrorName")
        if address and not ctypes.CFUNCTYPE(c_int)(address)(c_int(status), byref(text)):
            return f"{(text.value or b'').decode()} ({status})"
        return f"error {status}"

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, c_int(256), self._device)
        return text.value.decode()

    @property
    def driver_version(self) -> str:
        """As `13.0`."""
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def attribute(self, number: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), c_int(number), self._device)
        return value.value

    @property
    def capability(self) -> tuple[int, int]:
        return self.attribute(CAPABILITY_MAJOR), self.attribute(CAPABILITY_MINOR)

    def allocate(self, nbytes: int) -> int:
        """A device address."""
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(nbytes))
        self._allocated.append(pointer.value)
        return pointer.value

    def free(self, address: int) -> None:
        self._allocated.remove(address)
        self.call("cuMemFree_v2", c_uint64(address))

    def free_all(self) -> None:
        for address in list(self._allocated):
            self.free(address)

    def write(self, address: int, data: bytes) -> None:
        """Copy to the device and wait: from pageable memory the copy may still be under way when
        the driver returns, and our stream waits for no other."""
        self.call("cuMemcpyHtoD_v2", c_uint64(address), c_char_p(data), c_size_t(len(data)))
        self.call("cuCtxSynchronize")

    def load(self, image: bytes) -> c_void_p:
        """A module from a cubin, or from PTX text with a final NUL."""
        module = c_void_p()
        self.call("cuModuleLoadDataEx", byref(module), c_char_p(image), c_uint(0), None, None)
        return module

    def unload(self, module: c_void_p) -> None:
        self.call("cuModuleUnload", module)

    def function(self, module: c_void_p, name: str, shared_bytes: int) -> c_void_p:
        """A kernel that may be launched with so many bytes of dynamic shared memory."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), module, c_char_p(name.encode()))
        if shared_bytes > STATIC_SHARED_LIMIT:
            limit = c_int(MAX_DYNAMIC_SHARED_BYTES)
            self.call("cuFuncSetAttribute", function, limit, c_int(shared_bytes))
        return function

    def parameters(self, launch: Launch) -> tuple[ctypes.Array[c_void_p], list[Any]]:
        """Where the driver finds the parameters of a launch, and what has to live as long."""
        slots = (c_uint64 * len(launch.arguments))(*launch.arguments)
        step = ctypes.sizeof(c_uint64)
        places = [ctypes.addressof(slots) + step * i for i in range(len(slots))]
        kept: list[Any] = [slots]
        for parameter in launch.maps:
            buffer = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
            places.append(-(-ctypes.addressof(buffer) // MAP_ALIGNMENT) * MAP_ALIGNMENT)
            self._encode(places[-1], parameter.tiled(launch.arguments))
            kept.append(buffer)
        return (c_void_p * len(places))(*places), kept

    def _encode(self, place: int, tensor: TiledTensor) -> None:
        rank = len(tensor.sizes)
        self.call(
            "cuTensorMapEncodeTiled",
            c_void_p(place),
            c_int(tensor.data_type),
            c_uint(rank),
            c_void_p(tensor.address),
            (c_uint64 * rank)(*tensor.sizes),
            (c_uint64 * rank)(*tensor.strides),
            (c_uint * rank)(*tensor.box),
            (c_uint * rank)(*tensor.steps),
            c_int(tensor.interleave),
            c_int(tensor.swizzle),
            c_int(tensor.promotion),
            c_int(tensor.fill),
        )

    def launch(self, launch: Launch) -> None:
        """Put a launch on the stream."""
        parameters, kept = self.parameters(launch)
        one = c_uint(1)
        self.call(
            "cuLaunchKernel",
            launch.function,
            *(c_uint(launch.grid), one, one),
            *(c_uint(launch.threads), one, one),
            c_uint(launch.shared_bytes),
            self._stream,
            parameters,
            None,
        )
        del kept

    def time_graph(self, launches: Sequence[Launch], repetitions: int) -> list[float]:
        """Seconds of `launches` as one CUDA graph, each time it ran; a first run is not counted."""
        return self.time_executable(self._capture(launches), repetitions)

    def time_executable(self, graph: c_void_p, repetitions: int) -> list[float]:
        """The same of an executable graph, which is then destroyed."""
        begin, end = self._event(), self._event()
        seconds = []
        for repetition in range(repetitions + 1):
            self.call("cuEventRecord", begin, self._stream)
            self.call("cuGraphLaunch", graph, self._stream)
            self.call("cuEventRecord", end, self._stream)
            self.call("cuEventSynchronize", end)
            milliseconds = c_float()
            self.call("cuEventElapsedTime", byref(milliseconds), begin, end)
            if repetition:
                seconds.append(milliseconds.value / 1e3)
        self.call("cuGraphExecDestroy", graph)
        for event in (begin, end):
            self.call("cuEventDestroy_v2", event)
        return seconds

    def _capture(self, launches: Sequence[Launch]) -> c_void_p:
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self._stream, c_int(CAPTURE_THREAD_LOCAL))
        for launch in launches:
            self.launch(launch)
        self.call("cuStreamEndCapture", self._stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        self.call("cuGraphDestroy", graph)
        return executable

    def _event(self) -> c_void_p:
        event = c_void_p()
        self.call("cuEventCreate", byref(event), c_uint(0))
        return event


def _system_driver() -> Resolve:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise AbqcError(
            "there is no NVIDIA driver here (libcuda.so.1)",
            hint="do this where there is a GPU",
        ) from error

    def resolve(name: str) -> int | None:
        function = getattr(library, name, None)
        return ctypes.cast(function, c_void_p).value if function else None

    return resolve
