"""Packed weights: where a panel has the scales and sums of its groups."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.cpu.panels.layout import PANEL, WeightLayout
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.tune_cpu import random_weight
from abqc.costmodel.analytic import AnalyticModel
from abqc.dialects.formats import parse_scheme

K, N = 300, 40  # the last group and the last panel are short
INT8 = next(s for s in CpuTarget(cost_model=AnalyticModel()).strategies if s.name == "int8")


def layout_of(weight: str) -> tuple[MatmulSpec, WeightLayout]:
    spec = MatmulSpec(N, K, parse_scheme(weight), parse_scheme("a8"))
    return spec, INT8.weight_layout(spec)


@pytest.mark.parametrize("weight", ["w4:g128", "w8:g128", "w3:g160", "w4:g128:asym", "w4:g32"])
def test_scales_and_sums_where_the_layout_says(weight: str) -> None:
    spec, layout = layout_of(weight)
    packed = random_weight(spec)
    blob = INT8.pack_weight(spec, packed)
    groups = range(layout.reduction.n_groups)
    size = layout.reduction.group_size
    stored = layout.value.numbers(layout.value.encode(packed.codes)).astype(np.int32)
    for panel in range(-(-N // PANEL)):
        rows = slice(panel * PANEL, (panel + 1) * PANEL)
        for g in groups:
            start = panel * layout.panel_bytes
            at = start + layout.scales_offset + g * layout.scale_pitch
            scales = blob[at : at + layout.scale_bytes].view(np.float16)
            expected = packed.scale[rows, g].astype(np.float16)
            assert np.array_equal(scales[: len(expected)], expected)
            at = start + layout.sums_offset + g * layout.sum_pitch
            sums = blob[at : at + layout.sum_bytes].view(f"i{layout.sum_bits // 8}")
            if layout.has_sums:
                of_group = stored[rows, g * size : (g + 1) * size].sum(axis=1)
                assert np.array_equal(sums[: len(of_group)], of_group)


def test_one_stream_where_heads_fill_vectors() -> None:
    """Scales and sums of 16 bits do; zero points of bytes, or no sums, do not."""
    weights = ("w4:g128", "w8:g128", "w4:g128:asym", "w4:g32")
    streams = {weight: layout_of(weight)[1].head_bytes for weight in weights}
    assert streams == {"w4:g128": 64, "w8:g128": 64, "w4:g128:asym": 0, "w4:g32": 0}
    assert layout_of("w4:channel")[1].head_bytes == 0
    layout = layout_of("w4:g128")[1]
    codes = 304  # whole units of 16
    assert layout.panel_bytes == codes * PANEL // 2 + 3 * 64
    assert (layout.segment_bytes, layout.scale_pitch) == (128 * PANEL // 2 + 64,) * 2
