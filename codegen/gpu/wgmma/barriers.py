"""Barriers in shared memory that count arrivals and bytes, and the copies that report to them.

PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier" and "Data Movement and
Conversion Instructions: cp.async.bulk". Addresses of shared memory are i32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.codegen.builder import Value
from abqc.dialects.mlir import llvm

from ..builder import GpuBuilder

BARRIER_BYTES = 8
MEMORY = "~{memory}"


def shared_address(b: GpuBuilder) -> Value:
    """The address of the block's dynamic shared memory."""
    i32 = b.const(0, "i32").type
    return Value(llvm.PtrToIntOp(i32, b.shared.ir).result)


@dataclass(frozen=True)
class Barriers:
    """`count` barriers from byte address `first` on; they complete phases 0, 1, 0, ... in turn."""

    b: GpuBuilder
    first: Value
    count: int

    def initialize(self, arrivals: int) -> None:
        """By one thread: a phase is complete after so many arrivals."""
        for i in range(self.count):
            address = self.first + i * BARRIER_BYTES
            text = f"mbarrier.init.shared::cta.b64 [$0], {arrivals};"
            self.b.asm(text, f"r,{MEMORY}", [], address, effects=True)

    def _at(self, index: Value) -> Value:
        return self.first + index * BARRIER_BYTES

    def wait(self, index: Value, phase: Value) -> None:
        """Until the phase of this parity (i32) is complete; what was copied is seen then."""
        text = """{
            .reg .pred complete;
            again_${:uid}:
            mbarrier.try_wait.parity.shared::cta.b64 complete, [$0], $1;
            @complete bra done_${:uid};
            bra again_${:uid};
            done_${:uid}:
            }"""
        self.b.asm(text, f"r,r,{MEMORY}", [], self._at(index), phase, effects=True)

    def arrive(self, index: Value) -> None:
        """What this thread has done before is done."""
        text = "mbarrier.arrive.shared::cta.b64 _, [$0];"
        self.b.asm(text, f"r,{MEMORY}", [], self._at(index), effects=True)

    def expect(self, index: Value, nbytes: Value | int) -> None:
        """Arrive; the phase is not complete before so many bytes are copied, too."""
        text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;"
        operands = (self._at(index), self.b.index(nbytes))
        self.b.asm(text, f"r,r,{MEMORY}", [], *operands, effects=True)

    def copy(self, index: Value, target: Value, source: Value, nbytes: Value | int) -> None:
        """Copy from global memory, by the bulk copy engine; all are multiples of 16 bytes."""
        text = (
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[$0], [$1], $2, [$3];"
        )
        operands = (target, source, self.b.index(nbytes), self._at(index))
        self.b.asm(text, f"r,l,r,r,{MEMORY}", [], *operands, effects=True)

    def copy_box(
        self, index: Value, target: Value, tensor: Value, coordinates: Sequence[Value]
    ) -> None:
        """Copy a box of the tensor map at `tensor` (runtime/tensor_parameter.py) from element
        `coordinates` (i32, dimension 0 first) on, all of whose bytes are counted."""
        rank = len(coordinates)
        places = ", ".join(f"${3 + i}" for i in range(rank))
        text = (
            f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile"
            f".mbarrier::complete_tx::bytes [$0], [$1, {{{places}}}], [$2];"
        )
        kinds = ",".join(["r", "l", "r", *["r"] * rank, MEMORY])
        self.b.asm(text, kinds, [], target, tensor, self._at(index), *coordinates, effects=True)


def prefetch_map(b: GpuBuilder, tensor: Value) -> None:
    """Bring a tensor map to where copies by it look for it."""
    b.asm("prefetch.tensormap [$0];", f"l,{MEMORY}", [], tensor, effects=True)


def publish_barriers(b: GpuBuilder) -> None:
    """Make initialized barriers known to the copy engine; a barrier of the block must follow."""
    b.asm("fence.mbarrier_init.release.cluster;", MEMORY, [], effects=True)


def fence_async(b: GpuBuilder) -> None:
    """Order what this thread has seen of shared memory before what wgmma and bulk copies do. Of
    shared memory alone: a fence for all memory waits for what is under way in global memory."""
    b.asm("fence.proxy.async.shared::cta;", MEMORY, [], effects=True)


def set_registers(b: GpuBuilder, count: int, *, more: bool) -> None:
    """Give registers back, or wait for more, up to `count` a thread: all warps of a warpgroup."""
    kind = "inc" if more else "dec"
    b.asm(f"setmaxnreg.{kind}.sync.aligned.u32 {count};", MEMORY, [], effects=True)
