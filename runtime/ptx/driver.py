"""The CUDA driver API over the PTX machine: a model runs without a GPU, checked at every access.

    driver = PtxDriver((9, 0))
    model = abqc.load("model.so", device=driver)       # or device="ptx-vm"

An artifact's shim asks `resolver` for the functions that it would else find in libcuda.so.1.
Streams and events do nothing: what is put into a stream is done at once, what is captured is done
when the graph is launched. A copy from the host that nobody has waited for is noted: launches in
streams that do not wait for it are faults. Numbers and names are those of cuda.h.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..gpu_limits import limits_of
from .device import Device
from .driver_api import (
    ERROR_NAMES,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    INVALID_PTX,
    INVALID_VALUE,
    LAUNCH_FAILED,
    NO_BINARY_FOR_GPU,
    NOT_FOUND,
    OUT_OF_MEMORY,
    SIGNATURES,
    SUCCESS,
    WITHOUT_CONTEXT,
    GraphEdgeData,
    KernelNodeParams,
)
from .driver_machine import Machine, PtxMachine
from .errors import PtxFault, PtxSyntaxError
from .tensor_map import MAP_ALIGNMENT, BadTensorMap, encode_tiled

_MAJOR, _MINOR, _POOLS = 75, 76, 115  # CUdevice_attribute
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_USUAL_SHARED = 48 << 10  # bytes that a launch may have without that
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CUjit_option
_NON_BLOCKING = 1  # CUstream_flags: does not wait for the legacy default stream
_DRIVER_VERSION = 13000
_PROGRAMMATIC = (1, 0, 1)  # port it leaves by, port it comes in by, CUgraphDependencyType
_ELF = b"\x7fELF"

Intercept = Callable[[str, Sequence[Any]], int | None]
Progress = Callable[[str, int], None]
Schedule = Callable[["Graph"], Sequence[int]]
# What is to be done, with the records of the launches that it may overlap with, and of the others
# that it follows; returns the launch's own.
Work = Callable[[Sequence[Any], Sequence[Any]], Any]


@dataclass
class GraphNode:
    """A launch of a graph: the handles of those that it follows, and of these the ones that it may
    overlap with (programmatic edges)."""

    name: str
    work: Work
    before: set[int] = field(default_factory=set)
    overlapped: set[int] = field(default_factory=set)


Graph = Mapping[int, GraphNode]


class DriverError(Exception):
    """Makes a driver function return `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(ERROR_NAMES.get(code, f"CUDA error {code}"))
        self.code = code


class Driver:
    """The driver API in Python over a machine. Functions have the names and parameters of cuda.h.

    `resolver` is the address for `abqc_instance_options.driver`; the object must outlive what was
    created with it. `intercept(name, arguments)` sees every call first and may return an error
    code in its place. `progress(kernel, blocks)` is told of every launch. With `separate_buffers`
    every buffer of a run is an allocation, whose bounds the machine knows; else all are parts of
    one, as on a GPU, and runs become graphs. Nodes of a graph are executed in the order that
    `schedule(graph)` gives, which must be one that their edges allow; None: that of their making.
    `without`: functions that the driver does not have.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        separate_buffers: bool = False,
        intercept: Intercept | None = None,
        progress: Progress | None = None,
        schedule: Schedule | None = None,
        without: Container[str] = (),
    ) -> None:
        self.machine = machine
        self.schedule = schedule
        self.separate_buffers = separate_buffers
        self.intercept = intercept
        self.progress = progress
        self._lock = threading.RLock()
        self._objects: dict[int, Any] = {}
        self._handles = itertools.count(0x1000, 0x10)
        self._captures: dict[int, dict[int, GraphNode]] = {}
        self._page_locked: dict[int, Any] = {}
        self._contexts = threading.local()
        self._copying = False  # cuMemcpyHtoD has returned, perhaps before the device has all of it
        self._faults: dict[int, BaseException] = {}
        self._names = {
            code: ctypes.create_string_buffer(name.encode()) for code, name in ERROR_NAMES.items()
        }
        self._shared_limits: dict[int, int] = {}  # by function
        self._context = self._new("context")
        self._functions = {
            name: ctypes.CFUNCTYPE(c_int, *types)(self._guarded(name))
            for name, types in SIGNATURES.items()
            if name not in without
        }
        self._resolve = ctypes.CFUNCTYPE(c_void_p, c_char_p)(self._address_of)

    @property
    def resolver(self) -> int:
        """The address of a `void *(*)(const char *name)`."""
        return ctypes.cast(self._resolve, c_void_p).value or 0

    def take_fault(self) -> BaseException | None:
        """What a call of this thread raised since the last time, once."""
        return self._faults.pop(threading.get_ident(), None)

    def _address_of(self, name: bytes) -> int | None:
        function = self._functions.get(name.decode())
        return ctypes.cast(function, c_void_p).value if function is not None else None

    def _guarded(self, name: str) -> Callable[..., int]:
        function = getattr(self, name)

        def call(*arguments: Any) -> int:
            with self._lock:
                try:
                    code = None if self.intercept is None else self.intercept(name, arguments)
                    if code is None and name not in WITHOUT_CONTEXT and not self._context_stack():
                        code = INVALID_CONTEXT
                    if code is None:
                        code = function(*arguments) or SUCCESS
                    return code
                except DriverError as error:
                    return error.code
                except MemoryError:
                    return OUT_OF_MEMORY
                except BaseException as error:  # it must not end in ctypes, which drops it
                    self._faults[threading.get_ident()] = error
                    return INVALID_PTX if isinstance(error, PtxSyntaxError) else LAUNCH_FAILED

        return call

    # -- objects behind handles

    def _new(self, value: Any) -> int:
        handle = next(self._handles)
        self._objects[handle] = value
        return handle

    def _get(self, handle: int | None) -> Any:
        if handle not in self._objects:
            raise DriverError(INVALID_HANDLE)
        return self._objects[handle]

    def _drop(self, handle: int | None) -> None:
        self._get(handle)
        del self._objects[handle]  # type: ignore[arg-type]

    def _enqueue(self, stream: int | None, work: Callable[[], None]) -> None:
        """Do it now, or when the graph that captures it is launched."""
        capture = self._captures.get(stream or 0)
        if capture is not None:
            node = GraphNode("", lambda after, complete: work(), set(list(capture)[-1:]))
            capture[next(self._handles)] = node
        else:
            work()

    # -- the driver and its device

    def cuInit(self, flags: int) -> int | None: ...

    def cuDriverGetVersion(self, version: int) -> None:
        _put(version, c_int, _DRIVER_VERSION)

    def cuGetErrorName(self, code: int, name: int) -> int | None:
        if code not in self._names:
            return INVALID_VALUE
        _put(name, c_void_p, ctypes.addressof(self._names[code]))
        return None

    def cuDeviceGetCount(self, count: int) -> None:
        _put(count, c_int, 1)

    def cuDeviceGet(self, device: int, ordinal: int) -> int | None:
        if ordinal != 0:
            return INVALID_DEVICE
        _put(device, c_int, 0)
        return None

    def cuDeviceGetName(self, name: int, length: int, device: int) -> None:
        text = b"PTX machine"[: length - 1] + b"\0"
        ctypes.memmove(name, text, len(text))

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> int | None:
        major, minor = self.machine.capability
        known = {_MAJOR: major, _MINOR: minor, _POOLS: 1}
        if attribute not in known:
            return INVALID_VALUE
        _put(value, c_int, known[attribute])
        return None

    # -- contexts

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> None:
        _put(context, c_void_p, self._context)

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> None: ...

    def _context_stack(self) -> list[int]:
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        return self._contexts.stack

    def cuCtxPushCurrent_v2(self, context: int) -> None:
        self._context_stack().append(context)

    def cuCtxPopCurrent_v2(self, context: int) -> int | None:
        stack = self._context_stack()
        if not stack:
            return INVALID_VALUE
        _put(context, c_void_p, stack.pop())
        return None

    def cuCtxSynchronize(self) -> None:
        self._copying = False

    # -- modules

    def cuModuleLoadDataEx(
        self, module: int, image: int, count: int, options: int | None, values: int | None
    ) -> int | None:
        if ctypes.string_at(image, 4) == _ELF:
            return NO_BINARY_FOR_GPU  # machine code; the caller has PTX too
        try:
            kernels = self.machine.load(ctypes.string_at(image).decode())
        except PtxSyntaxError as error:
            _put_log(str(error), count, options, values)
            raise
        _put(module, c_void_p, self._new((kernels, [])))
        return None

    def cuModuleUnload(self, module: int) -> None:
        for function in self._get(module)[1]:
            self._drop(function)
        self._drop(module)

    def cuModuleGetFunction(self, function: int, module: int, name: bytes) -> int | None:
        kernels, functions = self._get(module)
        text = name.decode()
        if text not in kernels:
            return NOT_FOUND
        functions.append(self._new((text, kernels[text])))
        _put(function, c_void_p, functions[-1])
        return None

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> int | None:
        self._get(function)
        if attribute != _MAX_DYNAMIC_SHARED:
            return INVALID_VALUE
        if value > limits_of(self.machine.capability).shared_per_block:
            return INVALID_VALUE
        self._shared_limits[function] = value
        return None

    # -- memory

    def cuMemGetInfo_v2(self, free: int, total: int) -> None:
        for pointer, value in zip((free, total), self.machine.memory(), strict=True):
            _put(pointer, c_size_t, value)

    def cuMemAlloc_v2(self, pointer: int, nbytes: int) -> int | None:
        if not nbytes:
            return INVALID_VALUE
        _put(pointer, c_uint64, self.machine.allocate(nbytes))
        return None

    def cuMemFree_v2(self, pointer: int) -> None:
        self.machine.free(pointer)

    # -- pools, which are memory like any other here

    def cuMemPoolCreate(self, pool: int, properties: int) -> None:
        _put(pool, c_void_p, self._new("pool"))

    def cuMemPoolDestroy(self, pool: int) -> None:
        self._drop(pool)

    def cuMemPoolSetAttribute(self, pool: int, attribute: int, value: int) -> None:
        self._get(pool)

    def cuMemPoolTrimTo(self, pool: int, kept: int) -> None:
        self._get(pool)

    def cuMemAllocFromPoolAsync(
        self, pointer: int, nbytes: int, pool: int, stream: int | None
    ) -> int | None:
        self._get(pool)
        if stream:
            self._get(stream)
        return self.cuMemAlloc_v2(pointer, nbytes)

    def cuMemFreeAsync(self, pointer: int, stream: int | None) -> None:
        if stream:
            self._get(stream)
        self.cuMemFree_v2(pointer)

    def cuMemAllocHost_v2(self, pointer: int, nbytes: int) -> None:
        memory = (ctypes.c_uint8 * nbytes)()
        self._page_locked[ctypes.addressof(memory)] = memory
        _put(pointer, c_void_p, ctypes.addressof(memory))

    def cuMemFreeHost(self, pointer: int) -> int | None:
        return None if self._page_locked.pop(pointer, None) is not None else INVALID_VALUE

    def _upload(self, to: int, source: int, nbytes: int) -> None:
        self.machine.write(to, _bytes_at(source, nbytes))

    def _download(self, to: int, source: int, nbytes: int) -> None:
        ctypes.memmove(to, self.machine.read(source, nbytes).tobytes(), nbytes)

    def cuMemcpyHtoD_v2(self, to: int, source: int, nbytes: int) -> None:
        """From memory that is not page-locked the driver copies by way of its own, and "the DMA to
        final destination may not have completed" (driver API, "API synchronization behavior")."""
        self._upload(to, source, nbytes)
        self._copying = True

    def cuMemcpyDtoH_v2(self, to: int, source: int, nbytes: int) -> None:
        """In the legacy default stream, so behind such copies, and waited for."""
        self._download(to, source, nbytes)
        self._copying = False

    def cuMemcpyHtoDAsync_v2(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._enqueue(stream, lambda: self._upload(to, source, nbytes))

    def cuMemcpyDtoHAsync_v2(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._enqueue(stream, lambda: self._download(to, source, nbytes))

    def cuMemcpyDtoDAsync_v2(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._enqueue(stream, lambda: self.machine.write(to, self.machine.read(source, nbytes)))

    # -- launches

    def cuLaunchKernel(
        self,
        function: int,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: int,
        parameters: int,
        extra: int,
    ) -> None:
        launch = KernelNodeParams(
            function, (grid_x, grid_y, grid_z), (block_x, block_y, block_z), shared, parameters
        )
        work = self._launch_of(launch)
        self._check_copied(stream)
        self._enqueue(stream, lambda: work((), ()))

    def _check_copied(self, stream: int | None) -> None:
        """Before kernels in a stream begin; those that are captured begin later."""
        waits = self._objects.get(stream or 0) != _NON_BLOCKING or stream in self._captures
        if self._copying and not waits:
            raise PtxFault(
                "kernels are launched in a stream that does not wait for the default stream, while "
                "cuMemcpyHtoD may still be copying there: cuCtxSynchronize is missing"
            )

    def _launch_of(self, launch: KernelNodeParams) -> Work:
        """The launch with the arguments as they are now."""
        name, kernel = self._get(launch.function)
        if launch.shared > self._shared_limits.get(launch.function, _USUAL_SHARED):
            raise DriverError(INVALID_VALUE)
        sizes = self.machine.parameter_sizes(kernel)
        pointers = (c_void_p * len(sizes)).from_address(launch.parameters) if sizes else ()
        values = [ctypes.string_at(p or 0, n) for p, n in zip(pointers, sizes, strict=True)]
        grid, block, shared = tuple(launch.grid), tuple(launch.block), launch.shared

        def work(after: Sequence[Any], complete: Sequence[Any]) -> Any:
            record = self.machine.launch(kernel, grid, block, values, shared, after, complete)
            if self.progress is not None:
                self.progress(name, grid[0])
            return record

        return work

    def cuTensorMapEncodeTiled(
        self,
        tensor_map: int,
        data_type: int,
        rank: int,
        address: int | None,
        sizes: int,
        strides: int | None,
        box: int,
        steps: int,
        interleave: int,
        swizzle: int,
        promotion: int,
        fill: int,
    ) -> int | None:
        if tensor_map % MAP_ALIGNMENT or not 1 <= rank <= 5 or (rank > 1 and not strides):
            return INVALID_VALUE
        try:
            words = encode_tiled(
                data_type,
                address or 0,
                list((c_uint64 * rank).from_address(sizes)),
                list((c_uint64 * (rank - 1)).from_address(strides)) if strides else [],
                list((c_uint * rank).from_address(box)),
                list((c_uint * rank).from_address(steps)),
                *(interleave, swizzle, promotion, fill),
            )
        except BadTensorMap:
            return INVALID_VALUE
        ctypes.memmove(tensor_map, words, len(words))
        return None

    # -- streams and events

    def cuStreamCreate(self, stream: int, flags: int) -> None:
        _put(stream, c_void_p, self._new(flags))

    def cuStreamDestroy_v2(self, stream: int) -> None:
        self._drop(stream)

    def cuStreamSynchronize(self, stream: int | None) -> None:
        if not stream:
            self._copying = False

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        self._get(event)

    def cuEventCreate(self, event: int, flags: int) -> None:
        _put(event, c_void_p, self._new("event"))

    def cuEventDestroy_v2(self, event: int) -> None:
        self._drop(event)

    def cuEventRecord(self, event: int, stream: int) -> None:
        self._get(event)

    def cuEventSynchronize(self, event: int) -> None:
        self._get(event)

    # -- graphs: nodes by handle

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        self._get(stream)
        self._captures[stream] = {}

    def cuStreamEndCapture(self, stream: int, graph: int) -> int | None:
        if stream not in self._captures:
            return INVALID_VALUE
        _put(graph, c_void_p, self._new(self._captures.pop(stream)))
        return None

    def cuGraphCreate(self, graph: int, flags: int) -> None:
        _put(graph, c_void_p, self._new({}))

    def cuGraphAddKernelNode(
        self, node: int, graph: int, dependencies: int | None, count: int, launch: int
    ) -> int | None:
        nodes: dict[int, GraphNode] = self._get(graph)
        before = _handles_at(dependencies, count)
        if len(set(before)) < count or not nodes.keys() >= set(before):
            return INVALID_VALUE
        handle = next(self._handles)
        nodes[handle] = self._node_of(launch, set(before))
        _put(node, c_void_p, handle)
        return None

    def _node_of(self, launch: int, before: set[int]) -> GraphNode:
        parameters = KernelNodeParams.from_address(launch)
        name, _ = self._get(parameters.function)
        return GraphNode(name, self._launch_of(parameters), before)

    def cuGraphAddDependencies_v2(
        self, graph: int, sources: int, targets: int, data: int | None, count: int
    ) -> int | None:
        nodes: dict[int, GraphNode] = self._get(graph)
        edges = (GraphEdgeData * count).from_address(data) if data else [GraphEdgeData()] * count
        ends = zip(_handles_at(sources, count), _handles_at(targets, count), strict=True)
        for (source, target), edge in zip(ends, edges, strict=True):
            kind = (edge.from_port, edge.to_port, edge.type)
            if source not in nodes or target not in nodes or source in nodes[target].before:
                return INVALID_VALUE
            if kind not in ((0, 0, 0), _PROGRAMMATIC) or any(edge.reserved):
                return INVALID_VALUE
            nodes[target].before.add(source)
            if kind == _PROGRAMMATIC:
                nodes[target].overlapped.add(source)
        return None

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> None:
        _put(executable, c_void_p, self._new(dict(self._get(graph))))

    def cuGraphExecKernelNodeSetParams(self, executable: int, node: int, launch: int) -> int | None:
        nodes = self._get(executable)
        if node not in nodes:
            return INVALID_VALUE
        made = self._node_of(launch, nodes[node].before)
        nodes[node] = replace(made, overlapped=nodes[node].overlapped)
        return None

    def cuGraphDestroy(self, graph: int) -> None:
        self._drop(graph)

    def cuGraphExecDestroy(self, executable: int) -> None:
        self._drop(executable)

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        nodes: Graph = self._get(executable)
        self._check_copied(stream)
        done: set[int] = set()
        records: dict[int, Any] = {}
        for handle in list(nodes) if self.schedule is None else self.schedule(nodes):
            if not done >= nodes[handle].before:
                raise DriverError(INVALID_VALUE)
            done.add(handle)
            self._enqueue(stream, partial(_execute, handle, nodes[handle], records))


class PtxDriver(Driver):
    """The driver API over a PTX machine of a compute capability; `memory_bytes` None: a quarter of
    this computer's."""

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        memory_bytes: int | None = None,
        *,
        separate_buffers: bool = True,
        intercept: Intercept | None = None,
        progress: Progress | None = None,
        schedule: Schedule | None = None,
        without: Container[str] = (),
    ) -> None:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.device = Device(capability, memory_bytes or installed // 4)
        super().__init__(
            PtxMachine(self.device),
            separate_buffers=separate_buffers,
            intercept=intercept,
            progress=progress,
            schedule=schedule,
            without=without,
        )


def _execute(handle: int, node: GraphNode, records: dict[int, Any]) -> None:
    """A node of a graph; `records` has those of the launches so far."""
    after = [records[k] for k in node.overlapped if records[k] is not None]
    others = node.before - node.overlapped
    complete = [records[k] for k in others if records[k] is not None]
    records[handle] = node.work(after, complete)


def _put(pointer: int, kind: Any, value: int) -> None:
    kind.from_address(pointer).value = value


def _handles_at(address: int | None, count: int) -> list[int]:
    return list((c_void_p * count).from_address(address)) if address else []  # type: ignore[arg-type]


def _bytes_at(address: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _put_log(text: str, count: int, options: int | None, values: int | None) -> None:
    """What the compiler has to say, into the buffer of cuModuleLoadDataEx's options."""
    if not options or not values:
        return
    kinds = (c_int * count).from_address(options)
    settings = dict(zip(kinds, (c_void_p * count).from_address(values), strict=True))
    buffer, room = settings.get(_ERROR_LOG), settings.get(_ERROR_LOG_BYTES)
    if buffer and room:
        data = text.encode()[: room - 1] + b"\0"
        ctypes.memmove(buffer, data, len(data))
