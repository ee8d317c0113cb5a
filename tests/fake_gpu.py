"""GPU artifacts written by hand in C, and a machine whose kernels are Python functions."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import handmade
import numpy as np
from abqc.codegen.elf import write_data_object
from abqc.codegen.link import ArtifactMeta, GpuBlock, GpuImage, GpuKernelEntry, GpuMeta, link
from abqc.runtime.dlpack import CUDA, ManagedTensor
from abqc.runtime.element_types import by_name
from abqc.runtime.ptx.driver import Driver
from abqc.runtime.ptx.driver_machine import Extents
from abqc.runtime.tensor_parameter import TensorParameter
from handmade import COLUMNS, LAYER_WEIGHTS

BASE = 1 << 40
GAP = 1 << 20


class FakeMachine:
    """Memory in pieces, and kernels in Python: `kernel(machine, blocks, *parameters)`, parameters
    as 8-byte numbers. Reading what is in no piece raises; so it does beyond a piece's end.
    """

    def __init__(self, capability: tuple[int, int] = (8, 0), memory_bytes: int = 1 << 30) -> None:
        self.capability = capability
        self.total = memory_bytes
        self.pieces: dict[int, np.ndarray] = {}
        self.next = BASE
        self.images: list[str] = []
        self.launches: list[str] = []
        self.blocks: list[
            tuple[int, int]
        ] = []  # of these launches: threads, bytes of shared memory
        self.kernels: dict[str, tuple[Callable[..., None], int]] = dict(KERNELS)

    def allocate(self, nbytes: int) -> int:
        if nbytes > self.memory()[0]:
            raise MemoryError
        address, self.next = self.next, self.next + nbytes // 512 * 512 + GAP
        self.pieces[address] = np.full(nbytes, 0xEE, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.pieces[address]

    def memory(self) -> tuple[int, int]:
        return self.total - sum(map(len, self.pieces.values())), self.total

    def bytes_at(self, address: int, nbytes: int) -> np.ndarray:
        for start, piece in self.pieces.items():
            if start <= address and address + nbytes <= start + len(piece):
                return piece[address - start : address - start + nbytes]
        raise IndexError(f"{nbytes} bytes at {address:#x} are in no piece of memory")

    def array(self, address: int, dtype: Any, *shape: int) -> np.ndarray:
        """A view of memory, for kernels."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, nbytes).view(dtype).reshape(shape)

    def write(self, address: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.bytes_at(address, len(data))[:] = data

    def read(self, address: int, nbytes: int) -> np.ndarray:
        return self.bytes_at(address, nbytes).copy()

    def load(self, ptx: str) -> Mapping[str, Any]:
        self.images.append(ptx)
        return {name: (name, *kernel) for name, kernel in self.kernels.items()}

    def parameter_sizes(self, kernel: Any) -> Sequence[int]:
        return [8] * kernel[2]

    def launch(
        self,
        kernel: Any,
        grid: Extents,
        block: Extents,
        parameters: list[bytes],
        shared: int,
        after: Sequence[Any],
        complete: Sequence[Any],
    ) -> None:
        name, function, _ = kernel
        self.launches.append(name)
        self.blocks.append((block[0], shared))
        function(self, grid[0], *(int.from_bytes(value, "little") for value in parameters))


def driver(machine: FakeMachine | None = None, **options: Any) -> Driver:
    return Driver(machine or FakeMachine(), **options)


# ---- kernels ----


def _scale(machine: FakeMachine, rows: int, x: int, w: int, y: int, columns: int) -> None:
    weights = machine.array(w, np.float32, columns)
    machine.array(y, np.float32, rows, columns)[:] = (
        2 * machine.array(x, np.float32, rows, columns) + weights
    )


def _increment(machine: FakeMachine, count: int, index: int, out: int) -> None:
    machine.array(out, np.int64, count)[:] = machine.array(index, np.int64, count) + 1


def _total(machine: FakeMachine, blocks: int, out: int, data: int, *dims: int) -> None:
    sizes, strides = dims[:3], [np.int64(np.uint64(s)) for s in dims[3:]]
    total = np.float32(0)
    for place in np.ndindex(*sizes):
        at = data + 4 * int(np.dot(place, strides))
        total += machine.array(at, np.float32, 1)[0]
    machine.array(out, np.float32, 1)[:] = total


def _copy(item: int) -> Callable[..., None]:
    def copy(machine: FakeMachine, blocks: int, to: int, source: int, *rest: int) -> None:
        total, rank = rest[0], rest[1]
        signed = [value - (value >> 63 << 64) for value in rest[2:]]
        sizes, to_strides, from_strides = (signed[i * 8 : i * 8 + rank] for i in range(3))
        assert blocks == -(-total // 256) and total == np.prod(sizes)
        for place in np.ndindex(*sizes):
            a = to + item * int(np.dot(place, to_strides))
            b = source + item * int(np.dot(place, from_strides))
            machine.bytes_at(a, item)[:] = machine.bytes_at(b, item)

    return copy


def _set(item: int) -> Callable[..., None]:
    def write(machine: FakeMachine, blocks: int, to: int, value: int) -> None:
        machine.bytes_at(to, item)[:] = np.frombuffer(value.to_bytes(8, "little"), np.uint8)[:item]

    return write


KERNELS: dict[str, tuple[Callable[..., None], int]] = {
    "scale": (_scale, 4),
    "increment": (_increment, 2),
    "total": (_total, 8),
    **{f"abqc_copy_{item}": (_copy(item), 28) for item in (1, 2, 4, 8, 16)},
    **{f"abqc_set_{item}": (_set(item), 2) for item in (1, 2, 4, 8)},
}

# ---- artifacts ----

IMAGES = (("sm_80", (8, 0), False), ("sm_90a", (9, 0), True))

# handmade.LAYER on a GPU: the kernels are those of KERNELS, in that order.
LAYER_HOST = """
#include "shim.h"
extern const float layer_w[16];

static const int64_t one[1] = {1};

int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *x = abqc_rt_input(ctx, 0), *index = abqc_rt_input(ctx, 1);
    const abqc_view *step = abqc_rt_input(ctx, 3);
    int64_t rows = x->sizes[0], columns = x->sizes[1];
    abqc_rt_check(ctx, rows > 0, "there are no rows");
    void *scratch = abqc_rt_alloc(ctx, 1000);
    float *y = abqc_rt_alloc(ctx, rows * columns * 4);
    const uint64_t weights = (uint64_t)abqc_rt_weight(ctx, layer_w);
    const uint64_t args[] = {(uint64_t)x->data, weights, (uint64_t)y, (uint64_t)columns};
    abqc_rt_launch(ctx, 0, rows, args);
    abqc_rt_free(ctx, scratch);

    int64_t *next = abqc_rt_alloc(ctx, rows * 8);
    const uint64_t increment[] = {(uint64_t)index->data, (uint64_t)next};
    abqc_rt_launch_loops(ctx, 1, rows, increment, rows);

    abqc_view present;
    void *whole = abqc_rt_append(ctx, 2, 2, 2, 4, step->data, step->sizes, step->strides, &present);
    float *total = abqc_rt_alloc(ctx, 4);
    uint64_t sum[8] = {(uint64_t)total, (uint64_t)present.data};
    for (int d = 0; d < 3; d++) {
        sum[2 + d] = (uint64_t)present.sizes[1 + d];
        sum[5 + d] = (uint64_t)present.strides[1 + d];
    }
    abqc_rt_launch(ctx, 2, 1, sum);

    abqc_rt_output(ctx, 0, y, 2, x->sizes, x->strides);
    abqc_rt_free(ctx, y);
    abqc_rt_output(ctx, 1, next, 1, &rows, one);
    abqc_rt_output(ctx, 2, whole, 4, present.sizes, present.strides);
    abqc_rt_output(ctx, 3, total, 0, NULL, NULL);
    return 0;
}
"""


def build(
    output: Path,
    host: str,
    meta: ArtifactMeta,
    *,
    kernels: Sequence[str] = ("scale", "increment", "total"),
    weights: Sequence[tuple[str, np.ndarray]] = (),
    images: Sequence[tuple[str, tuple[int, int], bool]] = IMAGES,
    cubins: Sequence[str] = (),
    ptx: str | None = None,
    blocks: Mapping[str, GpuBlock] | None = None,
    accesses: Mapping[str, tuple[int, ...]] | None = None,
    maps: Mapping[str, tuple[TensorParameter, ...]] | None = None,
    waits: bool = False,
) -> Path:
    """Link a GPU artifact. An image's PTX is `ptx`, else its name; so is its cubin, after ELF's
    mark. `blocks`: of all kernels of an image, by its name. `accesses` and tensor `maps`: by
    kernel; `waits`: of all images."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        objects = [handmade.c_object(work, "model_host", host), work / "code.o"]
        data, table = [], []
        for target, capability, specific in images:
            data.append((f"ptx_{target}", (ptx or target).encode() + b"\0"))
            cubin = b"\x7fELF " + target.encode() + b"\0" if target in cubins else b""
            if cubin:
                data.append((f"cubin_{target}", cubin))
            symbol = f"cubin_{target}" if cubin else None
            shape = (blocks or {}).get(target, GpuBlock(128, 0))
            table.append(
                GpuImage(
                    name=target,
                    capability=capability,
                    specific=specific,
                    ptx=f"ptx_{target}",
                    blocks=(shape,) * len(kernels),
                    cubin=symbol,
                    cubin_bytes=len(cubin),
                    waits=waits,
                )
            )
        write_data_object(objects[1], data)
        sizes = []
        if weights:
            size = write_data_object(work / "weights.o", weights)
            objects.append(work / "weights.o")
            sizes = [(weights[0][0], size)]
        known = accesses or {}
        entries = [
            GpuKernelEntry(k, KERNELS[k][1], known.get(k), (maps or {}).get(k, ())) for k in kernels
        ]
        gpu = GpuMeta(tuple(table), tuple(entries))
        whole = ArtifactMeta(
            meta.inputs, meta.outputs, (), meta.strided_inputs, gpu=gpu, weights=sizes
        )
        link(objects, output, meta=whole, manifest={"model": output.stem})
    return output


@cache
def layer() -> Path:
    """handmade.LAYER for GPUs."""
    weights = [("layer_w", LAYER_WEIGHTS), ("more_w", np.arange(COLUMNS))]
    return build(handmade.folder() / "gpu_layer.so", LAYER_HOST, handmade.LAYER, weights=weights)


# ---- tensors of another package ----


class GpuTensor:
    """What PyTorch would hand over: a tensor on a GPU with DLPack's methods. `view` picks a part of
    the array by an index, so that the tensor has strides and an offset."""

    def __init__(
        self, machine: FakeMachine, array: np.ndarray, view: Any = ..., *, ordinal: int = 0
    ) -> None:
        self.machine, self.ordinal = machine, ordinal
        self.whole = np.array(array, order="C")
        self.address = machine.allocate(max(1, array.nbytes))
        machine.write(self.address, self.whole)
        part = self.whole[view]
        self.offset = part.ctypes.data - self.whole.ctypes.data if part.size else 0
        self.part = part
        self.streams: list[int | None] = []
        self.kept: list[Any] = []

    def slice(self, view: Any) -> GpuTensor:
        """Another part of the same memory."""
        other = object.__new__(GpuTensor)
        other.__dict__ = {**self.__dict__, "part": self.whole[view], "streams": []}
        part = other.part
        other.offset = part.ctypes.data - self.whole.ctypes.data if part.size else 0
        return other

    def numpy(self) -> np.ndarray:
        """What is in the memory now."""
        memory = self.machine.read(self.address, self.whole.nbytes)
        if not self.part.size:
            return np.zeros(self.part.shape, self.part.dtype)
        rest = memory[self.offset :].view(np.uint8)
        return np.ndarray(
            self.part.shape, self.part.dtype, rest.tobytes(), strides=self.part.strides
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.ordinal

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        return _new_capsule(ctypes.addressof(self.structure()), b"dltensor", None)

    def structure(self) -> ManagedTensor:
        """The tensor in DLPack's form; it lives as long as this object."""
        rank = self.part.ndim
        sizes = (ctypes.c_int64 * max(rank, 1))(*self.part.shape)
        steps = [stride // self.part.itemsize for stride in self.part.strides]
        strides = (ctypes.c_int64 * max(rank, 1))(*steps)
        tensor = ManagedTensor(data=self.address, byte_offset=self.offset, ndim=rank)
        tensor.device[0], tensor.device[1] = CUDA, self.ordinal
        code, bits, lanes = by_name(self.part.dtype.name).dlpack
        tensor.dtype[:] = [code, bits, lanes, 0]
        tensor.shape, tensor.strides = ctypes.addressof(sizes), ctypes.addressof(strides)
        self.kept.append((tensor, sizes, strides))
        return tensor


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
