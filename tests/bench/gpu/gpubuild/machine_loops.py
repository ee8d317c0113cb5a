"""The main loop of a kernel's machine code: what one turn of it issues, and to which pipe.

Read from SASS, not measured. A multiprocessor has four schedulers. Each issues one instruction of a
warp in a cycle; integers and logic have 16 lanes, so that such an instruction takes its pipe for
two cycles, and so do, at best, conversions. `main_loop` counts all that stands between a loop's
label and the branch to it, which is an upper bound; `shortest_turn` what a turn issues at least.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

SCHEDULERS = 4  # of a multiprocessor
SHARED_BYTES = 128  # of a multiprocessor, in a cycle
WARP = 32
WARPGROUP_WARPS = 4
WGMMA_STEP_BYTES = 32  # of K, of an instruction and a row

_ALU = """
    LOP3 SHF IADD3 VIADD LEA ISETP SEL PRMT IMNMX VIMNMX VIADDMNMX PLOP3 FSETP FMNMX FSEL IABS SGXT
    BMSK P2R R2P
"""
# Opcodes by pipe; what is in no row takes an issue slot alone (control, uniform, moves).
PIPES: dict[str, frozenset[str]] = {
    "mma": frozenset({"HMMA", "IMMA", "BMMA", "HGMMA", "IGMMA", "BGMMA"}),
    "alu": frozenset(_ALU.split()),
    "fma": frozenset({"FFMA", "FADD", "FMUL", "IMAD", "HFMA2", "HADD2", "HMUL2", "IDP"}),
    "convert": frozenset({"I2F", "F2I", "F2F", "MUFU", "POPC", "FLO", "I2FP", "F2FP", "BREV"}),
    "shared": frozenset({"LDS", "LDSM", "STS"}),
    "copy": frozenset({"LDGSTS"}),
    "box": frozenset({"UTMALDG"}),
    "barrier": frozenset({"BAR"}),
}
MMA_OPERATIONS = {  # a multiplication or an addition each, by shape as SASS spells it
    "8816": 2 * 8 * 8 * 16,
    "1688": 2 * 16 * 8 * 8,
    "16816": 2 * 16 * 8 * 16,
    "16832": 2 * 16 * 8 * 32,
    "168128": 2 * 16 * 8 * 128,
    "168256": 2 * 16 * 8 * 256,
}
# Cycles that an instruction of a warp keeps its pipe of one scheduler.
PIPE_CYCLES = {"alu": 2.0, "fma": 1.0, "convert": 2.0}
_HALF_RATE = frozenset({"IMAD", "IDP"})  # of the pipe "fma"

_LABEL = re.compile(r"(\.L\S*):")
# Not BRA.U.ANY, which repeats an instruction until all lanes have had their turn.
_BRANCH = re.compile(r"\bBRA\b(?!\.U\.ANY).*`\((\.L\S*?)\)")
_OPCODE = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)")


@dataclass(frozen=True)
class Turn:
    """Instructions of one turn of a loop, of one warp."""

    counts: Counter[str]  # by opcode with its modifiers

    @property
    def issued(self) -> int:
        return sum(self.counts.values())

    def of(self, pipe: str) -> int:
        """Instructions of a pipe."""
        return sum(n for name, n in self.counts.items() if _base(name) in PIPES[pipe])

    def cycles(self, pipe: str) -> float:
        """Cycles that a turn keeps a pipe of its scheduler."""
        total = 0.0
        for name, n in self.counts.items():
            if _base(name) in PIPES[pipe]:
                total += n * (2.0 if _base(name) in _HALF_RATE else PIPE_CYCLES[pipe])
        return total

    @property
    def stages(self) -> int:
        """That a turn of a warp that copies boxes begins: it says for each how many bytes come."""
        return self.counts["SYNCS.ARRIVE.TRANS64"]

    @property
    def shared_bytes(self) -> int:
        """To and from shared memory, of a warp, where all 32 lanes take part; a fourth of what
        `wgmma` reads for a warpgroup."""
        accessed = sum(
            n * WARP * _lane_bytes(name)
            for name, n in self.counts.items()
            if _base(name) in PIPES["shared"] | PIPES["copy"]
        )
        shapes = [(_warpgroup_shape(name), n) for name, n in self.counts.items()]
        multiplied = sum(n * shape[1] * WGMMA_STEP_BYTES for shape, n in shapes if shape)
        return accessed + multiplied // WARPGROUP_WARPS

    @property
    def mma_operations(self) -> int:
        """Of all MMAs of a turn."""
        return sum(
            n * _operations(name) for name, n in self.counts.items() if _base(name) in PIPES["mma"]
        )

    @property
    def streamed_bytes(self) -> int:
        """Loaded past the L1 cache, as kernels of few rows load weights, or to shared memory."""
        return sum(
            n * WARP * 16
            for name, n in self.counts.items()
            if name.startswith("LDGSTS") or (name.startswith("LDG") and ".NA" in name)
        )


def main_loop(lines: list[str]) -> Turn | None:
    """The innermost loop with the most MMAs, or of them none the most dot products or FMAs; None
    where there is no loop. `lines` as of `disassemble(..., labels=True)`."""

    def order(turn: Turn) -> tuple[int, int, int]:
        # Of those with the same MMAs the shortest: waits that are repeated stand far behind.
        mmas = turn.of("mma")
        return (mmas, 0, -turn.issued) if mmas else (0, turn.of("fma"), 0)

    return max(_turns(lines), key=order, default=None)


def shortest_turn(lines: list[str]) -> Turn | None:
    """Of the main loop, the way through it with the most MMAs and copies, and of those the one with
    the fewest instructions: what most turns jump over is not counted."""

    def order(loop: tuple[int, int]) -> tuple[int, int, int]:
        turn = Turn(_count(lines[loop[0] : loop[1]]))
        return (turn.of("mma"), turn.of("fma"), -turn.issued)

    loops = _innermost(lines)
    if not loops:
        return None
    begin, end = max(loops, key=order)
    at = {match[1]: i for i in range(begin, end) if (match := _LABEL.match(lines[i]))}
    best: dict[int, tuple[int, int, int | None]] = {end - 1: (0, -1, None)}  # MMAs, others, next
    for i in range(end - 2, begin - 1, -1):
        branch = _BRANCH.search(lines[i])
        following = {i + 1} if branch is None or lines[i].lstrip().startswith("@") else set()
        if branch and at.get(branch[1], begin) > i:
            following.add(at[branch[1]])
        ways = [(*best[j][:2], j) for j in following if j in best]
        if ways:
            turn = Turn(_count([lines[i]]))
            mmas, others, j = max(ways)
            wanted = turn.of("mma") + turn.of("copy") + turn.of("box")
            best[i] = (mmas + wanted, others - turn.issued, j)
    way: list[str] = []
    at_line: int | None = begin
    while at_line is not None:
        way.append(lines[at_line])
        at_line = best[at_line][2]
    return Turn(_count(way))


def copying_loop(lines: list[str]) -> Turn | None:
    """The shortest innermost loop with the most copies and no MMA: of warps that only copy."""

    def copies(turn: Turn) -> int:
        return turn.of("copy") + turn.of("box")

    loops = [turn for turn in _turns(lines) if copies(turn) and not turn.of("mma")]
    return max(loops, key=lambda turn: (copies(turn), -turn.issued), default=None)


def _turns(lines: list[str]) -> list[Turn]:
    return [Turn(_count(lines[begin:end])) for begin, end in _innermost(lines)]


def _innermost(lines: list[str]) -> list[tuple[int, int]]:
    """Ranges of lines from a label to a branch back to it that have no such range inside."""
    at = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.match(line))}
    loops = []
    for i, line in enumerate(lines):
        match = _BRANCH.search(line)
        if match and match[1] in at and at[match[1]] < i:
            loops.append((at[match[1]], i + 1))
    loops = [loop for loop in loops if loop[1] - loop[0] > 3]  # not the end's branch to itself
    return [a for a in loops if not any(a != c and a[0] <= c[0] and c[1] <= a[1] for c in loops)]


def _count(lines: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        match = None if _LABEL.match(line) else _OPCODE.match(line)
        if match and match[1] != "NOP":
            counts[match[1] + match[2]] += 1
    return counts


def _warpgroup_shape(name: str) -> tuple[int, int, int] | None:
    """M, N and K of a `wgmma`, as in HGMMA.64x128x16.F32."""
    match = re.match(r"[HIB]GMMA\.(\d+)x(\d+)x(\d+)", name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _operations(name: str) -> int:
    """Of an MMA, a warp's part."""
    shape = _warpgroup_shape(name)
    if shape is None:
        return MMA_OPERATIONS[name.split(".")[1]]
    return 2 * math.prod(shape) // WARPGROUP_WARPS


def _base(name: str) -> str:
    return name.split(".")[0]


def _lane_bytes(name: str) -> int:
    if name.startswith("LDSM"):
        return 4 * int(name[-1]) if name[-1] in "24" else 4
    match = re.search(r"\.(64|128)\b", name)
    return int(match[1]) // 8 if match else 4
