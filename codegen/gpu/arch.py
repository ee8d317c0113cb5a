"""NVIDIA GPU targets as data: what a kernel may use, and the limits it must keep.

Native `mma.sync` forms were read from the machine code that ptxas 13.0 makes (an emulated form
assembles, but is not native). Limits are those of `runtime/gpu_limits.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.runtime.gpu_limits import GpuLimits, limits_of

WARP = 32

# Multiprocessors of the largest GPU that there is a target for (sm_120a: RTX PRO 6000 Blackwell).
# More than FEW_BLOCKS keep every GPU busy: they need not share K. Of fewer the cost model decides,
# by the GPUs at hand.
_MOST_MULTIPROCESSORS = 188
FEW_BLOCKS = 2 * _MOST_MULTIPROCESSORS


@dataclass(frozen=True)
class GpuArch(GpuLimits):
    """One target: kernels ask for capabilities here and never look at the name.

    `mma` has the native forms of `mma.sync`, as "<type>.<shape>". `specific` says that code runs on
    exactly this capability (the suffix `a`). Where there is `wgmma`, there are the instructions
    around it too: mbarrier, bulk copies, setmaxnreg.
    """

    name: str
    capability: tuple[int, int]
    ptx_version: int  # 86: PTX ISA 8.6
    mma: frozenset[str]
    cp_async: bool
    specific: bool = False
    wgmma: frozenset[str] = frozenset()  # types of native `wgmma.mma_async`
    multiprocessors: int = 0  # of its GPUs, where kernels have blocks that stay (an H100's, H200's)

    @property
    def text(self) -> str:
        """All of it, the same in every process: sets have their elements in order."""
        values = [sorted(v) if isinstance(v, frozenset) else v for v in vars(self).values()]
        return repr(list(zip(vars(self), values, strict=True)))

    @property
    def warp_reductions(self) -> bool:
        """Whether `redux.sync` reduces integers over a warp in one instruction."""
        return self.capability >= (8, 0)

    @property
    def llvm_features(self) -> str:
        return f"+ptx{self.ptx_version}"

    @property
    def dependent_launch(self) -> bool:
        """Whether kernels can be launched before those they depend on have ended."""
        return self.capability >= (9, 0)

    def has(self, *forms: str) -> bool:
        """Whether all these forms of `mma.sync` are native."""
        return self.mma.issuperset(forms)


_TURING = frozenset({"s8.m8n8k16", "f16.m16n8k8"})
_BINARY = frozenset({"b1.m16n8k256", "b1.m16n8k128"})
_AMPERE = _BINARY | {"s8.m16n8k32", "f16.m16n8k16", "bf16.m16n8k16"}
_BLACKWELL = _AMPERE - _BINARY
_WGMMA = frozenset({"b1", "s8", "f16", "bf16"})


def _arch(
    capability: tuple[int, int],
    ptx_version: int,
    mma: frozenset[str],
    *,
    specific: bool = False,
    wgmma: frozenset[str] = frozenset(),
    multiprocessors: int = 0,
) -> GpuArch:
    major, minor = capability
    return GpuArch(
        name=f"sm_{major}{minor}" + ("a" if specific else ""),
        capability=capability,
        ptx_version=ptx_version,
        mma=mma,
        cp_async=capability >= (8, 0),
        specific=specific,
        wgmma=wgmma,
        multiprocessors=multiprocessors,
        **vars(limits_of(capability)),
    )


SM_75 = _arch((7, 5), 75, _TURING)
SM_80 = _arch((8, 0), 75, _AMPERE)
SM_86 = _arch((8, 6), 75, _AMPERE)
SM_89 = _arch((8, 9), 78, _AMPERE)
SM_90A = _arch((9, 0), 84, _AMPERE, specific=True, wgmma=_WGMMA, multiprocessors=132)
SM_100A = _arch((10, 0), 86, _BLACKWELL, specific=True)
SM_120A = _arch((12, 0), 87, _BLACKWELL, specific=True)

ALL = (SM_75, SM_80, SM_86, SM_89, SM_90A, SM_100A, SM_120A)


def by_name(name: str) -> GpuArch:
    """The target called `name`; KeyError lists the known ones."""
    for arch in ALL:
        if arch.name == name:
            return arch
    raise KeyError(f"no GPU target '{name}'; known: {', '.join(arch.name for arch in ALL)}")
