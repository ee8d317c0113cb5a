"""What targets answer to the passes."""

from __future__ import annotations

import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.formats import parse_scheme
from abqc.errors import RecipeError
from abqc.passes.pack_layouts import MatmulRequest


def request(n: int, weight: str | None = "w4:g128", activation: str | None = "a8", k: int = 576):
    return MatmulRequest(
        n,
        k,
        parse_scheme(weight) if weight else None,
        parse_scheme(activation) if activation else None,
        hadamard_block=0,
        scale_bits=16,
        half="f16",
        node=f"node of {n}",
    )


def gpu(name: str) -> CudaTarget:
    target = CudaTarget.named(name)
    assert target is not None
    return target


@pytest.mark.parametrize("name", ["sm_90a", "cuda"])
def test_matmuls_of_one_activation_share_its_layout(name: str) -> None:
    """Queries, keys and values of a small decoder: one launch that packs, not two."""
    target = gpu(name)
    requests = [request(576), request(192), request(192)]
    together = [choice.strategy.name for choice in target.choose(requests)]
    assert len(set(together)) == 1
    alone = [target.choose([r])[0].strategy.name for r in requests]
    changed = [a != b for a, b in zip(together, alone, strict=True)]
    for choice, differs in zip(target.choose(requests), changed, strict=True):
        assert choice.why.endswith("shares its activations' layout with others") == differs


def test_a_layout_of_its_own_where_it_pays() -> None:
    """Large binary weights beside a large 8-bit matrix: the launch is nothing to either."""
    target = gpu("sm_80")
    requests = [request(28672, "w1:channel", "a1", 8192), request(28672, "w8:channel", "a1", 8192)]
    names = [choice.strategy.name for choice in target.choose(requests)]
    assert names == [target.choose([r])[0].strategy.name for r in requests]


@pytest.mark.parametrize("target", [CpuTarget(), gpu("sm_90a")], ids=["cpu", "gpu"])
def test_a_choice_for_each_in_order(target) -> None:
    requests = [request(64), request(100), request(8, "w2"), request(32, None, None)]
    for r in requests:
        (choice,) = target.choose([r])
        assert (choice.spec.n, choice.spec.k) == (r.n, r.k)
    choices = target.choose(requests[:3])
    assert [choice.spec.n for choice in choices] == [64, 100, 8]


def test_what_no_kernel_computes_names_its_node() -> None:
    with pytest.raises(RecipeError, match="no kernel computes"):
        gpu("sm_90a").choose([request(64), request(100, "w4:g128", None), request(64, None, "a8")])
