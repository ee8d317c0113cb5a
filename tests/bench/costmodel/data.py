"""The data set that `compile_kernels.py` and `time_kernels.py` have written, joined."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import compile_kernels
import kernel_set
import numpy as np
import time_kernels
from abqc.costmodel import samples
from abqc.costmodel.interface import MatmulFeatures, Sample

# The roofline chooses better than what was learned of few timings.
UNLEARNED = frozenset({"look-up"})
SPREAD_LIMIT = 0.5  # of a sample's times: beyond it, even the least is doubtful

Key = tuple[str, str]  # a kernel's name and ISA


@dataclass(frozen=True)
class Timed:
    """A sample, its kernel, and the number of its task if that is held out. `seconds` are those of
    all its measurements, of which the sample has the median."""

    sample: Sample
    kernel: Key
    task: int | None
    default: bool
    seconds: tuple[float, ...] = ()

    @property
    def features(self) -> MatmulFeatures:
        assert isinstance(self.sample.features, MatmulFeatures)
        return self.sample.features


@dataclass(frozen=True)
class Data:
    """`kernels` are the lines of kernels.jsonl.gz by name and ISA."""

    kernels: Mapping[Key, Mapping[str, Any]]
    timed: Sequence[Timed]

    @property
    def training(self) -> list[Timed]:
        return [each for each in self.timed if each.task is None]

    @property
    def described(self) -> dict[Key, Mapping[str, Any]]:
        """The kernels that a model of kernels may learn from, timed or not: of no K that is held
        out."""
        held_out = {task.k for task, _, _ in kernel_set.HELD_OUT}
        return {key: row for key, row in self.kernels.items() if row["k"] not in held_out}

    @property
    def spaces(self) -> dict[int, list[Timed]]:
        """All candidates of each task that is held out, of all instruction sets."""
        found: dict[int, list[Timed]] = {}
        for each in self.timed:
            if each.task is not None:
                found.setdefault(each.task, []).append(each)
        return dict(sorted(found.items()))

    @property
    def tasks(self) -> dict[int, list[Timed]]:
        """Those of its own instruction set, the best."""
        return {number: [e for e in timed if own(e)] for number, timed in self.spaces.items()}


def load(folder: Path) -> Data:
    """Of the tasks that are held out, the candidates that there are today; of training, no
    strategies that are `UNLEARNED`."""
    every = (timing.candidate for _, timing in kernel_set.exhaustive())
    today = {(candidate.kernel.name, candidate.task.isa.name) for candidate in every}
    rows = compile_kernels.read(folder / "kernels.jsonl.gz")
    kernels = {(row["kernel"], row["isa"]): row for row in rows}
    lines: dict[tuple, list[dict[str, Any]]] = {}
    for line in time_kernels.read(folder / "samples.jsonl"):
        lines.setdefault(time_kernels.key(line), []).append(line)
    timed = []
    for again in lines.values():
        line = min(again, key=lambda line: line["spread"])
        every = tuple(line["seconds"] for line in again)
        sample = replace(samples.from_json(line), seconds=statistics.median(every))
        assert isinstance(sample.features, MatmulFeatures)
        learned = sample.spread <= SPREAD_LIMIT and sample.features.strategy not in UNLEARNED
        if line["task"] is None and not learned:
            continue
        kernel = line["kernel"], sample.features.isa
        if line["task"] is not None and kernel not in today:
            continue
        timed.append(Timed(sample, kernel, line["task"], line["default"], every))
    return Data(kernels, timed)


def own(timed: Timed) -> bool:
    """Whether it is of the instruction set of its task."""
    assert timed.task is not None
    task, _, _ = kernel_set.HELD_OUT[timed.task]
    return timed.features.isa == task.isa.name


def blind(timed: Timed) -> Timed:
    """The same where nobody looked at the kernel's operations."""
    features = replace(timed.features, operations=())
    return replace(timed, sample=replace(timed.sample, features=features))


def seconds(timed: Sequence[Timed]) -> np.ndarray:
    return np.array([each.sample.seconds for each in timed])
