"""Dependent launches: what they must not touch before `griddepcontrol.wait`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from abqc.runtime.ptx import Device, PtxFault, parse
from abqc.runtime.ptx.dependents import LaunchRecord
from abqc.runtime.ptx.driver import PtxDriver
from abqc.runtime.ptx.tensor_map import TensorMap

KERNEL = """
.visible .entry {name}(.param .u64 from, .param .u64 weight, .param .u64 to)
{{
    .reg .b32 %t, %x, %w;
    .reg .b64 %from, %weight, %to, %wide;
    ld.param.u64 %from, [from];
    ld.param.u64 %weight, [weight];
    ld.param.u64 %to, [to];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %wide, %t, 4;
    add.u64 %from, %from, %wide;
    add.u64 %weight, %weight, %wide;
    add.u64 %to, %to, %wide;
    {body}
    ret;
}}
"""
TRIGGER, WAIT = "griddepcontrol.launch_dependents;", "griddepcontrol.wait;"
WEIGHT = "ld.global.nc.b32 %w, [%weight];"
LOAD, ADD, STORE = "ld.global.b32 %x, [%from];", "add.u32 %x, %x, %w;", "st.global.b32 [%to], %x;"
BODIES = {
    "early": (TRIGGER, WEIGHT, WAIT, LOAD, ADD, STORE),
    "late": (WEIGHT, WAIT, TRIGGER, LOAD, ADD, STORE),
    "hasty": (WEIGHT, LOAD, ADD, WAIT, STORE),
    "careless": (WEIGHT, LOAD, ADD, STORE),
    "writes_early": (WEIGHT, "mov.b32 %x, 0;", STORE, WAIT, LOAD, ADD, STORE),
    "ignorant": (WEIGHT, "mov.b32 %x, 0;", ADD),
    "prefetching": (
        *("sub.u64 %weight, %weight, %wide;", "cp.async.bulk.prefetch.L2.global [%weight], 128;"),
        *("add.u64 %weight, %weight, %wide;", WEIGHT, WAIT, LOAD, ADD, STORE),
    ),
}
TEXT = ".version 8.6\n.target sm_90a\n.address_size 64\n" + "".join(
    KERNEL.format(name=name, body="\n    ".join(lines)) for name, lines in BODIES.items()
)
THREADS, SIZE = 32, 128


class Chain:
    """Buffers 0, 1, 2, ...: a launch reads one and writes the next."""

    def __init__(self) -> None:
        self.device = Device((9, 0), 1 << 20)
        self.kernels = parse(TEXT).kernels
        self.buffers = [self.device.allocate(SIZE) for _ in range(6)]
        self.weight = self.device.allocate(SIZE)
        for address in (self.buffers[0], self.weight):
            self.device.write(address, np.arange(THREADS, dtype=np.uint32))

    def launch(
        self,
        name: str,
        source: int,
        after: Sequence[LaunchRecord] = (),
        complete: Sequence[LaunchRecord] = (),
        to: int | None = None,
        weight: int | None = None,
    ) -> LaunchRecord:
        target = self.buffers[source + 1 if to is None else to]
        return self.device.launch(
            *(self.kernels[name], (1, 1, 1), (THREADS, 1, 1)),
            [self.buffers[source], weight or self.weight, target],
            after=after,
            complete=complete,
        )

    def values(self, buffer: int) -> np.ndarray:
        return self.device.read(self.buffers[buffer], SIZE).view(np.uint32)


@pytest.mark.parametrize("name", ["early", "late", "prefetching"])
def test_a_chain(name: str) -> None:
    chain = Chain()
    record = chain.launch(name, 0)
    for k in (1, 2, 3):
        record = chain.launch(name, k, [record])
    assert (chain.values(4) == 5 * np.arange(THREADS)).all()


@pytest.mark.parametrize("name", ["hasty", "careless"])
def test_a_read_before_the_wait(name: str) -> None:
    chain = Chain()
    chain.launch(name, 0)
    chain.launch(name, 1)  # that depends on it without overlap
    record = chain.launch("early", 2)
    with pytest.raises(
        PtxFault, match=r"that early writes.*griddepcontrol\.wait is missing"
    ) as fault:
        chain.launch(name, 3, [record])
    assert "ld.global.b32" in fault.value.text


def test_a_write_before_the_wait() -> None:
    chain = Chain()
    chain.launch("writes_early", 0)
    record = chain.launch("early", 1)
    with pytest.raises(PtxFault, match="is written while early may still run"):
        chain.launch("writes_early", 2, [record])


def test_what_a_launch_before_the_last_writes() -> None:
    """A launch that starts its dependents before it waits says nothing of those before it."""
    for middle, is_fault in (("early", True), ("late", False)):
        chain = Chain()
        first = chain.launch("early", 0)
        second = chain.launch(middle, 1, [first])
        if is_fault:
            with pytest.raises(PtxFault, match="wait is missing"):
                chain.launch("hasty", 1, [second], to=4)
        else:
            chain.launch("hasty", 1, [second], to=4)


def test_a_launch_that_nobody_waited_for() -> None:
    """A launch that ends without a wait may end before those that it depends on."""
    chain = Chain()
    first = chain.launch("early", 0)
    second = chain.launch("ignorant", 0, [first])
    with pytest.raises(PtxFault, match=r"without griddepcontrol\.wait"):
        chain.launch("late", 1, [second])
    third = chain.launch("ignorant", 0, complete=[second])
    with pytest.raises(PtxFault, match=r"without griddepcontrol\.wait"):
        chain.launch("late", 1, complete=[third])
    chain.launch("late", 1, complete=[first, second])


def test_a_prefetch_beyond_the_weights() -> None:
    chain = Chain()
    with pytest.raises(PtxFault, match="a prefetch of 128 bytes"):
        chain.launch("prefetching", 0, weight=chain.weight + 16)


def test_the_driver_makes_tensor_maps() -> None:
    driver = PtxDriver((9, 0), memory_bytes=1 << 20)
    storage = (ctypes.c_uint8 * 192)()
    place = (ctypes.addressof(storage) + 63) // 64 * 64
    arrays = [(ctypes.c_uint64 * 2)(64, 7), (ctypes.c_uint64 * 1)(128)]
    arrays += [(ctypes.c_uint * 2)(64, 4), (ctypes.c_uint * 2)(1, 1)]
    pointers = [ctypes.addressof(array) for array in arrays]
    arguments = [6, 2, 1 << 20, *pointers, 0, 3, 0, 0]
    assert not driver.cuTensorMapEncodeTiled(place, *arguments)
    words = np.frombuffer(ctypes.string_at(place, 128), np.uint8)
    assert TensorMap.decode(words) == TensorMap(1 << 20, 2, (64, 7), (128,), (64, 4), (1, 1), 128)
    assert driver.cuTensorMapEncodeTiled(place + 16, *arguments) == 1
    assert driver.cuTensorMapEncodeTiled(place, 10, *arguments[1:]) == 1
