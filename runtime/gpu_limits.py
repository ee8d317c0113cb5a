"""What a multiprocessor (SM) of an NVIDIA GPU holds, by compute capability.

Source: CUDA C++ Programming Guide, "Compute Capabilities". The code generator keeps these limits,
the cost model computes occupancy from them, and the PTX machine refuses what breaks them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError

KIB = 1 << 10


@dataclass(frozen=True, kw_only=True)
class GpuLimits:
    """`shared_per_block`: bytes that one block may ask for (opted in); `shared_reserved` of every
    block are the system's. Registers of 32 bits are handed to a warp in units of
    `register_granularity`."""

    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    shared_reserved: int = 1 * KIB
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    register_granularity: int = 256
    threads_per_block: int = 1024


_8_0 = GpuLimits(
    shared_per_block=163 * KIB, shared_per_sm=164 * KIB, threads_per_sm=2048, blocks_per_sm=32
)
_8_6 = GpuLimits(
    shared_per_block=99 * KIB, shared_per_sm=100 * KIB, threads_per_sm=1536, blocks_per_sm=16
)
_9_0 = replace(_8_0, shared_per_block=227 * KIB, shared_per_sm=228 * KIB)

LIMITS: dict[tuple[int, int], GpuLimits] = {
    (7, 5): GpuLimits(
        shared_per_block=64 * KIB,
        shared_per_sm=64 * KIB,
        threads_per_sm=1024,
        blocks_per_sm=16,
        shared_reserved=0,
    ),
    (8, 0): _8_0,
    (8, 6): _8_6,
    (8, 9): replace(_8_6, blocks_per_sm=24),
    (9, 0): _9_0,
    (10, 0): _9_0,
    (12, 0): replace(_8_6, blocks_per_sm=24),
}


def limits_of(capability: tuple[int, int]) -> GpuLimits:
    """Those of a compute capability; InputError where it is none of the table's."""
    if capability not in LIMITS:
        known = ", ".join(f"{major}.{minor}" for major, minor in LIMITS)
        raise InputError(
            f"nothing is known of GPUs of compute capability {capability[0]}.{capability[1]}",
            hint=f"known are {known}",
        )
    return LIMITS[capability]
