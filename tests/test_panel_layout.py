"""Packed weights: where a panel has what belongs to its groups."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.cpu.panels.layout import PANEL, WeightLayout
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.costmodel.analytic import AnalyticModel
from abqc.dialects.formats import parse_scheme, quantize_weight
from abqc.dialects.scale_types import stored_scales

K, N = 300, 40  # the last group and the last panel are short
INT8 = next(s for s in CpuTarget(cost_model=AnalyticModel()).strategies if s.name == "int8")


def layout_of(weight: str) -> tuple[MatmulSpec, WeightLayout]:
    spec = MatmulSpec(N, K, parse_scheme(weight), parse_scheme("a8"))
    return spec, INT8.weight_layout(spec)


# Blocks of one, two and four groups, the last one short, or none.
BLOCKS = {
    "w4:g128": 1,
    "w8:g64": 2,
    "w8:g30:asym": 4,
    "w8:g160:asym": 0,
    "wmxfp4": 4,
    "w4:channel": 0,
}


@pytest.mark.parametrize("weight", BLOCKS)
def test_parts_are_where_the_layout_says(weight: str) -> None:
    spec, layout = layout_of(weight)
    assert layout.block_groups == BLOCKS[weight]
    assert spec.weight is not None
    weights = np.random.default_rng(0).standard_normal((N, K), dtype=np.float32)
    packed = quantize_weight(weights, spec.weight)
    blob = INT8.pack_weight(spec, packed)
    size = layout.reduction.group_size
    stored = layout.value.numbers(layout.value.encode(packed.codes)).astype(np.int32)
    scales = stored_scales(packed.scale, layout.scale, packed.tensor_scale)
    seen = np.zeros(layout.panel_bytes, bool)

    def part(panel: int, at: int, count: int, dtype: str, expected: np.ndarray) -> None:
        size = PANEL * np.dtype(dtype).itemsize
        seen[at : at + size] = True
        begin = panel * layout.panel_bytes + at
        assert np.array_equal(blob[begin : begin + size].view(dtype)[:count], expected)

    for panel in range(-(-N // PANEL)):
        rows = slice(panel * PANEL, min((panel + 1) * PANEL, N))
        count = rows.stop - rows.start
        for g in range(layout.reduction.n_groups):
            part(panel, layout.scales_at(g), count, scales.dtype.str, scales[rows, g])
            if layout.has_sums:
                sums = stored[rows, g * size : (g + 1) * size].sum(axis=1)
                part(panel, layout.sums_at(g), count, f"i{layout.sum_bits // 8}", sums)
            if packed.zero is not None:
                part(panel, layout.zeros_at(g), count, "u1", packed.zero[rows, g])
            units = -(-min(size, K - g * size) // layout.reduction.unit)
            at = layout.codes_at(g)
            assert at % 64 == 0 and not seen[at : at + units * layout.unit_bytes].any()
