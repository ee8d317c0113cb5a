"""What the analytic model chooses among the GPU strategies that there are, by their own account."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abqc.codegen.gpu.arch import by_name
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.planes.strategy import Planes
from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.gpu_analytic import GpuAnalyticModel
from abqc.costmodel.hardware import gpu_for
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import parse_scheme

ARCHS = pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])


def choose(arch: str, weight: str, activation: str, m: int, n: int = 8192) -> KernelFeatures:
    """The cheapest candidate for m rows, n columns and a K of 8192."""
    spec = MatmulSpec(n, 8192, parse_scheme(weight), parse_scheme(activation))
    able = [
        replace(strategy.features(spec, schedule, m), arch=arch)
        for strategy in (Int8Matmul(), Planes())
        for schedule in strategy.schedules(spec, by_name(arch))
        if schedule.max_rows is None or m <= schedule.max_rows
    ]
    return GpuAnalyticModel(gpu_for(arch)).rank(able)[0]


@ARCHS
def test_many_rows_flip_from_planes_to_int8(arch):
    few, many = (("w1", "a1"), ("w1", "a2"), ("w2", "a2")), (("w3", "a4"), ("w4", "a4"))
    for weight, activation in few:
        assert choose(arch, f"{weight}:channel", activation, 4096).strategy == "planes"
    for weight, activation in many:
        assert choose(arch, f"{weight}:channel", activation, 4096).strategy == "int8"


@ARCHS
def test_one_row_of_few_bytes_is_bound_by_memory(arch):
    gpu = gpu_for(arch)
    for weight in ("w2", "w4", "w8"):
        f = choose(arch, weight, "a8", 1, n=28672)
        assert GpuAnalyticModel(gpu).estimate(f).bound == "DRAM-bound"
        assert GpuAnalyticModel(gpu).predict(f) < 1.6 * f.weight_bytes / gpu.dram_bandwidth


@ARCHS
def test_tiles_grow_with_rows(arch):
    areas = [f.block_m * f.block_n for f in (choose(arch, "w8", "a8", m) for m in (16, 256, 4096))]
    assert areas == sorted(areas) and areas[0] < areas[-1]


@ARCHS
def test_a_narrow_matrix_keeps_the_gpu_busy(arch):
    """32 blocks of the usual width: narrower ones, or parts of K, for more multiprocessors."""
    assert choose(arch, "w4", "a8", 16, n=1024).blocks > gpu_for(arch).sms / 2
