"""The analytic model of GPUs: limits, bounds, and choices that must hold. No absolute times."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from abqc.codegen.gpu import arch as archs
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.gpu_analytic import GpuAnalyticModel, Occupancy
from abqc.costmodel.hardware import GPUS, gpu_for, gpu_named
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import parse_scheme
from abqc.errors import CompileError
from abqc.runtime.gpu_limits import limits_of

INT8 = Int8Matmul()
BOTH = pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])


def tile(
    strategy: str, m: int, n: int, k: int, p: int, q: int, *, arch: str = "sm_80",
    block: tuple[int, int] = (128, 128), stages: int = 3, split: int = 1,
) -> KernelFeatures:  # fmt: skip
    """An MMA kernel of four warps, as a strategy would describe it."""
    block_m, block_n = block
    block_k = 256 if strategy == "planes" else 128
    blocks_m, blocks_n = math.ceil(m / block_m), math.ceil(n / block_n)
    row_bits = {"planes": q, "int8": 8, "f16": 16}[strategy]
    stage = block_m * block_k * row_bits // 8 + block_n * block_k * p // 8
    operations = 2.0 * blocks_m * block_m * blocks_n * block_n * k
    unit = {"planes": "b1_ops", "int8": "s8_ops", "f16": "f16_ops"}[strategy]
    decode = 0.0 if strategy == "planes" or p == 8 else 1.0 * blocks_m * n * k
    return KernelFeatures(
        arch=arch, strategy=strategy, schedule=f"{block_m}x{block_n}", kind="tile",
        m=m, n=n, k=k, weight_bits=p, activation_bits=q,
        block_m=block_m, block_n=block_n, block_k=block_k,
        blocks=blocks_m * blocks_n * split, threads=128,
        weight_bytes=n * k * p // 8 + 2 * n, activation_bytes=m * k * row_bits // 8,
        written_bytes=4 * m * n, bytes_in_flight=(stages - 1) * stage,
        alu_ops=decode, stages=stages, split=split, shared_bytes=stages * stage,
        workspace_bytes=4 * split * m * n if split > 1 else 0, launches=1 + (split > 1),
        **{unit: operations * (p * q if strategy == "planes" else 1)},
    )  # fmt: skip


def rows(m: int, n: int, k: int, p: int, *, arch: str = "sm_80", split: int = 1) -> KernelFeatures:
    """A CUDA-core kernel: four warps, two columns each, four loads of 16 bytes a thread ahead."""
    return KernelFeatures(
        arch=arch, strategy="int8", schedule=f"rows{m}", kind="rows",
        m=m, n=n, k=k, weight_bits=p, activation_bits=8, block_m=m, block_n=8, block_k=512,
        blocks=math.ceil(n / 8) * split, threads=128, weight_bytes=n * k * p // 8 + 2 * n,
        activation_bytes=m * k, written_bytes=4 * m * n, bytes_in_flight=128 * 64,
        dp4a_ops=2.0 * m * n * k, alu_ops=0.5 * n * k, split=split, launches=1 + (split > 1),
        workspace_bytes=4 * split * m * n if split > 1 else 0,
    )  # fmt: skip


def model(arch: str) -> GpuAnalyticModel:
    return GpuAnalyticModel(gpu_for(arch))


def best(arch: str, *candidates: KernelFeatures) -> KernelFeatures:
    return model(arch).rank([replace(c, arch=arch) for c in candidates])[0]


def test_every_target_has_a_gpu_with_its_limits():
    for arch in archs.ALL:
        gpu, limits = gpu_for(arch.name), limits_of(arch.capability)
        assert {name: getattr(gpu, name) for name in vars(limits)} == vars(limits)
        assert ("b1" in gpu.rates) == arch.has("b1.m16n8k256")


def test_sustained_rates_do_not_exceed_datasheets():
    for gpu in GPUS:
        assert gpu.dram_bandwidth < gpu.dram_datasheet
        assert gpu.dram_bandwidth < gpu.l2_bandwidth
        assert gpu.l2_latency < gpu.dram_latency
        assert gpu.graph_launch_seconds < gpu.launch_seconds


def test_the_device_name_picks_among_gpus_of_a_target():
    assert gpu_for("sm_90a", "NVIDIA H100 80GB HBM3").name == "H100"
    assert gpu_for("sm_90a", "NVIDIA H200").name == "H200"
    assert gpu_for("sm_89", "NVIDIA L40S").name == gpu_for("sm_89").name
    with pytest.raises(CompileError, match="sm_42"):
        gpu_for("sm_42")


@BOTH
@pytest.mark.parametrize("p", [1, 2, 4])
def test_one_row_takes_cuda_cores(arch, p):
    tiles = [tile("int8", 1, 4096, 4096, p, 8, block=(16, n), stages=4) for n in (64, 128)]
    assert best(arch, rows(1, 4096, 4096, p), *tiles).kind == "rows"


@BOTH
def test_many_rows_take_large_tiles(arch):
    small = tile("int8", 4096, 4096, 4096, 4, 8, block=(16, 64))
    large = tile("int8", 4096, 4096, 4096, 4, 8)
    assert best(arch, small, large) == replace(large, arch=arch)


@BOTH
def test_few_rows_take_small_tiles(arch):
    small = tile("int8", 16, 4096, 4096, 4, 8, block=(16, 64), stages=4)
    large = tile("int8", 16, 4096, 4096, 4, 8)
    assert best(arch, small, large) == replace(small, arch=arch)


def flip(arch: str) -> int:
    """The largest p * q at which planes beat int8 over many rows."""
    pairs = [(p, q) for p in range(1, 5) for q in range(1, 9)]
    size = (4096, 8192, 8192)
    return max(
        p * q
        for p, q in pairs
        if best(arch, tile("planes", *size, p, q), tile("int8", *size, p, q)).strategy == "planes"
    )


def test_planes_and_int8_flip_where_rates_say():
    """b1 does 8 times the operations of s8, on an A100 and, by mma.sync, on an H200."""
    assert 6 <= flip("sm_80") <= 9
    assert 6 <= flip("sm_90a") <= 9


@BOTH
def test_split_k_where_blocks_are_fewer_than_multiprocessors(arch):
    def pair(n: int) -> list[KernelFeatures]:
        return [
            tile("int8", 16, n, 16384, 4, 8, block=(16, 128), stages=4, split=s) for s in (1, 8)
        ]

    assert best(arch, *pair(1024)).split == 8
    assert best(arch, *pair(65536)).split == 1


@BOTH
def test_one_row_of_a_large_weight_runs_at_memory_speed(arch):
    f = rows(1, 28672, 8192, 4, arch=arch)
    estimate = model(arch).estimate(f)
    assert estimate.bound == "DRAM-bound"
    assert estimate.seconds < 1.6 * f.weight_bytes / gpu_for(arch).dram_bandwidth


@BOTH
def test_large_products_are_bound_by_tensor_cores(arch):
    f = tile("int8", 8192, 8192, 8192, 8, 8, arch=arch, block=(256, 256), stages=2)
    assert "tensor-core" in model(arch).estimate(replace(f, threads=512)).bound


def test_few_bytes_in_flight_are_bound_by_latency():
    f = replace(rows(1, 28672, 8192, 4), bytes_in_flight=128)
    assert model("sm_80").estimate(f).bound == "latency-bound"


def test_tiny_work_is_bound_by_its_launch():
    assert model("sm_80").estimate(rows(1, 64, 64, 4)).bound == "launch-bound"
    stream = GpuAnalyticModel(gpu_for("sm_80"), in_graph=False)
    assert stream.predict(rows(1, 64, 64, 4)) > model("sm_80").predict(rows(1, 64, 64, 4))


@pytest.mark.parametrize("strategy", ["planes", "int8", "f16"])
def test_cost_grows_with_every_dimension(strategy):
    base = tile(strategy, 1024, 4096, 4096, 2, 4)
    seconds = model("sm_80").predict(base)
    for m, n, k in ((2048, 4096, 4096), (1024, 8192, 4096), (1024, 4096, 8192)):
        assert model("sm_80").predict(tile(strategy, m, n, k, 2, 4)) > seconds


@BOTH
def test_groups_of_rows_of_blocks_save_weights(arch):
    """28672 columns are many waves wide: in rows, the weights come once for each row of blocks."""
    rows = tile("int8", 4096, 28672, 8192, 8, 8, arch=arch)
    groups = replace(rows, group_m=16)
    dram = [model(arch).estimate(f).resources["DRAM"] for f in (rows, groups)]
    assert 4 * dram[1] < dram[0]
    assert best(arch, rows, groups).group_m == 16


@BOTH
def test_the_order_of_blocks_is_nothing_where_all_stays_in_l2(arch):
    f = tile("int8", 256, 4096, 4096, 4, 8, arch=arch)
    assert model(arch).predict(f) == model(arch).predict(replace(f, group_m=16))


def test_one_block_too_many_costs_a_wave():
    """The tail effect: 108 multiprocessors, one block on each."""
    base = replace(tile("int8", 128, 108 * 128, 8192, 8, 8), shared_bytes=120 << 10)
    more = replace(tile("int8", 128, 109 * 128, 8192, 8, 8), shared_bytes=120 << 10)
    assert model("sm_80").predict(more) > 1.5 * model("sm_80").predict(base)


@pytest.mark.parametrize(
    ("changes", "blocks", "limit"),
    [
        ({"threads": 1024, "registers": 32}, 2, "threads"),
        ({"threads": 128, "registers": 255}, 2, "registers"),
        ({"threads": 128, "registers": 32, "shared_bytes": 80 << 10}, 2, "shared memory"),
        ({"threads": 32, "registers": 32, "shared_bytes": 0}, 32, "blocks"),
    ],
)
def test_occupancy(changes, blocks, limit):
    f = replace(tile("int8", 128, 128, 128, 8, 8), shared_bytes=0)
    occupancy = Occupancy.of(replace(f, **changes), gpu_named("A100"))
    assert (occupancy.blocks, occupancy.limit) == (blocks, limit)


def test_what_cannot_run_is_an_error():
    with pytest.raises(CompileError, match="shared memory"):
        model("sm_86").predict(
            replace(tile("int8", 128, 128, 128, 8, 8, arch="sm_86"), shared_bytes=120 << 10)
        )
    with pytest.raises(CompileError, match="no native b1"):
        model("sm_100a").predict(tile("planes", 128, 128, 256, 1, 1, arch="sm_100a"))
    with pytest.raises(CompileError, match=r"sm_80.*sm_90a"):
        model("sm_80").predict(rows(1, 64, 64, 4, arch="sm_90a"))


def test_explanation_names_schedules_bounds_and_the_rest():
    f = [tile("int8", 4096, 4096, 4096, 4, 8, block=(b, 128)) for b in (16, 32, 64, 128, 256, 512)]
    text = model("sm_80").explain([replace(c, shared_bytes=0, registers=64) for c in f])
    assert text.count("-bound") == 4 and text.endswith("2 slower ones")
    assert "int8 128x128: " in text


def test_less_work_wins_where_memory_decides():
    """Kernels of 1 and of 4 rows read the same bytes."""
    one = rows(1, 28672, 8192, 4)
    four = replace(one, schedule="rows4", block_m=4, dp4a_ops=4 * one.dp4a_ops)
    assert best("sm_80", four, one) == one


def test_status():
    assert model("sm_90a").status == "analytic only"


def test_sharing_tiles_pays_where_a_wave_is_partly_filled():
    """Of 132 blocks that stay: 12 tiles more than a wave, a whole wave, and 16 tiles in all."""
    spec = MatmulSpec(4096, 4096, parse_scheme("w8:channel"), parse_scheme("a8"))
    stay = Schedule("wgmma", 128, 256, 128, 1, 8, 1, 4, 1, 132)
    seconds = [
        [
            model("sm_90a").predict(
                replace(INT8.features(replace(spec, n=n), schedule, m), arch="sm_90a")
            )
            for schedule in (stay, replace(stay, split=2), replace(stay, split=4))
        ]
        for m, n in ((1152, 4096), (512, 33 * 256), (128, 4096))
    ]
    (whole, shared, more), (full, *as_full), (few, *shared_few) = seconds
    assert shared == more < 0.8 * whole
    assert as_full == [full, full]
    assert max(shared_few) < few
