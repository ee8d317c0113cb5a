"""What targets answer to the passes."""

from __future__ import annotations

import pytest
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.cpu.schedule import ROW_RANGES
from abqc.codegen.isa import by_name
from abqc.codegen.strategy import Choice
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cpu_plans import matmul_features
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import Sample
from abqc.dialects.formats import parse_scheme
from abqc.dialects.matmul_spec import MatmulSpec
from abqc.errors import RecipeError


def matmul(n: int, weight: str | None = "w4:g128", activation: str | None = "a8", k: int = 576):
    formats = [parse_scheme(text) if text else None for text in (weight, activation)]
    return MatmulSpec(n, k, *formats)


def choose(target, specs: list[MatmulSpec]) -> list[Choice]:
    return target.choose(specs, nodes=[f"node of {spec.n}" for spec in specs])


def gpu(name: str) -> CudaTarget:
    target = CudaTarget.named(name)
    assert target is not None
    return target


@pytest.mark.parametrize("name", ["sm_90a", "cuda"])
def test_matmuls_of_one_activation_share_its_layout(name: str) -> None:
    """Queries, keys and values of a small decoder: one launch that packs, not two."""
    target = gpu(name)
    requests = [matmul(576), matmul(192), matmul(192)]
    together = [choice.strategy.name for choice in choose(target, requests)]
    assert len(set(together)) == 1
    alone = [choose(target, [r])[0].strategy.name for r in requests]
    changed = [a != b for a, b in zip(together, alone, strict=True)]
    for choice, differs in zip(choose(target, requests), changed, strict=True):
        assert choice.shares_layout == differs


def test_a_layout_of_its_own_where_it_pays() -> None:
    """Large binary weights beside a large 8-bit matrix: the launch is nothing to either."""
    target = gpu("sm_80")
    requests = [matmul(28672, "w1:channel", "a1", 8192), matmul(28672, "w8:channel", "a1", 8192)]
    names = [choice.strategy.name for choice in choose(target, requests)]
    assert names == [choose(target, [r])[0].strategy.name for r in requests]


@pytest.mark.parametrize("target", [CpuTarget(), gpu("sm_90a")], ids=["cpu", "gpu"])
def test_a_choice_for_each_in_order(target) -> None:
    requests = [matmul(64), matmul(100), matmul(8, "w2"), matmul(32, None, None)]
    for r in requests:
        (choice,) = choose(target, [r])
        assert (choice.spec.n, choice.spec.k) == (r.n, r.k)
    choices = choose(target, requests[:3])
    assert [choice.spec.n for choice in choices] == [64, 100, 8]


def test_what_no_kernel_computes_names_its_node() -> None:
    with pytest.raises(RecipeError, match="no kernel computes"):
        choose(gpu("sm_90a"), [matmul(64), matmul(100, "w4:g128", None), matmul(64, None, "a8")])


def tuned(isa: str, fastest: str) -> AnalyticModel:
    """A model fitted where `fastest` takes a hundredth of what is predicted, with the kernels of
    one instruction set."""
    model = AnalyticModel()
    samples = []
    of_isa = by_name(isa)
    for strategy in (Int8Strategy(), BitplaneStrategy()):
        for size in (256, 512, 1024):
            spec = matmul(size, k=size)
            for rows in ROW_RANGES:
                for schedule in strategy.schedules(spec, rows, of_isa):
                    for working_set in (0, 1 << 26):
                        f = matmul_features(
                            strategy.name,
                            spec,
                            schedule,
                            rows.typical,
                            of_isa,
                            weight_bytes=size * size // 2,
                            working_set=working_set,
                        )
                        factor = 0.01 if strategy.name == fastest else 1.0
                        seconds = factor * model.estimate(f).seconds
                        samples.append(Sample(f, seconds, "a CPU", date="2026-11-28"))
    model.fit(samples)
    return model


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
@pytest.mark.parametrize("fastest", ["int8", "bitplane"])
def test_choices_ask_what_was_measured_of_the_instruction_set(isa: str, fastest: str) -> None:
    """A CPU without AVX-512 is tuned with the kernels that it runs."""
    target = CpuTarget(cost_model=tuned(isa, fastest))
    assert target.judged_isa == isa
    assert target.cost_model_status.endswith(f"for {isa} on 1 thread")
    (choice,) = target.choose([matmul(512, k=512)], nodes=["a"], working_set=1 << 26)
    assert choice.strategy.name == fastest


def test_untuned_choices_are_judged_by_the_best_instruction_set() -> None:
    target = CpuTarget(cost_model=AnalyticModel())
    assert target.cost_model_status == "analytic only, for avx512 on 1 thread"


def test_weights_of_a_large_model_are_cold() -> None:
    """Where one row waits for its weights, long prompts decide."""
    target = CpuTarget(cost_model=AnalyticModel())
    requests = [matmul(4096, "w2:g128", "a2", 4096)]
    warm, cold = (
        target.choose(requests, nodes=["a"], working_set=size)[0] for size in (0, 1 << 30)
    )
    assert "DRAM-bound" in bounds(cold) and "DRAM-bound" not in bounds(warm)


def bounds(choice: Choice) -> set[str]:
    return {each.bound for ranking in choice.rankings for each in ranking.candidates}
