"""What a launch executes: instructions by class, bytes by space, and how well accesses fit memory.

    counters = Counters()
    device.launch(kernel, ..., counters=counters)
    counts = counters.counts()

A model of the hardware, not compared with a profiler:

- An instruction counts once for each thread in which its guard holds (`threads`) and once for each
  warp that issues it (`warps`), also where it is predicated off in all lanes.
- Global memory moves in *sectors* of 32 bytes. A warp's access touches the distinct sectors of its
  lanes; it needs as many as its distinct bytes would fill. It is uncoalesced where it touches more.
- Shared memory has 32 banks of 4 bytes. Lanes are served in *phases*: all 32 at up to 4 bytes,
  half a warp at 8, a quarter at 16 (also the 8 rows of each matrix of ldmatrix and stmatrix). A
  phase takes as many wavefronts as the busiest bank has distinct words; all beyond the first are
  conflicts.
- What wgmma and bulk copies read and write of shared memory is counted apart, as "shared::async",
  without banks. A wgmma is one instruction of a warpgroup among the tensor work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .accesses import Access
from .memory import GLOBAL_BASE, LOCAL_BASE, SHARED_BASE
from .syntax import Instruction
from .tensor import mma_form
from .warpgroup import THREADS as WARPGROUP
from .warpgroup import wgmma_form

Lanes = NDArray[np.int64]  # numbers of lanes in a batch: lane // 32 is the warp
Addresses = NDArray[np.int64]

WARP = 32
SECTOR_BYTES = 32
BANKS = 32
BANK_BYTES = 4

_SPECIAL = {"ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt", "div"}
_CONTROL = {"bra", "brx", "call", "ret", "exit", "trap", "setmaxnreg", "griddepcontrol"}
_BARRIERS = {"bar", "barrier"}
_WARP_WIDE = {"shfl", "vote", "match", "redux", "activemask", "movmatrix", "elect"}
_MEMORY = {"ld", "ldu", "st", "atom", "red", "ldmatrix", "stmatrix", "prefetch"}
_FENCES = {"membar", "fence"}
_HALF_TYPES = {"f16", "f16x2", "bf16", "bf16x2"}
_SPACES = ("global", "shared", "local", "param", "const")
# Where generic addresses lie: space, first address, and what is subtracted from it there.
_WINDOWS = (
    ("global", GLOBAL_BASE, 0),
    ("shared", SHARED_BASE, SHARED_BASE),
    ("local", LOCAL_BASE, LOCAL_BASE),
)


class Named(Protocol):
    """A kernel, of which only the name is wanted here."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Traffic:
    """Loads or stores of one space."""

    accesses: int = 0  # by warps
    bytes: int = 0  # asked for by lanes, equal ones counted each


@dataclass(frozen=True)
class TensorWork:
    """mma.sync of one kind by warps, or wgmma by warpgroups; an operation is a multiplication or an
    addition."""

    instructions: int = 0
    operations: int = 0


@dataclass(frozen=True)
class Counts:
    """What one or several launches executed."""

    kernels: tuple[str, ...]
    blocks: int
    threads_launched: int
    threads: Mapping[str, int]  # instructions executed by threads, by class
    warps: Mapping[str, int]  # instructions issued for warps, by class
    # By "a_type x b_type shape", such as "u8 x s8 m16n8k32", or "wgmma s8 x s8 m64n32k32".
    tensor: Mapping[str, TensorWork]
    loads: Mapping[str, Traffic]  # by space
    stores: Mapping[str, Traffic]
    bulk: Mapping[str, Traffic]  # copies "to shared" and "to global", and their bytes
    sectors_touched: int  # of global memory, loads and stores
    sectors_needed: int
    uncoalesced_accesses: int
    shared_phases: int
    bank_conflicts: int  # further wavefronts beyond one a phase
    barriers: int  # of blocks, by warps
    branches: int  # `bra` with a guard, by warps
    divergent_branches: int  # of these, those where a warp went two ways

    @property
    def tensor_operations(self) -> int:
        return sum(work.operations for work in self.tensor.values())

    @property
    def coalescing(self) -> float:
        """Sectors needed over sectors touched; 1 where nothing is wasted."""
        return self.sectors_needed / self.sectors_touched if self.sectors_touched else 1.0

    def __str__(self) -> str:
        """A table for people."""
        lines = [
            f"{', '.join(self.kernels)}: {self.blocks} blocks, {self.threads_launched} threads",
            f"{'instructions':<24}{'threads':>14}{'warps':>12}",
        ]
        for name in sorted(self.warps, key=lambda name: -self.warps[name]):
            lines.append(f"  {name:<22}{self.threads.get(name, 0):>14,}{self.warps[name]:>12,}")
        for name, work in self.tensor.items():
            lines.append(f"  mma {name}: {work.instructions:,}, {work.operations:,} operations")
        for verb, traffic in (("loaded", self.loads), ("stored", self.stores)):
            for space, moved in traffic.items():
                lines.append(f"{space}: {moved.bytes:,} bytes {verb}, {moved.accesses:,} accesses")
        for way, moved in self.bulk.items():
            lines.append(f"bulk copies {way}: {moved.accesses:,}, {moved.bytes:,} bytes")
        lines += [
            f"global sectors: {self.sectors_touched:,} touched, {self.sectors_needed:,} needed, "
            f"{self.uncoalesced_accesses:,} uncoalesced accesses",
            f"shared phases: {self.shared_phases:,}, bank conflicts: {self.bank_conflicts:,}",
            f"barriers: {self.barriers:,}, branches: {self.branches:,}, "
            f"divergent: {self.divergent_branches:,}",
        ]
        return "\n".join(lines)


class Counters:
    """Collects what the machine tells while it runs; may be used for several launches."""

    def __init__(self) -> None:
        self._kernels: list[str] = []
        self._blocks = 0
        self._threads_launched = 0
        self._threads: dict[str, int] = defaultdict(int)
        self._warps: dict[str, int] = defaultdict(int)
        self._tensor: dict[str, TensorWork] = {}
        self._loads: dict[str, Traffic] = {}
        self._stores: dict[str, Traffic] = {}
        self._bulk: dict[str, Traffic] = {}
        self._sectors_touched = self._sectors_needed = self._uncoalesced = 0
        self._phases = self._conflicts = 0
        self._barriers = self._branches = self._divergent = 0

    # -- what the machine calls

    def begin(self, kernel: Named, grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        """A launch starts."""
        if kernel.name not in self._kernels:
            self._kernels.append(kernel.name)
        blocks = grid[0] * grid[1] * grid[2]
        self._blocks += blocks
        self._threads_launched += blocks * block[0] * block[1] * block[2]

    def record(
        self,
        instruction: Instruction,
        executing: Lanes,
        active: Lanes,
        accesses: list[Access],
    ) -> None:
        """An instruction was executed by the lanes `executing`; in `active` its guard held."""
        kind = instruction_class(instruction)
        issued = _warps(executing)
        self._threads[kind] += len(active)
        self._warps[kind] += issued
        if instruction.opcode == "mma":
            self._count_tensor(instruction, _warps(active))
        elif instruction.opcode == "wgmma" and "mma_async" in instruction.modifiers:
            self._count_tensor(instruction, len(active) // WARPGROUP)
        elif instruction.opcode in _BARRIERS and "warp" not in instruction.modifiers:
            self._barriers += _warps(active)
        elif instruction.opcode == "bra" and instruction.guard is not None:
            self._branches += issued
            self._divergent += divergent_warps(executing, active)
        for access in accesses:
            for space, lanes, addresses in by_space(access, active):
                if kind == "cp.async.bulk" and space == "shared::async":
                    self._count_bulk(access, lanes)
                self._count_traffic(space, access, lanes)
                if space == "global":
                    self._count_sectors(lanes, addresses, access.size)
                elif space == "shared":
                    self._count_wavefronts(lanes, addresses, access.size)

    def counts(self) -> Counts:
        """What was counted so far."""
        return Counts(
            kernels=tuple(self._kernels),
            blocks=self._blocks,
            threads_launched=self._threads_launched,
            threads=dict(self._threads),
            warps=dict(self._warps),
            tensor=dict(self._tensor),
            loads=dict(self._loads),
            stores=dict(self._stores),
            bulk=dict(self._bulk),
            sectors_touched=self._sectors_touched,
            sectors_needed=self._sectors_needed,
            uncoalesced_accesses=self._uncoalesced,
            shared_phases=self._phases,
            bank_conflicts=self._conflicts,
            barriers=self._barriers,
            branches=self._branches,
            divergent_branches=self._divergent,
        )

    # -- parts

    def _count_tensor(self, instruction: Instruction, warps: int) -> None:
        name, operations = tensor_work(instruction)
        work = self._tensor.get(name, TensorWork())
        self._tensor[name] = TensorWork(
            work.instructions + warps, work.operations + warps * operations
        )

    def _count_traffic(self, space: str, access: Access, lanes: Lanes) -> None:
        traffic = self._stores if access.is_write else self._loads
        moved = traffic.get(space, Traffic())
        traffic[space] = Traffic(
            moved.accesses + _warps(lanes), moved.bytes + len(lanes) * access.size
        )

    def _count_bulk(self, access: Access, lanes: Lanes) -> None:
        way = "to shared" if access.is_write else "to global"
        moved = self._bulk.get(way, Traffic())
        self._bulk[way] = Traffic(moved.accesses + 1, moved.bytes + len(lanes) * access.size)

    def _count_sectors(self, lanes: Lanes, addresses: Addresses, size: int) -> None:
        touched, needed = sectors(lanes, addresses, size)
        self._sectors_touched += int(touched.sum())
        self._sectors_needed += int(needed.sum())
        self._uncoalesced += int((touched > needed).sum())

    def _count_wavefronts(self, lanes: Lanes, addresses: Addresses, size: int) -> None:
        wavefronts = shared_wavefronts(lanes, addresses, size)
        self._phases += len(wavefronts)
        self._conflicts += int((wavefronts - 1).sum())


# -- instructions -----------------------------------------------------------------------------


def instruction_class(instruction: Instruction) -> str:
    """The class that an instruction is counted in.

    "integer", "float", "half", "double", "special", "convert", "move", "tensor", "shuffle",
    "barrier", "mbarrier", "cp.async", "cp.async.bulk", "control", "fence" (those of wgmma and its
    groups too), or for memory the instruction and its space ("ld.global").
    """
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode == "wgmma":
        return "tensor" if "mma_async" in modifiers else "fence"
    if opcode == "mma":
        return "tensor"
    if opcode == "mbarrier":
        return "mbarrier"
    if opcode in _MEMORY:
        space = next((word.split("::")[0] for word in modifiers if _is_space(word)), "generic")
        return f"{opcode}.{space}"
    if opcode == "cp":
        return "cp.async.bulk" if "bulk" in modifiers else "cp.async"
    if opcode in _BARRIERS:
        return "barrier"
    if opcode in _CONTROL:
        return "control"
    if opcode in _WARP_WIDE:
        return "shuffle"
    if opcode in _FENCES:
        return "fence"
    if opcode == "cvt":
        return "convert"
    if opcode in ("mov", "cvta", "isspacep", "mapa"):
        return "move"
    return _arithmetic_class(opcode, modifiers)


def _arithmetic_class(opcode: str, modifiers: tuple[str, ...]) -> str:
    types = set(modifiers)
    is_float = bool(types & (_HALF_TYPES | {"f32", "f64"}))
    if opcode in _SPECIAL and is_float:
        return "special"
    if types & _HALF_TYPES:
        return "half"
    if "f64" in types:
        return "double"
    return "float" if "f32" in types else "integer"


def _is_space(word: str) -> bool:
    return word.split("::")[0] in _SPACES


def tensor_work(instruction: Instruction) -> tuple[str, int]:
    """The kind of an mma.sync, and the operations of one warp; of a wgmma, of one warpgroup."""
    dropped = ("mma_async", "sync", "aligned", "row", "col")
    words = [word for word in instruction.modifiers if word not in dropped]
    if instruction.opcode == "wgmma":
        n, k = map(int, words[0].removeprefix("m64n").split("k"))
        wide = wgmma_form(n, k, *words[1:4], ".".join(words[4:]))
        return f"wgmma {wide.a_type} x {wide.b_type} {wide.shape}", wide.operations
    shape, d_type, a_type, b_type, c_type = words[:5]
    form = mma_form(shape, a_type, b_type, d_type, c_type, ".".join(words[5:]))
    return f"{a_type} x {b_type} {shape}", form.operations


# -- lanes and addresses ------------------------------------------------------------------------


def by_space(access: Access, active: Lanes) -> Iterator[tuple[str, Lanes, Addresses]]:
    """An access by the memories that it goes to: the space, the lanes and their addresses there."""
    lanes = active if access.lanes is None else access.lanes
    addresses = np.broadcast_to(access.addresses, len(lanes)).astype(np.int64)
    if access.space != "generic":
        if len(lanes):
            yield access.space, lanes, addresses
        return
    rest = np.ones(len(lanes), np.bool_)
    for space, base, origin in _WINDOWS:
        here = rest & (addresses >= base)
        rest &= ~here
        if here.any():
            yield space, lanes[here], addresses[here] - origin


def _warps(lanes: Lanes) -> int:
    """Number of warps that some lanes belong to."""
    return int(np.count_nonzero(np.bincount(lanes // WARP)))


def divergent_warps(executing: Lanes, active: Lanes) -> int:
    """Number of warps of which some lanes, not all that execute, are active."""
    warps = int(executing.max()) // WARP + 1 if len(executing) else 0
    here = np.bincount(executing // WARP, minlength=warps)
    chosen = np.bincount(active // WARP, minlength=warps)
    return int(np.count_nonzero((chosen > 0) & (chosen < here)))


def sectors(
    lanes: Lanes, addresses: Addresses, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sectors that each warp touches, and that its distinct bytes would fill.

    Accesses of up to 32 bytes are aligned to their size: each lies within one sector.
    """
    warp = lanes // WARP
    touched = np.bincount(_distinct_pairs(warp, addresses // SECTOR_BYTES)[0])
    distinct_bytes = np.bincount(_distinct_pairs(warp, addresses)[0]) * size
    present = touched > 0
    return touched[present], -(-distinct_bytes[present] // SECTOR_BYTES)


def shared_wavefronts(lanes: Lanes, addresses: Addresses, size: int) -> NDArray[np.int64]:
    """Wavefronts of every phase of an access to shared memory: 1 where no banks conflict."""
    words = max(size // BANK_BYTES, 1)
    phase = np.repeat(lanes // (WARP // words), words)
    word = (addresses[:, None] // BANK_BYTES + np.arange(words)).ravel()
    phase, word = _distinct_pairs(phase, word)
    bank, load = np.unique(phase * BANKS + word % BANKS, return_counts=True)
    starts = np.flatnonzero(np.diff(bank // BANKS, prepend=-1))
    return np.maximum.reduceat(load, starts)


def _distinct_pairs(group: Lanes, value: Addresses) -> tuple[Lanes, Addresses]:
    """The distinct (group, value), ordered by group."""
    least = int(value.min())
    span = int(value.max()) - least + 1  # 2^48 addresses times 2^14 warps fit 63 bits
    keys = np.unique(group * span + (value - least))
    return keys // span, keys % span + least
