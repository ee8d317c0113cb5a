"""Rows of a table that is a matmul's packed weight as well: a head tied to the embedding.

    kernel (i, w: memref<?xi8>, indices: memref<?xi64>, y: memref<?xf32>, count, rows,
            flag: memref<?xi32>, number)

The contract is that of `gather`; `w` is the weight as strategy `float`, `bf16`, `int8`,
`look-up` or `dequantize` packs it, so that the table is stored once. Row n is channel n; in a panel
of floats its values lie 16 elements apart, else pairs (bf16) or quads of them 64 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.align import align
from abqc.dialects.formats import FLOAT_BYTES
from abqc.dialects.scale_types import SCALE_BYTES

from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..codes.dense_units import value_pieces
from ..isa import Isa
from ..strategy import Kernel, MatmulSpec
from .bf16.dot import PAIR
from .bf16.rows import STEP, VALUE_BYTES
from .bf16.weights import PAIR_BYTES, Bf16Panels
from .float_products.dequantize import SIGN_BITS, weight_layout
from .float_products.matmul import Panels
from .float_products.tile import PANEL, load_floats
from .gather import ROWS
from .int8.layout import QUAD, value_quads
from .panels.layout import WeightLayout
from .panels.look_up import indexed_values
from .panels.scales import load_scales

VECTOR_BYTES = 64

# The row of channel `lane` of the panel at byte `base`, to `y` from element `target` on.
Decode = Callable[[Builder, Value, Value, Value, Value, Value], None]


def panel_gather_kernel(strategy: str, spec: MatmulSpec) -> Kernel | None:
    """Gathers rows of `spec`'s weight as `strategy` packs it; None for other layouts."""
    if strategy == "float":
        panels = Panels(spec.k, spec.weight_float)
        name, panel_bytes = f"gather_float_panels_{panels.name}", panels.panel_bytes
        decode: Decode = partial(_float_row, panels)
    elif strategy == "bf16" and spec.weight is None:
        pairs = Bf16Panels(align(spec.k, STEP))
        name, panel_bytes = f"gather_bf16_panels_k{spec.k}", pairs.panel_bytes
        decode = partial(_bf16_row, spec.k)
    elif strategy in ("int8", "look-up", "dequantize", "bf16") and not spec.trellis:
        layout = weight_layout(spec)
        assert spec.weight is not None
        name = (
            f"gather_{spec.weight.format.name}_panels_g{layout.reduction.group_size}"
            f"_{spec.scale_name}_k{spec.k}"
        )
        panel_bytes = layout.panel_bytes
        decode = partial(_quantized_row, layout)
    else:
        return None
    return Kernel(name, (ROWS,), partial(_emit, name, spec.k, panel_bytes, decode))


def _emit(name: str, columns: int, panel_bytes: int, decode: Decode, module: Any, isa: Isa) -> None:
    arguments = [buffer("i8"), buffer("i64"), buffer("f32"), INDEX, INDEX, buffer("i32"), INDEX]
    with function(module, isa, name, arguments) as opened:
        b, i, w, indices, y, count, rows, flag, number = opened
        first = i * ROWS
        with b.loop(first, b.min(first + ROWS, count)) as loop:
            row = b.to_index(b.load(indices, loop.i))
            target = loop.i * columns
            inside = (row >= 0) & (row < rows)
            with b.when(inside):
                decode(b, w, row // PANEL * panel_bytes, row % PANEL, y, target)
            with b.when(inside ^ 1):
                b.note_error(flag, number)
                with b.loop(0, columns) as fill:
                    b.store(b.const(float("nan"), "f32"), y, target + fill.i)


def _float_row(
    panels: Panels, b: Builder, w: Value, base: Value, lane: Value, y: Value, target: Value
) -> None:
    element = panels.element
    with b.loop(0, panels.k) as loop:
        at = base + loop.i * panels.row_bytes + lane * FLOAT_BYTES[element]
        b.store(b.extract(load_floats(b, w, at, element, 1), 0), y, target + loop.i)


def _bf16_row(
    k: int, b: Builder, w: Value, base: Value, lane: Value, y: Value, target: Value
) -> None:
    with b.loop(0, k) as loop:
        at = base + loop.i // PAIR * PAIR_BYTES + (lane * PAIR + loop.i % PAIR) * VALUE_BYTES
        b.store(b.extract(load_floats(b, w, at, "bf16", 1), 0), y, target + loop.i)


def _quantized_row(
    layout: WeightLayout, b: Builder, w: Value, base: Value, lane: Value, y: Value, target: Value
) -> None:
    _Row(b, layout, w, base, lane, y, target).emit()


@dataclass(frozen=True)
class _Row:
    """Decodes one channel of the panel at byte `base`, four values (a quad) at a time."""

    b: Builder
    layout: WeightLayout
    w: Value
    base: Value
    lane: Value
    y: Value
    target: Value

    def emit(self) -> None:
        b, layout, reduction = self.b, self.layout, self.layout.reduction

        def segment(segment: Value, begin: Value, terms: Value) -> None:
            group = segment // reduction.segments_per_group
            scale, zero = b.splat(self._scale(group), QUAD), b.splat(self._zero(group), QUAD)
            at = self.base + layout.codes_at(segment)
            with b.loop(0, terms, reduction.unit) as units:
                unit_at = at + units.i // reduction.unit * layout.unit_bytes
                for quad in range(value_quads(layout.value)):
                    first = units.i + quad * QUAD
                    values = self._values(self._quad(unit_at, quad), zero) * scale
                    mask = None if reduction.divides(reduction.unit) else terms - first
                    self._store(values, self.target + begin + first, mask)

        reduction.emit_segments(b, segment)

    def _store(self, values: Value, at: Value, left: Value | None) -> None:
        """Four values, or as many as are `left` (which may be none)."""
        b = self.b
        mask = None if left is None else b.mask(QUAD, b.max(left, 0))
        b.store(values, self.y, at, mask)

    def _values(self, stored: Value, zero: Value) -> Value:
        """What four stored values mean, in units of the scale."""
        indexed = self.layout.value.indexed
        if indexed is not None:
            return indexed_values(self.b, stored, indexed)
        return self.b.to_float(stored - zero)

    def _quad(self, at: Value, quad: int) -> Value:
        """Four stored values, unsigned and times `mul`, as vector<4xi32>."""
        b, layout = self.b, self.layout
        flipped = layout.value.signed and layout.value.indexed is None
        total = b.const(SIGN_BITS if flipped else 0, "i32")
        for piece in value_pieces(layout.value)[quad]:
            byte = at + (self.lane * QUAD + piece.vector * VECTOR_BYTES)
            total = total ^ piece.emit(b.load_as(self.w, byte, "i32"))
        stored = b.zext(b.bitcast(b.splat(total, 1), vec(QUAD, "i8")), "i32")
        return stored * layout.value.mul

    def _scale(self, group: Value) -> Value:
        layout, lane = self.layout, self.lane * SCALE_BYTES[self.layout.scale]
        at = self.base + (layout.scales_at(group) + lane)
        whole = self.base + layout.tensor_scale_offset
        return load_scales(self.b, self.w, at, layout.scale, 0, whole)

    def _zero(self, group: Value) -> Value:
        """What to subtract from the unsigned stored value, i32."""
        b, layout = self.b, self.layout
        offset = b.const(layout.value.offset + (128 if layout.value.signed else 0), "i32")
        if layout.symmetric:
            return offset
        at = self.base + (layout.zeros_at(group) + self.lane)
        return offset + b.zext(b.load(self.w, at), "i32")
