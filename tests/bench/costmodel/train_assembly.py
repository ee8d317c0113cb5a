"""Train `costmodel/weights/assembly.npz`, and print how well it predicts what it was not shown.

    python tests/bench/costmodel/train_assembly.py FOLDER [--operations] [--tokens] [--train-only]

FOLDER is that of `assemble_gpu_kernels.py`. Held out: `shapes`, kernels of the same K, a fourth of
all at a time, whose formats are usual, or any; `widths`, weights of 3 and 6 bits; `target`, sm_89.
Of each prediction: registers within 8, mean error of registers; the number of blocks that fit an SM
by them; spills yes or no, and how many of those that spill were found; issue slots of a turn of the
main loop: within 8 %, and mean error. Judged are kernels with the bounds that their plans have, and
none that were added (`--family`, `--doubted`).
`plan` is what these reckon with, `median` that of the family in training. Networks help with
registers alone. With `operations` trees see the histogram of the kernel's MLIR too, `tokens` is the
sequence model over it; both need the kernel to be emitted.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lightgbm
import numpy as np
import register_network
from abqc.compiler.commands.table import table
from abqc.costmodel import assembly
from abqc.costmodel.assembly import AssemblyModel, Family
from abqc.costmodel.number_inputs import NumberInputs
from abqc.costmodel.register_counts import RegisterCounts
from abqc.costmodel.trees import F64
from gpu_assembly_data import Assembled, Expected, Predictor, load
from gradient_boosting import Boosting

HELD_OUT_BITS = (3, 6)
HELD_OUT_TARGET = "sm_89"
FOLDS = 4
REGISTERS, SLOTS = 8, 0.08  # what counts as right
SM_REGISTERS = 65536
COMMON = 0.02  # of the kernels, that have an operation: rarer ones are left out
BOOSTING = {
    "registers": Boosting(100, 6, 48, 0.2, "regression", 0.6),
    "spills": Boosting(100, 5, 16, 0.08, "binary", 0.6),
    "slots": Boosting(160, 6, 32, 0.08, "huber", 0.6),
}
NETWORKS = 2  # of a family: they err apart
STEPS = 16  # of a number that networks look at

Numbers = Callable[[Assembled], list[float]]


Fit = Callable[[Sequence[Assembled]], Predictor]
Pair = tuple[Expected, Assembled]
Fold = tuple[list[Assembled], list[Assembled]]  # training, judged


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--operations", action="store_true", help="trees over operations too")
    parser.add_argument("--tokens", action="store_true", help="the token model too (PyTorch)")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    kernels = load(args.folder)
    if args.train_only:
        ship(kernels)
        return
    fits: dict[str, Fit] = {"median": medians, "plan": plan, "trees": trees}
    fits["networks and trees"] = partial(trees, networks=NETWORKS)
    if args.operations:
        fits["trees, operations too"] = trees_over_operations
    if args.tokens:
        import assembly_tokens

        fits["tokens"] = assembly_tokens.fit
    rows = []
    for name, folds in splits(kernels).items():
        for label, fit in fits.items():
            if label == "tokens" and name != "shapes":
                continue
            found: list[Pair] = []
            for training, judged in folds:
                found += zip(fit(training)(judged), judged, strict=True)
            for part, own in parts(found).items():
                rows.append((f"{name}{part}", label, *scores(own)))
                print("  ".join(rows[-1]), len(own), near_by_family(own), flush=True)
    head = (
        *("held out", "prediction", "registers", "error", "blocks"),
        *("spills", "found", "slots", "error"),
    )
    print(table(head, rows))
    ship(kernels)


def splits(kernels: Sequence[Assembled]) -> dict[str, list[Fold]]:
    """Training sets and what is judged by each."""

    def fold(out: Callable[[Assembled], bool]) -> Fold:
        judged = [k for k in kernels if out(k) and k.as_planned and k.sampled]
        return [k for k in kernels if not out(k)], judged

    number = {k: place % FOLDS for place, k in enumerate(sorted({k.task.k for k in kernels}))}
    return {
        "shapes": [fold(lambda k, f=f: number[k.task.k] == f) for f in range(FOLDS)],  # type: ignore[misc]
        "widths": [fold(lambda k: bits(k) in HELD_OUT_BITS)],
        "target": [fold(lambda k: k.target == HELD_OUT_TARGET)],
    }


def parts(found: list[Pair]) -> dict[str, list[Pair]]:
    """Usual formats, and any other ones."""
    usual = [pair for pair in found if pair[1].usual]
    others = [pair for pair in found if not pair[1].usual]
    return {"": usual, ", any format": others}


def bits(kernel: Assembled) -> int:
    return kernel.task.spec.weight_bits


def scores(found: Sequence[Pair]) -> tuple[str, ...]:
    registers = np.array([abs(e.registers - k.registers) for e, k in found])
    spills = np.array([e.spills == k.spills for e, k in found])
    spilled = [e.spills for e, k in found if k.spills]
    blocks = [blocks_of(e.registers, k) == blocks_of(k.registers, k) for e, k in found]
    slots = np.array([abs(e.slots / k.slots - 1) for e, k in found])
    slots = slots[~np.isnan(slots)]
    return (
        f"{(registers <= REGISTERS).mean():.1%}",
        f"{registers.mean():.1f}",
        f"{np.mean(blocks):.1%}",
        f"{spills.mean():.1%}",
        f"{sum(spilled)} of {len(spilled)}",
        f"{(slots <= SLOTS).mean():.1%}",
        f"{slots.mean():.1%}",
    )


def near_by_family(found: Sequence[Pair]) -> str:
    """Registers that are right."""
    near: dict[str, list[bool]] = {}
    for e, k in found:
        near.setdefault(k.code.family, []).append(abs(e.registers - k.registers) <= REGISTERS)
    return ", ".join(f"{name} {np.mean(own):.1%}" for name, own in sorted(near.items()))


def blocks_of(registers: float, kernel: Assembled) -> int:
    """That an SM has the registers for."""
    each = -(-registers // assembly.STEP) * assembly.STEP * kernel.code.threads
    return int(SM_REGISTERS // each)


def by_family(kernels: Sequence[Assembled]) -> dict[str, list[Assembled]]:
    found: dict[str, list[Assembled]] = {}
    for kernel in kernels:
        found.setdefault(kernel.code.family, []).append(kernel)
    return dict(sorted(found.items()))


def medians(training: Sequence[Assembled]) -> Predictor:
    of_family = {
        name: Expected(
            float(np.median([k.registers for k in own])),
            False,
            float(np.nanmedian([k.slots for k in own])),
        )
        for name, own in by_family(training).items()
    }
    return lambda kernels: [of_family[k.code.family] for k in kernels]


def plan(training: Sequence[Assembled]) -> Predictor:
    """The plan's own estimate of registers, or its bound."""

    def expected(kernel: Assembled) -> Expected:
        registers = kernel.code.numbers.get("planned_registers", kernel.code.bound)
        return Expected(registers, False, 1.0)

    return lambda kernels: [expected(kernel) for kernel in kernels]


def rows_of(kernels: Sequence[Assembled], names: Sequence[str], more: Numbers | None) -> F64:
    return np.array(
        [
            (more(k) if more else []) + assembly.row(k.code, names, k.target, k.code.bound)
            for k in kernels
        ],
        np.float64,
    )


def grown(own: Sequence[Assembled], networks: int, more: Numbers | None = None) -> Family:
    """What is learned of a family."""
    names = tuple(own[0].code.numbers)
    rows, slots = rows_of(own, names, more), np.array([k.slots for k in own])
    has_loop = ~np.isnan(slots)
    return Family(
        names,
        register_counts(rows, np.array([float(k.registers) for k in own]), networks),
        BOOSTING["spills"](rows, np.array([float(k.spills) for k in own])),
        BOOSTING["slots"](rows[has_loop], np.log(slots[has_loop])),
    )


def register_counts(rows: F64, registers: F64, networks: int) -> RegisterCounts:
    inputs = NumberInputs.of(rows, STEPS, assembly.CAPABILITY)
    seen = inputs(rows)
    every = [register_network.fit(seen, registers, seed) for seed in range(networks)]
    return RegisterCounts(BOOSTING["registers"](rows, registers), tuple(every), inputs)


def trees(
    training: Sequence[Assembled], more: Numbers | None = None, *, networks: int = 0
) -> Predictor:
    families = {name: grown(own, networks, more) for name, own in by_family(training).items()}

    def predict(kernels: Sequence[Assembled]) -> list[Expected]:
        found: list[Expected | None] = [None] * len(kernels)
        for name, family in families.items():
            places = [i for i, kernel in enumerate(kernels) if kernel.code.family == name]
            if not places:
                continue
            rows = rows_of([kernels[i] for i in places], family.names, more)
            registers = np.minimum(np.rint(family.registers.predict(rows)), rows[:, assembly.CAP])
            spills, slots = family.spills.predict(rows) > 0, np.exp(family.slots.predict(rows))
            for i, *values in zip(places, registers, spills, slots, strict=True):
                found[i] = Expected(float(values[0]), bool(values[1]), float(values[2]))
        return [each for each in found if each is not None]

    return predict


def trees_over_operations(training: Sequence[Assembled]) -> Predictor:
    counts = Counter(name for k in training for name, _ in k.row["operations"])
    names = sorted(name for name, count in counts.items() if count >= COMMON * len(training))

    def operations(kernel: Assembled) -> list[float]:
        own = dict(kernel.row["operations"])
        return [math.log2(1 + own.get(name, 0)) for name in names]

    return trees(training, operations)


def ship(kernels: Sequence[Assembled]) -> None:
    """Write a model of all kernels."""
    families = {name: grown(own, NETWORKS) for name, own in by_family(kernels).items()}
    targets = tuple(sorted({k.target for k in kernels}))
    trained = {
        "command": "tests/bench/costmodel/train_assembly.py FOLDER",
        "kernels": len(kernels),
        "library": f"lightgbm {lightgbm.__version__}",
    }
    AssemblyModel(families, targets).save(assembly.PATH, trained)
    model = AssemblyModel.load(assembly.PATH)
    print(f"{assembly.PATH}: {assembly.PATH.stat().st_size} bytes")
    many = [kernels[i % len(kernels)].code for i in range(500)]
    times = []
    for _ in range(5):
        begin = time.thread_time()
        model.predict(many, targets[0])
        times.append(time.thread_time() - begin)
    print(f"500 candidates of all families: {1e3 * min(times):.0f} ms")


if __name__ == "__main__":
    main()
