"""GPU targets as passes see them: which strategy they choose, and what they refuse."""

from __future__ import annotations

import pytest
from abqc.codegen.gpu.arch import ALL
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.strategy import GpuStrategy
from abqc.codegen.gpu.planes.strategy import Planes
from abqc.codegen.strategy import Choice
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel.hardware_gpu import GPUS, Gpu
from abqc.dialects.formats import Half, parse_scheme
from abqc.dialects.matmul_spec import MatmulSpec
from abqc.errors import RecipeError


def choose(target: str, half: Half) -> Choice:
    """For a matmul of 4-bit weights and float activations."""
    named = CudaTarget.named(target)
    assert named is not None
    spec = MatmulSpec(64, 256, parse_scheme("w4"), None, half=half)
    (choice,) = named.choose([spec], nodes=["fc"])
    return choice


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_float_activations_are_rounded_as_the_recipe_says(half: Half) -> None:
    choice = choose("sm_80,sm_90a", half)
    assert choice.float_type == half
    kernels = [v.kernel.name for v in choice.strategy.matmul_kernels(choice.spec)]
    assert all(f"_{half}_" in name for name in kernels)
    pack = choice.strategy.pack_kernel(choice.spec)
    assert pack is not None and f"_{half}_" in pack.name


def test_a_strategy_without_a_schedule_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As planes of groups that give too much code in every schedule."""
    monkeypatch.setattr(Planes, "schedules", lambda *arguments: [])
    target = CudaTarget.named("sm_80")
    assert target is not None
    formats = parse_scheme("w1:channel"), parse_scheme("a1")
    (choice,) = target.choose([MatmulSpec(40, 800, *formats)], nodes=["fc"])
    assert choice.strategy.name == "int8"
    planes = next(s for s in target.strategies if s.name == "planes")
    assert planes.unsupported(choice.spec) == (
        "strategy 'planes' has no schedule for these formats on sm_80"
    )


def test_targets_without_bf16_refuse_it_and_name_the_node() -> None:
    assert choose("sm_75", "f16").float_type == "f16"
    with pytest.raises(RecipeError, match=r"needs a bf16 mma\.sync, not in sm_75.*node 'fc'"):
        choose("sm_75", "bf16")


@pytest.mark.parametrize("strategy", [Int8Matmul(), Planes()])
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_few_blocks_may_share_k_on_every_gpu(strategy: GpuStrategy, gpu: Gpu) -> None:
    """One block for every multiprocessor: half of what it can have."""
    (arch,) = (arch for arch in ALL if arch.name == gpu.arch)
    formats = parse_scheme("w2"), parse_scheme("a2")
    spec = MatmulSpec(32 * 2 * gpu.sms, 4096, *formats)
    if strategy.unsupported(spec, arch) is not None:
        pytest.skip(f"{strategy.name} is not for {arch.name}")
    widest = [s for s in strategy.schedules(spec, arch) if s.block_n == 32]
    assert {s.split for s in widest} >= {1, 2}
