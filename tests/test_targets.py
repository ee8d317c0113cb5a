"""What targets answer to the passes."""

from __future__ import annotations

import pytest
from abqc.codegen.strategy import Choice
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cuda import CudaTarget
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
        assert choice.why.endswith("shares its activations' layout with others") == differs


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
