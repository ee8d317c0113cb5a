"""Graphs of kernels that depend on each other or not, built node by node and timed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_size_t, c_uint, c_uint64, c_void_p

from abqc.compiler.cuda_driver import Cuda, Launch


class _NodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS, first version."""

    _fields_ = (
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("parameters", POINTER(c_void_p)),
        ("extra", c_void_p),
    )


def instantiate(cuda: Cuda, launches: Sequence[Launch], *, chain: bool) -> c_void_p:
    """An executable graph of these launches, one behind the other or side by side."""
    graph, executable = c_void_p(), c_void_p()
    cuda.call("cuGraphCreate", byref(graph), c_uint(0))
    before: c_void_p | None = None
    for launch in launches:
        node = c_void_p()
        places, kept = cuda.parameters(launch)
        node_parameters = _NodeParams(
            launch.function.value,
            (launch.grid, 1, 1),
            (launch.threads, 1, 1),
            launch.shared_bytes,
            places,
        )
        known = byref(before) if chain and before is not None else None
        count = c_size_t(1 if known is not None else 0)
        cuda.call("cuGraphAddKernelNode", byref(node), graph, known, count, byref(node_parameters))
        del kept
        before = node
    cuda.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
    cuda.call("cuGraphDestroy", graph)
    return executable
