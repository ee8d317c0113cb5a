"""What the assembler makes of a kernel, predicted from its plan: registers, spills, issue slots.

Boosted trees, and for registers small networks beside them (register_counts.py), over the numbers
that machine code depends on, the target and the bound on registers; those of a family of kernels
are its own. They were trained with kernels that ptxas assembled
(tests/bench/costmodel/train_assembly.py), so that no candidate of a choice needs to be assembled.
docs/cost-model.md says how far to trust them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from .dense_network import DenseNetwork
from .hardware import gpu_for
from .interface import KernelFeatures
from .number_inputs import NumberInputs
from .register_counts import RegisterCounts
from .trees import F64, Trees

FORMAT = "abqc-assembly-3"
PATH = Path(__file__).parent / "weights" / "assembly.npz"
OUTPUTS = ("registers", "spills", "slots")
STEP = 8  # registers by which bounds are raised
MOST_REGISTERS = 255  # of a thread
LEAF_STEPS = 16  # of leaves of trees in a file, for their standard deviation
CAPABILITY, BOUND, CAP = -3, -2, -1  # places in what is looked at


@dataclass(frozen=True)
class KernelCode:
    """What the machine code of a kernel depends on: the same for all its launches.

    A `family` is made by the same functions; `numbers` are those of its plan, by name, and of the
    same names in all of a family. `bound`: registers that a thread may have; 0: as many as ptxas
    thinks best.
    """

    family: str
    numbers: Mapping[str, float]
    threads: int
    bound: int = 0


@dataclass(frozen=True)
class Assembly:
    """What is expected of a kernel for one target, built so that nothing is spilled that need not
    be: registers of a thread; the bound that this takes (0: as its plan has it); whether it spills
    all the same; instructions of the main loop, over those that the plan reckons with."""

    registers: int
    bound: int
    spills: bool
    slots: float

    def on(self, features: KernelFeatures, arch: str) -> KernelFeatures:
        """The features of a launch on `arch` of the kernel that its plan has made, corrected."""
        issued = features.issued * self.slots
        return features.changed(arch=arch, registers=self.registers, issued=issued)


@dataclass(frozen=True)
class Family:
    """What was learned of a family, over the numbers of `row`. Trees of spills are positive where a
    kernel spills, those of slots logarithms."""

    names: tuple[str, ...]
    registers: RegisterCounts
    spills: Trees
    slots: Trees


@dataclass(frozen=True)
class AssemblyModel:
    """`targets` are those that it was trained on."""

    families: Mapping[str, Family]
    targets: tuple[str, ...]

    def predict(self, kernels: Sequence[KernelCode], arch: str) -> list[Assembly | None]:
        """Of each; None for a family or a target of which nothing was learned."""
        found: list[Assembly | None] = [None] * len(kernels)
        if arch not in self.targets:
            return found
        for name in {code.family for code in kernels} & set(self.families):
            places = [i for i, code in enumerate(kernels) if code.family == name]
            predicted = _predict(self.families[name], [kernels[i] for i in places], arch)
            for place, assembly in zip(places, predicted, strict=True):
                found[place] = assembly
        return found

    def save(self, path: Path, trained: Mapping[str, Any]) -> None:
        """Write a .npz; `trained` is for people, how it came to be."""
        described = {
            "format": FORMAT,
            "targets": self.targets,
            "families": {name: each.names for name, each in self.families.items()},
            "trained": trained,
        }
        arrays = {
            f"{name} {output} {part}": array
            for name, each in self.families.items()
            for output in OUTPUTS
            for part, array in _packed(_trees(each, output)).items()
        }
        for name, each in self.families.items():
            counts = each.registers
            prefix = _inputs(name)
            arrays |= {prefix + part: array for part, array in counts.inputs.arrays().items()}
            for number, network in enumerate(counts.networks):
                prefix = _network(name, number)
                arrays |= {prefix + part: array for part, array in network.arrays().items()}
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(described).encode(), np.uint8)
        np.savez_compressed(buffer, described=text, **arrays)  # type: ignore[arg-type]
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ArtifactError for a file that `save` has not written."""
        try:
            with np.load(path) as file:
                described = json.loads(bytes(file["described"]))
                if described["format"] != FORMAT:
                    raise ValueError(f"its format is '{described['format']}', not '{FORMAT}'")
                arrays = {name: file[name] for name in file.files}
                families = {
                    name: _family(arrays, name, tuple(names))
                    for name, names in described["families"].items()
                }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is no model of the assembler: {error}") from error
        return cls(families, tuple(described["targets"]))


@cache
def shipped_assembly() -> AssemblyModel:
    """The model that comes with the package."""
    return AssemblyModel.load(PATH)


def most_registers(arch: str, threads: int) -> int:
    """Of a thread, if a block of `threads` is to run."""
    return min(MOST_REGISTERS, gpu_for(arch).registers_per_sm // threads // STEP * STEP)


def row(code: KernelCode, names: Sequence[str], arch: str, bound: int) -> list[float]:
    """What is looked at: numbers of the plan, the compute capability, the bound, and the most
    registers that a thread can have."""
    most = most_registers(arch, code.threads)
    capability = float("".join(filter(str.isdigit, arch)))
    numbers = [float(code.numbers[name]) for name in names]
    return [*numbers, capability, float(bound), float(min(bound or most, most))]


def _predict(family: Family, kernels: Sequence[KernelCode], arch: str) -> list[Assembly]:
    """Where kernels spill, bounds are raised as codegen/gpu/assembly/spills.py does."""
    rows = np.array([row(code, family.names, arch, code.bound) for code in kernels])
    most = np.array([most_registers(arch, code.threads) for code in kernels])
    registers, spills = _allocated(family, rows)
    slots = np.exp(family.slots.predict(rows))
    bounds = np.zeros(len(rows), np.int64)
    while True:
        higher = np.maximum(bounds, -(-registers // STEP) * STEP) + STEP
        again = spills & (higher <= most)
        if not again.any():
            break
        bounds[again] = rows[again, BOUND] = rows[again, CAP] = higher[again]
        registers[again], spills[again] = _allocated(family, rows[again])
    return [
        Assembly(int(used), int(bound), bool(spilled), float(factor))
        for used, bound, spilled, factor in zip(registers, bounds, spills, slots, strict=True)
    ]


def _allocated(family: Family, rows: F64) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Registers, and whether they are too few."""
    registers = np.minimum(np.rint(family.registers.predict(rows)), rows[:, CAP])
    return registers.astype(np.int64), family.spills.predict(rows) > 0


def _trees(family: Family, output: str) -> Trees:
    found: Trees = family.registers.trees if output == "registers" else getattr(family, output)
    return found


def _inputs(family: str) -> str:
    """The beginning of the names of the arrays of networks' inputs."""
    return f"{family} inputs "


def _network(family: str, number: int) -> str:
    """The beginning of the names of a network's arrays."""
    return f"{family} network{number} "


def _family(file: Mapping[str, NDArray[Any]], name: str, names: tuple[str, ...]) -> Family:
    registers, spills, slots = (_unpacked(file, f"{name} {output}") for output in OUTPUTS)
    networks: list[DenseNetwork] = []
    while f"{_network(name, len(networks))}widths" in file:
        networks.append(DenseNetwork.from_arrays(file, _network(name, len(networks))))
    inputs = NumberInputs.from_arrays(file, _inputs(name))
    counts = RegisterCounts(registers, tuple(networks), inputs)
    return Family(names, counts, spills, slots)


def _packed(trees: Trees) -> dict[str, NDArray[Any]]:
    """Splits are numbered: trees share most of theirs. Leaves are in steps of a part of their
    spread, far below what a prediction is wrong by."""
    step = float(trees.leaf.std()) / LEAF_STEPS or 1.0
    pairs = np.stack([trees.feature.ravel(), trees.threshold.ravel()], axis=1)
    splits, number = np.unique(pairs, axis=0, return_inverse=True)
    return {
        "base": np.array(trees.base),
        "feature": splits[:, 0].astype(np.uint8),
        "threshold": splits[:, 1].astype(np.float32),
        "split": number.reshape(trees.feature.shape).astype(np.uint16),
        "leaf": np.rint(trees.leaf / step).astype(np.int16),
        "step": np.array(step),
    }


def _unpacked(file: Mapping[str, NDArray[Any]], name: str) -> Trees:
    feature, threshold = file[f"{name} feature"], file[f"{name} threshold"]
    split, leaf = file[f"{name} split"], file[f"{name} leaf"]
    if split.shape != (len(leaf), leaf.shape[1] - 1) or split.max(initial=0) >= len(feature):
        raise ValueError(f"the arrays of {name} do not fit together")
    return Trees(
        float(file[f"{name} base"]),
        feature.astype(np.int64)[split],
        threshold.astype(np.float64)[split],
        leaf * float(file[f"{name} step"]),
    )
