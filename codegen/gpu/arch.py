"""NVIDIA GPU targets as data: what a kernel may use, and the limits it must keep.

Sources: CUDA C++ Programming Guide, "Compute Capabilities" (limits); native `mma.sync` forms were
read from the machine code that ptxas 13.0 makes (an emulated form assembles, but is not native).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WARP = 32


@dataclass(frozen=True)
class GpuArch:
    """One target: kernels ask for capabilities here and never look at the name.

    `mma` has the native forms of `mma.sync`, as "<type>.<shape>". `shared_per_block` is what one
    block may ask for (bytes, opted in), `shared_per_sm` what a multiprocessor has.
    `specific` says that code runs on exactly this capability (the suffix `a`).
    """

    name: str
    capability: tuple[int, int]
    ptx_version: int  # 86: PTX ISA 8.6
    mma: frozenset[str]
    cp_async: bool
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    specific: bool = False
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    threads_per_block: int = 1024

    @property
    def llvm_features(self) -> str:
        return f"+ptx{self.ptx_version}"

    def has(self, *forms: str) -> bool:
        """Whether all these forms of `mma.sync` are native."""
        return self.mma.issuperset(forms)


KIB = 1024
_AMPERE = frozenset({"b1.m16n8k256", "s8.m16n8k32", "f16.m16n8k16", "bf16.m16n8k16"})

SM_75 = GpuArch(
    name="sm_75",
    capability=(7, 5),
    ptx_version=75,
    mma=frozenset({"s8.m8n8k16", "f16.m16n8k8"}),
    cp_async=False,
    shared_per_block=64 * KIB,
    shared_per_sm=64 * KIB,
    threads_per_sm=1024,
    blocks_per_sm=16,
)
SM_80 = GpuArch(
    name="sm_80",
    capability=(8, 0),
    ptx_version=75,
    mma=_AMPERE,
    cp_async=True,
    shared_per_block=163 * KIB,
    shared_per_sm=164 * KIB,
    threads_per_sm=2048,
    blocks_per_sm=32,
)
SM_86 = replace(
    SM_80,
    name="sm_86",
    capability=(8, 6),
    shared_per_block=99 * KIB,
    shared_per_sm=100 * KIB,
    threads_per_sm=1536,
    blocks_per_sm=16,
)
SM_89 = replace(SM_86, name="sm_89", capability=(8, 9), ptx_version=78, blocks_per_sm=24)
SM_90A = replace(
    SM_80,
    name="sm_90a",
    capability=(9, 0),
    ptx_version=80,
    shared_per_block=227 * KIB,
    shared_per_sm=228 * KIB,
    specific=True,
)
SM_100A = replace(
    SM_90A, name="sm_100a", capability=(10, 0), ptx_version=86, mma=_AMPERE - {"b1.m16n8k256"}
)
SM_120A = replace(
    SM_100A,
    name="sm_120a",
    capability=(12, 0),
    ptx_version=87,
    shared_per_block=99 * KIB,
    shared_per_sm=100 * KIB,
    threads_per_sm=1536,
    blocks_per_sm=24,
)

ALL = (SM_75, SM_80, SM_86, SM_89, SM_90A, SM_100A, SM_120A)


def by_name(name: str) -> GpuArch:
    """The target called `name`; KeyError lists the known ones."""
    for arch in ALL:
        if arch.name == name:
            return arch
    raise KeyError(f"no GPU target '{name}'; known: {', '.join(arch.name for arch in ALL)}")
