"""How a CPU strategy would do a matmul: a schedule for every range of rows, by the cost model.

The host launches one grid for all instruction sets, so that a schedule's grid is chosen for one of
them (`judged`), and tiles for each. A kernel more is compiled only where it pays: `SHARED`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from abqc.costmodel.interface import CostModel, MatmulFeatures
from abqc.costmodel.ranking import Prediction, Ranking

from ..cpu.schedule import (
    ROW_RANGES,
    CpuSchedule,
    CpuStrategy,
    KernelSchedule,
    RangeSchedule,
    RowRange,
    merged,
)
from ..isa import Isa
from ..strategy import MatmulSpec

SETTLED = 1.04  # times the best one's time: not told apart from it, so that the default is taken
SHARED = 1.01  # likewise: not worth a kernel more
SHOWN = 4  # candidates of a ranking, which is in the manifest of every product


@dataclass(frozen=True)
class Candidates:
    """The schedules of one strategy for a range of rows, and what they cost at its typical one."""

    rows: RowRange
    predictions: Mapping[CpuSchedule, Prediction]

    def seconds(self, schedule: CpuSchedule) -> float:
        return self.predictions[schedule].seconds

    @property
    def settled(self) -> CpuSchedule:
        """The default, which is the first, unless another one is clearly better."""
        default, best = next(iter(self.predictions)), min(self.predictions, key=self.seconds)
        return default if self.seconds(default) <= SETTLED * self.seconds(best) else best


@dataclass(frozen=True)
class Plan:
    """What was chosen of a strategy, and of what. `typical` are seconds by rows."""

    strategy: CpuStrategy
    schedules: tuple[RangeSchedule, ...]
    chosen: tuple[CpuSchedule, ...]
    candidates: tuple[Candidates, ...]

    @property
    def score(self) -> float:
        """The product of the times: no number of rows outweighs another."""
        pairs = zip(self.candidates, self.chosen, strict=True)
        return prod(of_rows.seconds(schedule) for of_rows, schedule in pairs)


@dataclass(frozen=True)
class Planner:
    """Makes plans. `isas` are those that all kernels have, of the target; `judged` is one."""

    model: CostModel[MatmulFeatures]
    isas: tuple[Isa, ...]
    judged: Isa
    threads: int

    def plan(self, strategy: CpuStrategy, spec: MatmulSpec, working_set: int) -> Plan:
        """The schedules of a strategy that are the cheapest together."""
        candidates = tuple(
            self._candidates(strategy, spec, rows, working_set) for rows in ROW_RANGES
        )
        chosen = tuple(_chosen(candidates))
        schedules = (
            RangeSchedule(
                rows.first,
                rows.last,
                self._on_all(strategy, spec, rows, schedule, working_set),
            )
            for rows, schedule in zip(ROW_RANGES, chosen, strict=True)
        )
        return Plan(strategy, merged(schedules), chosen, candidates)

    def seconds(self, plan: Plan, spec: MatmulSpec, m: int, working_set: int) -> float:
        """What `m` rows take, packing included."""
        schedule = next(s for s in plan.schedules if s.last is None or m <= s.last)
        on_judged = schedule.schedule.on(self.judged)
        features = self._features(plan.strategy, spec, on_judged, m, self.judged, working_set)
        return self.model.predict(features)

    def _candidates(
        self, strategy: CpuStrategy, spec: MatmulSpec, rows: RowRange, working_set: int
    ) -> Candidates:
        """All that there are."""
        schedules = strategy.schedules(spec, rows, self.judged)
        return self._predicted(strategy, spec, rows, schedules, self.judged, working_set)

    def _predicted(
        self,
        strategy: CpuStrategy,
        spec: MatmulSpec,
        rows: RowRange,
        schedules: Sequence[CpuSchedule],
        isa: Isa,
        working_set: int,
    ) -> Candidates:
        features = [
            self._features(strategy, spec, schedule, rows.typical, isa, working_set)
            for schedule in schedules
        ]
        by_name = {each.candidate: each for each in self.model.predictions(features)}
        labels = [f"{strategy.name} {schedule.name}" for schedule in schedules]
        predictions = (by_name[each] for each in labels)
        return Candidates(rows, dict(zip(schedules, predictions, strict=True)))

    def _on_all(
        self,
        strategy: CpuStrategy,
        spec: MatmulSpec,
        rows: RowRange,
        chosen: CpuSchedule,
        working_set: int,
    ) -> KernelSchedule:
        """The best tile of each instruction set for the grid of `chosen`."""
        by_width = []
        for isa in self.isas:
            schedule = chosen
            if isa is not self.judged:
                fitting = _with_grid(strategy.schedules(spec, rows, isa), chosen)
                schedule = self._predicted(strategy, spec, rows, fitting, isa, working_set).settled
            by_width.append((isa.vector_bits, schedule))
        return KernelSchedule(tuple(by_width))

    def _features(
        self,
        strategy: CpuStrategy,
        spec: MatmulSpec,
        schedule: CpuSchedule,
        m: int,
        isa: Isa,
        working_set: int,
    ) -> MatmulFeatures:
        return matmul_features(
            strategy.name,
            spec,
            schedule,
            m,
            isa,
            weight_bytes=spec.n * spec.k * spec.weight_bits // 8,
            working_set=working_set,
            threads=self.threads,
        )


def matmul_features(
    strategy: str,
    spec: MatmulSpec,
    schedule: CpuSchedule,
    m: int,
    isa: Isa,
    *,
    weight_bytes: int,
    working_set: int,
    threads: int = 1,
) -> MatmulFeatures:
    """What a cost model is told of `m` rows."""
    return MatmulFeatures(
        strategy=strategy,
        m=m,
        n=spec.n,
        k=spec.k,
        weight_bits=spec.weight_bits,
        activation_bits=spec.activation.bits if spec.activation else 32,
        weight_bytes=weight_bytes,
        groups=spec.weight.n_groups(spec.k) if spec.weight else 1,
        isa=isa.name,
        threads=threads,
        working_set=working_set,
        schedule=schedule.name,
        tile_m=schedule.tile_m,
        tile_n=schedule.tile_n,
        chains=schedule.chains,
        block_m=schedule.block_m,
        block_n=schedule.block_n,
        prefetch=schedule.prefetch,
        decode_once=schedule.decode_once,
        block_k=schedule.block_k,
        by_columns=schedule.by_columns,
        indexed=spec.weight is not None and spec.weight.format.indexed,
    )


def rankings(plans: Sequence[Plan], best: Plan) -> tuple[Ranking, ...]:
    """What there was to choose from, by rows: the chosen one, the best of each strategy, and those
    that come next."""
    out = []
    for at, rows in enumerate(ROW_RANGES):
        of_rows = [plan.candidates[at] for plan in plans]
        every = sorted(
            (each for candidates in of_rows for each in candidates.predictions.values()),
            key=lambda each: each.seconds,
        )
        chosen = f"{best.strategy.name} {best.chosen[at].name}"
        first: dict[str, Prediction] = {}
        for each in every:
            first.setdefault(each.strategy, each)
        kept = [each for each in every if each.candidate == chosen or each in first.values()]
        kept += [each for each in every if each not in kept][: max(0, SHOWN - len(kept))]
        kept.sort(key=lambda each: each.seconds)
        out.append(Ranking(rows.typical, tuple(kept), chosen, len(every) - len(kept)))
    return tuple(out)


def _chosen(candidates: Sequence[Candidates]) -> list[CpuSchedule]:
    """A schedule for each range of rows; few and many share one, where it is good for both."""
    one, few, many = candidates
    of_few, of_many = few.settled, many.settled
    if of_few in many.predictions and many.seconds(of_few) <= SHARED * many.seconds(of_many):
        of_many = of_few
    elif of_many in few.predictions and few.seconds(of_many) <= SHARED * few.seconds(of_few):
        of_few = of_many
    return [one.settled, of_few, of_many]


def _with_grid(schedules: Sequence[CpuSchedule], chosen: CpuSchedule) -> tuple[CpuSchedule, ...]:
    """Those whose tiles fill the blocks of `chosen`, with its grid; each once."""
    block_m, block_n, by_columns = chosen.grid
    fitting = [schedule for schedule in schedules if block_n % schedule.tile_n == 0]
    grids: Mapping[str, int] = {"block_m": block_m, "block_n": block_n}
    return tuple(
        dict.fromkeys(
            replace(schedule, **grids, by_columns=by_columns)  # type: ignore[arg-type]
            for schedule in fitting
        )
    )
