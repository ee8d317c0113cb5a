"""A panel of a convolution's weights, made ready for products: bytes, starts of sums, scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.cpu.int8.dot import Dot
from abqc.codegen.cpu.int8.kernels import ONES
from abqc.codegen.cpu.int8.layout import QUAD, QUAD_CODES, value_quads
from abqc.codegen.cpu.int8.units import load_unit, unit_quad

from ..panels.layout import PANEL
from ..panels.scales import load_scales
from .layout import ConvWeights


@dataclass
class Panel:
    """The weights of 16 channels, from byte `at` of `w` on; memory on the stack, to be made outside
    of loops. `prepare` fills it for activations with the zero point `zero` (with the shift).

    Products then take the signed bytes of `buffer`: quads of block `first` of group g and those
    behind it, from byte `begin` on (`group`). acc = `start` + sum of u * byte, less `offset` times
    the sum of u where the format is asymmetric: there is one group then.
    """

    b: Builder
    layout: ConvWeights
    a_highest: int
    w: Value

    def __post_init__(self) -> None:
        b, layout = self.b, self.layout
        groups = layout.groups
        self.decoded = None
        if not layout.bytes_as_stored:
            self.decoded = b.alloca(layout.padded_quads * QUAD_CODES, "i8")
        self.cut = b.alloca(layout.in_groups * QUAD_CODES, "i8") if layout.cuts_blocks else None
        self.start = b.alloca(groups * PANEL, "i32")
        self.scale = b.alloca(groups * PANEL, "f32")
        self.offset = b.alloca(PANEL, "i32")

    @cached_property
    def dot(self) -> Dot:
        value = self.layout.value
        highest = value.highest
        if not self.layout.bytes_as_stored and value.indexed is None:
            highest = max(value.offset, value.mul * ((1 << value.bits) - 1) - value.offset)
        return Dot(self.b, self.a_highest, highest, True)

    def prepare(self, at: Value, zero: Value) -> None:
        """Decode the panel at byte `at`, and add up what zero points need."""
        b, layout = self.b, self.layout
        self.buffer, self.begin = self.w, at
        if self.decoded is not None:
            self._decode(at, self.decoded)
            self.buffer, self.begin = self.decoded, b.index(0)
        if self.cut is not None:
            self._cut(self.cut)
            self.buffer, self.begin = self.cut, b.index(0)
        whole = at + layout.tensor_scale_offset
        with b.loop(0, layout.groups, carry=[self.begin]) as groups:
            first, last = self.group(groups.i)
            quads = (last - first) * layout.taps
            total = self._sums(groups.args[0], quads)
            start = b.splat(b.const(0, "i32") - zero, PANEL) * total
            if not layout.symmetric:
                terms = b.splat(zero * (QUAD * layout.quads), PANEL)
                start = start + self._offsets(at) * terms
            b.store(start, self.start, groups.i * PANEL)
            scales_at = at + (groups.i * layout.scale_bytes + layout.scales_offset)
            scales = load_scales(b, self.w, scales_at, layout.scale, PANEL, whole)
            indexed = layout.value.indexed
            scales = scales if indexed is None else scales * indexed.unit
            b.store(scales, self.scale, groups.i * PANEL)
            groups.carry(groups.args[0] + quads * QUAD_CODES)

    def group(self, group: Value) -> tuple[Value, Value]:
        """The first block of a group, and the one behind its last."""
        b, layout, block = self.b, self.layout, QUAD * self.layout.taps
        if layout.groups == 1:
            return b.index(0), b.index(layout.blocks)
        begin = group * layout.group_size
        end = b.min(begin + layout.group_size, b.index(layout.k))
        return begin // block, (end + (block - 1)) // block

    def _decode(self, at: Value, target: Value) -> None:
        """Stored values as signed bytes: codes q, or the integers of indexed formats."""
        b, layout, value = self.b, self.layout, self.layout.value
        quads = value_quads(value)
        with b.loop(0, layout.padded_quads // quads) as units:
            unit = load_unit(b, self.w, at + units.i * layout.unit_bytes, value)
            for quad in range(quads):
                bytes_ = b.bitcast(unit_quad(b, unit, quad, value), vec(QUAD_CODES, "i8"))
                if value.indexed is None:
                    bytes_ = (bytes_ + bytes_ if value.mul == 2 else bytes_) - value.offset
                b.store(bytes_, target, (units.i * quads + quad) * QUAD_CODES)

    def _cut(self, target: Value) -> None:
        """The quads of each group, with zeros for weights of other groups."""
        b, layout, source, begin = self.b, self.layout, self.buffer, self.begin
        with b.loop(0, layout.groups, carry=[b.index(0)]) as groups:
            first, last = self.group(groups.i)
            low = groups.i * layout.group_size
            high = b.min(low + layout.group_size, b.index(layout.k))
            with b.loop(first, last) as blocks, b.loop(0, layout.taps) as taps:
                kept = b.const(0, "i32")
                for c in range(QUAD):
                    k = (blocks.i * QUAD + c) * layout.taps + taps.i
                    inside = (k >= low) & (k < high)
                    kept = kept | b.select(inside, b.const(0xFF << 8 * c, "i32"), 0)
                quad = blocks.i * layout.taps + taps.i
                read = b.load_as(source, begin + quad * QUAD_CODES, vec(PANEL, "i32"))
                to = groups.args[0] + (quad - first * layout.taps) * QUAD_CODES
                b.store_as(read & b.splat(kept, PANEL), target, to)
            groups.carry(groups.args[0] + (last - first) * (layout.taps * QUAD_CODES))

    def _sums(self, at: Value, quads: Value) -> Value:
        """The sum of the bytes of each channel over quads, vector<16xi32>."""
        b, dot = self.b, self.dot
        ones = dot.activations(b.const(ONES, "i32"))
        with b.loop(0, quads, carry=dot.zero()) as loop:
            quad = b.load_as(self.buffer, at + loop.i * QUAD_CODES, vec(PANEL, "i32"))
            products = dot.accumulate(dot.zero(), ones, dot.weights(quad))
            loop.carry(*dot.add([loop.args, products]))  # a sum is sooner ready than a product
        return dot.join(loop.results)

    def _offsets(self, at: Value) -> Value:
        """What bytes have above q - z, vector<16xi32>; kept in `offset`."""
        b, layout = self.b, self.layout
        zeros = b.load_as(self.w, at + layout.zeros_offset, vec(PANEL, "i8"))
        offsets = b.zext(zeros, "i32")
        if layout.bytes_as_stored:
            offsets = offsets + layout.value.offset
        b.store(offsets, self.offset, 0)
        return offsets
