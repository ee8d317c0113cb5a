"""Part `launches`: the time of every launch of a step of a model, by events around each.

A driver stands before the real one, which the model calls and which puts an event before and
behind each launch. So that the GPU does not wait for the host in between, a kernel that takes long
goes before the step: when it ends, all of the step is in the stream.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_uint, c_uint64, c_void_p
from typing import Any

from abqc.compiler.cuda_driver import Cuda, Launch

from . import models
from .device import KitDevice
from .kit import Kit, ModelFeed

WARM_RUNS = 2
_LAUNCH = ctypes.CFUNCTYPE(c_int, c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p)
_FUNCTION = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_char_p)
_RESOLVE = ctypes.CFUNCTYPE(c_void_p, c_char_p)


def feeds(kit: Kit) -> list[ModelFeed]:
    """Single steps: of decoding, and prompts."""
    return [feed for feed in kit.feeds if feed.steps == 1]


def names(kit: Kit) -> list[str]:
    return [f"{feed.model} {feed.name}" for feed in feeds(kit)]


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    """`launches`: kernel, grid and seconds of each in order; `kernels`: count and seconds by
    name."""
    kit, feed = device.kit, feeds(device.kit)[index]
    inputs, _ = models.arrays_of(kit, feed)
    out = device.buffer("probe", 4096)
    between = Between(device, device.launch_of("probe_clock", 1, out, kit.probe.wait_turns))
    with models.opened(kit.folder / "models" / feed.model, between, models.MODES[-1]) as model:
        for _ in range(WARM_RUNS):
            model.run(inputs)
        between.listening = True
        model.run(inputs)
        between.listening = False
        launches = between.times()
    kernels: dict[str, list[float]] = {}
    for name, _, seconds in launches:
        kernels.setdefault(name, []).append(seconds)
    return {
        "seconds": sum(seconds for _, _, seconds in launches),
        "launches": [list(launch) for launch in launches],
        "kernels": {name: [len(times), sum(times)] for name, times in kernels.items()},
    }


class Between:
    """A driver that passes on everything and listens to launches; a device for `abqc.load`."""

    separate_buffers = False

    def __init__(self, cuda: Cuda, wait: Launch) -> None:
        self.listening = False
        self._cuda, self._wait = cuda, wait
        self._names: dict[int, str] = {}
        self._events: list[tuple[str, int, c_void_p, c_void_p]] = []
        self._really_launch = _LAUNCH(cuda.address("cuLaunchKernel"))
        self._really_find = _FUNCTION(cuda.address("cuModuleGetFunction"))
        self._own: dict[bytes, Any] = {
            b"cuLaunchKernel": _LAUNCH(self._launch),
            b"cuModuleGetFunction": _FUNCTION(self._find),
        }
        self._resolver = _RESOLVE(self._resolve)

    @property
    def resolver(self) -> int:
        """The address of what resolves names."""
        return ctypes.cast(self._resolver, c_void_p).value or 0

    def take_fault(self) -> BaseException | None:
        """None: errors of the driver say all."""
        return None

    def _resolve(self, name: bytes) -> int | None:
        own = self._own.get(name)
        return ctypes.cast(own, c_void_p).value if own else self._cuda.address(name.decode())

    def _find(self, function: int, module: int, name: bytes) -> int:
        code = self._really_find(function, module, name)
        if not code:
            self._names[c_uint64.from_address(function).value] = name.decode()
        return code

    def _launch(self, function: int, *rest: Any) -> int:
        if not self.listening:
            return self._really_launch(function, *rest)
        stream = c_void_p(rest[7])
        if not self._events:
            self._put(self._wait, stream)
        begin, end = self._event(), self._event()
        self._cuda.call("cuEventRecord", begin, stream)
        code = self._really_launch(function, *rest)
        self._cuda.call("cuEventRecord", end, stream)
        self._events.append((self._names.get(function, "?"), rest[0], begin, end))
        return code

    def _put(self, launch: Launch, stream: c_void_p) -> None:
        slots = (c_uint64 * len(launch.arguments))(*launch.arguments)
        places = [ctypes.addressof(slots) + 8 * i for i in range(len(slots))]
        parameters = (c_void_p * len(slots))(*places)
        shape = (launch.grid, 1, 1, launch.threads, 1, 1, launch.shared_bytes)
        self._really_launch(launch.function, *shape, stream, parameters, None)

    def _event(self) -> c_void_p:
        event = c_void_p()
        self._cuda.call("cuEventCreate", byref(event), c_uint(0))
        return event

    def times(self) -> list[tuple[str, int, float]]:
        """Kernel, grid and seconds of what was listened to."""
        found = []
        self._cuda.call("cuCtxSynchronize")
        for name, grid, begin, end in self._events:
            milliseconds = c_float()
            self._cuda.call("cuEventElapsedTime", byref(milliseconds), begin, end)
            found.append((name, grid, milliseconds.value / 1e3))
            for event in (begin, end):
                self._cuda.call("cuEventDestroy_v2", event)
        self._events.clear()
        return found
