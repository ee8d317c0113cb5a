"""What a CPU target plans for a matmul: schedules by rows and instruction sets, and its ranking."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.schedule import BASE_ISAS, MANY_ROWS
from abqc.codegen.isa import AVX2
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cpu_plans import Plan, Planner
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import MatmulFeatures
from abqc.costmodel.ranking import Prediction, Ranking
from abqc.dialects.formats import parse_scheme

SPEC = MatmulSpec(1000, 576, parse_scheme("w5:channel"), parse_scheme("a8"))


@dataclass
class Preferring:
    """A cost model to which all schedules are alike but those of one name."""

    name: str = ""
    rows: int = 0
    factor: float = 0.5
    asked: list[MatmulFeatures] = field(default_factory=list)

    def predictions(self, candidates: list[MatmulFeatures]) -> list[Prediction]:
        self.asked += candidates
        return [
            Prediction(
                f"{f.strategy} {f.schedule}",
                self.factor if (f.schedule, f.m) == (self.name, self.rows) else 1.0,
                "compute-bound",
                f.strategy,
            )
            for f in candidates
        ]


def plan(model: Preferring) -> Plan:
    planner = Planner(model, BASE_ISAS, BASE_ISAS[0], 1)  # type: ignore[arg-type]
    return planner.plan(Int8Strategy(), SPEC, 0)


def test_defaults_stay_where_nothing_is_better() -> None:
    strategy = Int8Strategy()
    ours, default = (
        strategy.matmul_kernels(SPEC, plan(Preferring()).schedules),
        (strategy.matmul_kernels(SPEC)),
    )
    assert [v.max_rows for v in ours] == [1, None]
    assert ours[1].kernel.name == default[1].kernel.name


@pytest.mark.parametrize(("factor", "taken"), [(0.5, True), (0.98, False)])
def test_a_schedule_is_taken_where_it_is_clearly_better(factor: float, taken: bool) -> None:
    other = Int8Strategy().schedules(SPEC, MANY_ROWS, BASE_ISAS[0])[-1]
    made = plan(Preferring(other.name, MANY_ROWS.typical, factor))
    assert (made.chosen[-1] == other) == taken
    assert [each.last for each in made.schedules] == ([1, 31, None] if taken else [1, None])
    assert (
        [first.last + 1 for first in made.schedules[:-1]]
        == [  # type: ignore[operator]
            second.first for second in made.schedules[1:]
        ]
    )


def test_all_instruction_sets_have_one_grid() -> None:
    """Chosen for one of them; tiles of the others fill its blocks."""
    for other in Int8Strategy().schedules(SPEC, MANY_ROWS, BASE_ISAS[0]):
        for each in plan(Preferring(other.name, MANY_ROWS.typical)).schedules:
            for isa in BASE_ISAS:
                schedule = each.schedule.on(isa)
                assert schedule.grid[:2] == each.schedule.block
                assert schedule.block_n % schedule.tile_n == 0


def test_a_target_of_one_instruction_set_is_planned_for_it() -> None:
    target = CpuTarget(isas=(AVX2,), cost_model=AnalyticModel())
    (choice,) = target.choose([SPEC], nodes=["a"])
    assert len(choice.variants) >= 2
    assert target.seconds(choice, 5) > target.seconds(choice, 1)


def test_rankings_say_what_is_used_and_what_was_rejected() -> None:
    (choice,) = CpuTarget(cost_model=AnalyticModel()).choose([SPEC], nodes=["a"])
    assert [ranking.rows for ranking in choice.rankings] == [1, 16, 128]
    for ranking in choice.rankings:
        seconds = [each.seconds for each in ranking.candidates]
        assert seconds == sorted(seconds) and ranking.more > 0
        assert ranking.chosen in {each.candidate for each in ranking.candidates}
        assert {each.strategy for each in ranking.candidates} == {"int8", "bitplane"}
        assert Ranking.of_manifest(ranking.as_manifest()).text == ranking.text
        assert ranking.text.startswith(f"M={ranking.rows}: {ranking.chosen}: ")
        assert "; bitplane " in ranking.text and ranking.text.endswith(" other schedules")
