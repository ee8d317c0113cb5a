"""Small graphs that real models and public bug reports came down to; `test_cases.py` runs them.

Each function of these modules that takes nothing returns the graphs of one kind by name. What its
docstring says went wrong with such graphs once.
"""

from __future__ import annotations

from . import control, indexing, odd_sizes, products, recurrent, reports, shapes, signals
from .graph import Graph

_FAMILIES = (
    shapes.attention_heads,
    shapes.reshape_merge_split,
    shapes.reshape_with_open_axis,
    shapes.gemm_between_reshapes,
    shapes.meshgrid,
    shapes.unsqueezed_range,
    shapes.computed_pads,
    products.two_matmuls,
    products.batched_matmul,
    products.shared_weight,
    products.scaled_features,
    recurrent.several_steps,
    recurrent.open_number_of_steps,
    recurrent.dynamic_quantize_lstm,
    control.squeeze_if,
    control.loop_carries,
    control.scan_sums,
    indexing.gather_elements,
    indexing.scatter_reductions,
    indexing.top_k,
    indexing.slices,
    signals.spectra,
    signals.pool_same,
    reports.pooling,
    reports.transposed_convolution,
    reports.quantized_weights,
    reports.equations,
    reports.colliding_names,
    odd_sizes.without_elements,
    odd_sizes.open_window,
    odd_sizes.open_channels,
    odd_sizes.open_heads,
    odd_sizes.bfloat16_weights,
    odd_sizes.weights_without_elements,
)


def all_graphs() -> dict[str, Graph]:
    """Every graph by name."""
    found: dict[str, Graph] = {}
    for family in _FAMILIES:
        made = family()
        assert not found.keys() & made.keys(), family.__name__
        found |= made
    return found
