"""What the main loops of the matmul kernels issue, read from machine code: no GPU is needed.

    python tests/bench/gpu/issue_slots.py [--target sm_90a] [--shape 8192x28672] [--rows 1,64]

For every format and strategy of the kit, of the schedule that the cost model picks. With many rows:
issue slots, cycles of the pipes and of shared memory for an MMA, and the part of the rate of
`mma.sync` that the busiest of them leaves. With few rows: the bytes of weights a second that could
be streamed if every scheduler issued an instruction in every cycle. `--attention 64,128`: of both
kernels for prompts with heads of so many columns, by precision; without what most tiles jump over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1]):
    sys.path.insert(0, str(folder))

from abqc.codegen.gpu.assembly.compile import assemble, compile_ptx, disassemble  # noqa: E402
from abqc.codegen.gpu.attention.halves import TileShape  # noqa: E402
from abqc.codegen.gpu.attention.mma import mma_kernel, mma_unsupported  # noqa: E402
from abqc.codegen.gpu.attention.spec import AttentionSpec  # noqa: E402
from abqc.codegen.gpu.attention.swizzled import SwizzledShape  # noqa: E402
from abqc.codegen.gpu.attention.wgmma import wgmma_kernel, wgmma_unsupported  # noqa: E402
from abqc.codegen.strategy import Kernel  # noqa: E402
from abqc.codegen.targets.cuda import CudaTarget  # noqa: E402
from abqc.costmodel.gpu_analytic import Occupancy  # noqa: E402
from abqc.costmodel.hardware import gpu_for  # noqa: E402
from abqc.costmodel.hardware_gpu import Gpu  # noqa: E402
from abqc.costmodel.interface import KernelFeatures  # noqa: E402
from abqc.dialects.context import make_context  # noqa: E402
from abqc.dialects.mlir import ir  # noqa: E402
from gpubuild.machine_loops import (  # noqa: E402
    SCHEDULERS,
    SHARED_BYTES,
    WARPGROUP_WARPS,
    Turn,
    copying_loop,
    main_loop,
    shortest_turn,
)
from gpubuild.matmuls import Chosen, best_of_each  # noqa: E402
from gpubuild.plan import FORMATS, Plan  # noqa: E402

UNITS = ("b1", "s8", "f16", "wgmma_b1", "wgmma_s8", "wgmma_f16")
FEW_ROWS = 8  # up to here the weights' bytes decide


@dataclass(frozen=True)
class Line:
    """The main loop of one schedule."""

    chosen: Chosen
    turn: Turn
    copying: Turn | None  # of the warps that copy for the others
    registers: int
    gpu: Gpu

    @property
    def mma_cycles(self) -> float:
        """That a turn keeps the tensor cores of a scheduler; 0 on CUDA cores."""
        if not self.turn.mma_operations:
            return 0.0
        return self.turn.mma_operations / (self.gpu.rates[self.unit] / SCHEDULERS)

    @property
    def unit(self) -> str:
        """What multiplies."""
        features = self.chosen.features
        return next(unit for unit in UNITS if getattr(features, f"{unit}_ops"))

    @property
    def useful_cycles(self) -> float:
        """Of these, for products that are wanted once: planes may multiply a pair twice."""
        f, schedule = self.chosen.features, self.chosen.schedule
        turns = -(-f.k // (schedule.block_k * schedule.grid_split)) * f.blocks * self.multiplying
        return getattr(f, f"{self.unit}_ops") / turns / (self.gpu.rates[self.unit] / SCHEDULERS)

    @property
    def multiplying(self) -> int:
        """Warps of a block that multiply."""
        schedule = self.chosen.schedule
        return schedule.warps_m * schedule.warps_n * schedule.warps_k

    @property
    def shared_cycles(self) -> float:
        """As all four schedulers do the same."""
        accessed = self._with_copies(lambda turn: turn.shared_bytes)
        return (accessed + self._box_bytes / self.multiplying) * SCHEDULERS / SHARED_BYTES

    @property
    def _box_bytes(self) -> int:
        """Of rows that the hardware writes to a stage."""
        schedule = self.chosen.schedule
        if not schedule.boxes:
            return 0
        size = 2 if self.unit == "wgmma_f16" else 1
        return schedule.block_m * schedule.block_k * size

    def _with_copies(self, count: Callable[[Turn], float]) -> float:
        """Of a turn, and of its share of the turn of a warp that copies."""
        if self.copying is None:
            return count(self.turn)
        copying = count(self.copying) * WARPGROUP_WARPS
        if self.chosen.schedule.boxes:  # one warp does it
            copying = count(self.copying) / self.copying.stages
        return count(self.turn) + copying / self.multiplying

    @property
    def cycles(self) -> dict[str, float]:
        return {
            "issue": self._with_copies(lambda turn: turn.issued),
            "alu": self._with_copies(lambda turn: turn.cycles("alu") + turn.cycles("convert")),
            "fma": self._with_copies(lambda turn: turn.cycles("fma")),
            "shared": self.shared_cycles,
        }

    @property
    def warps(self) -> float:
        """That a scheduler has at once."""
        features = self.chosen.features
        blocks = Occupancy.of(features_with(features, self.registers), self.gpu).blocks
        return blocks * features.threads / 32 / SCHEDULERS

    @property
    def part_of_rate(self) -> float:
        """The most that the busiest of all leaves."""
        return self.useful_cycles / max(*self.cycles.values(), self.mma_cycles)

    @property
    def weight_bytes(self) -> float:
        """Of a turn of one warp."""
        schedule, bits = self.chosen.schedule, self.chosen.features.weight_bits
        if schedule.kind == "rows":
            return self.turn.streamed_bytes
        return schedule.block_n * schedule.block_k * bits / 8 / (schedule.threads // 32)

    @property
    def streamed(self) -> float:
        """Bytes of weights a second, at an instruction in every cycle, or at the pipes' rate."""
        busiest = max(*self.cycles.values(), self.mma_cycles)
        return self.weight_bytes / busiest * SCHEDULERS * self.gpu.sms * self.gpu.clock


def features_with(features: KernelFeatures, registers: int) -> KernelFeatures:
    return replace(features, registers=registers)


def lines(target: CudaTarget, plan: Plan, rows: list[int]) -> Iterator[Line]:
    gpu = gpu_for(target.name)
    for chosen in best_of_each(plan, target, rows):
        text, registers = machine_code(chosen.kernel, target)
        turn = main_loop(text)
        if turn is None:
            print(f"{chosen.kernel.name} has no loop", file=sys.stderr)
            continue
        copying = copying_loop(text) if chosen.schedule.kind == "wgmma" else None
        yield Line(chosen, turn, copying, registers, gpu)


def machine_code(kernel: Kernel, target: CudaTarget) -> tuple[list[str], int]:
    """Its instructions and labels, and the registers of a thread; says where some are spilled."""
    arch = target.archs[0]
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, arch)
        ptx = compile_ptx(module, arch)
    code = assemble(ptx.text, arch)
    used = code.resources[kernel.name]
    if used.spill_stores:
        print(f"{kernel.name} spills {used.spill_stores} bytes", file=sys.stderr)
    return disassemble(code.cubin, labels=True)[kernel.name], used.registers


def attention_rows(target: CudaTarget, columns: int) -> Iterator[list[str]]:
    """Rows of the table of attention: a tile of keys, of a warp."""
    rates = gpu_for(target.name).rates
    for precision in ("f16", "bf16x3"):
        spec = AttentionSpec(columns, columns, "add", precision)
        ways: list[tuple[Kernel, TileShape, str]] = []
        if not mma_unsupported(spec):
            ways.append((mma_kernel(spec), TileShape(spec), "f16"))
        if "wgmma_f16" in rates and not wgmma_unsupported(spec):
            ways.append((wgmma_kernel(spec), SwizzledShape(spec), "wgmma_f16"))
        for kernel, shape, unit in ways:
            # Its shortest turn reads no mask.
            text, registers = machine_code(kernel, target)
            turn = shortest_turn(text)
            assert turn is not None
            mma = turn.mma_operations / (rates[unit] / SCHEDULERS)
            issue = turn.issued
            special = turn.counts["MUFU.EX2"] * 32 * SCHEDULERS / rates["special"]
            shared = turn.shared_bytes * SCHEDULERS / SHARED_BYTES
            part = mma / max(mma, issue, special, shared)
            numbers = [mma, issue, special, shared]
            yield [
                *(precision, str(columns), unit, f"{shape.keys}", str(registers)),
                *(f"{number:.0f}" for number in numbers),
                f"{part:.2f}",
                f"{1 - issue / mma:.2f}",
            ]


def row_of(line: Line) -> list[str]:
    """One row of the table."""
    chosen, turn = line.chosen, line.turn
    f, mmas = chosen.features, turn.of("mma")
    row = [f.m, chosen.format, f.strategy, chosen.schedule.name, line.registers]
    row.append(f"{line.warps:.0f}")
    if f.m > FEW_ROWS:
        cycles = line.cycles
        row += [f"{line.mma_cycles / mmas:.1f}", *(f"{cycles[p] / mmas:.1f}" for p in cycles)]
        row += [f"{turn.of('barrier')}/{mmas}", f"{line.part_of_rate:.2f}"]
    else:
        per_byte = turn.issued * 32 / line.weight_bytes
        row += [f"{per_byte:.1f}", f"{line.streamed / 1e12:.1f}"]
    return [str(cell) for cell in row]


ATTENTION = "precision|columns|by|keys|registers|MMA|issue|exp|shared|of rate|slots left"
HEADS = {
    True: "M|format|strategy|schedule|registers|warps|MMA|issue|alu|fma|shared|barriers|of rate",
    False: "M|format|strategy|schedule|registers|warps|instructions a lane and byte|TB/s",
}


def print_heads(text: str) -> None:
    heads = text.split("|")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--shape", default="8192x28672", help="KxN")
    parser.add_argument("--rows", default="1,8,64,4096")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--attention", default="", help="columns of heads: attention alone")
    arguments = parser.parse_args()
    target = CudaTarget.named(arguments.target)
    if target is None or len(target.archs) != 1:
        parser.error(f"{arguments.target} is not one GPU target")
    if arguments.attention:
        print_heads(ATTENTION)
        for columns in map(int, arguments.attention.split(",")):
            for row in attention_rows(target, columns):
                print("| " + " | ".join(row) + " |", flush=True)
        return 0
    k, n = map(int, arguments.shape.split("x"))
    plan = Plan(shapes=((k, n),), formats=tuple(arguments.formats.split(",")))
    many: bool | None = None
    for line in lines(target, plan, [int(m) for m in arguments.rows.split(",")]):
        if (line.chosen.features.m > FEW_ROWS) != many:
            many = line.chosen.features.m > FEW_ROWS
            print_heads(HEADS[many])
        print("| " + " | ".join(row_of(line)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
