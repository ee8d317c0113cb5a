"""Strategy `trellis`: trellis codes, with quantized activations (exact) or with float ones.

A block makes 64 columns of some rows. It goes through K 32 columns of the weight at a time, which
its 128 threads decode to bytes in shared memory and then multiply: a thread has one output channel
and half of the rows. Products are dp4a, or f32 of activations rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.costmodel.interface import KernelFeatures
from abqc.dialects.formats import QuantizedTensor
from abqc.dialects.trellis import TABLE_SIZE
from abqc.errors import RecipeError

from ..arch import GpuArch
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul.long_sums import MAX_TERMS
from ..matmul.schedule import Schedule
from ..packing.layout import K_UNIT, Int8Rows
from ..packing.pack import pack_kernel, scaled_pack_kernel
from .layout import Channel, TrellisLayout
from .products import FloatProducts, Int8Products, Products, Unit

COLUMNS, HALVES = 64, 2
THREADS = COLUMNS * HALVES
WORDS = K_UNIT // 4  # of a channel and unit, 4 codes each
PITCH = 4 * (WORDS + 1)  # in shared memory: threads read different banks
SHARED_BYTES = TABLE_SIZE + COLUMNS * PITCH
ARGUMENTS = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
SCHEDULES = (
    Schedule("rows", HALVES, COLUMNS, K_UNIT, 1, THREADS // 32),
    Schedule("tile", 16 * HALVES, COLUMNS, K_UNIT, 1, THREADS // 32),
)
DECODE_OPS = 16  # instructions of a code, about


class TrellisMatmul:
    """The GpuStrategy of the module."""

    name = "trellis"
    integers = False

    def unsupported(self, spec: MatmulSpec, arch: GpuArch) -> str | None:
        if not spec.trellis:
            return "strategy 'trellis' takes trellis codes only"
        if spec.blocks:
            return "strategy 'trellis' takes one scale for a row of activations, not blocks"
        if spec.activation is None and spec.hadamard_block:
            return "strategy 'trellis' does not rotate activations that stay float"
        if spec.activation and TrellisLayout.of(spec).grouped.group_size > MAX_TERMS:
            return f"strategy 'trellis' sums {MAX_TERMS} terms in 32 bits; give the weights groups"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, QuantizedTensor), "trellis codes are quantized"
        return TrellisLayout.of(spec).pack(weight)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return Int8Rows.of(spec).row_bytes if spec.activation else 0

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return pack_kernel(spec, Int8Rows.of(spec)) if spec.activation else None

    def scaled_pack_kernel(self, spec: MatmulSpec) -> Kernel:
        if spec.activation is None:
            raise RecipeError("strategy 'trellis' quantizes no activations that stay float")
        return scaled_pack_kernel(spec, Int8Rows.of(spec))

    def schedules(self, spec: MatmulSpec, arch: GpuArch) -> Sequence[Schedule]:
        return SCHEDULES

    def kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel:
        layout = TrellisLayout.of(spec)
        name = f"trellis{layout.rate}_g{layout.grouped.group_size}_k{spec.k}"
        if spec.activation is None:
            name = f"{name}_{spec.half}_{schedule.name}"
        else:
            signs = "u8" if Int8Rows.of(spec).unsigned else "s8"
            name = f"{name}_{signs}_{schedule.name}"
        block = schedule.block_m, schedule.block_n
        return Kernel(name, block, partial(_emit, name, spec, schedule))

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        return None

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        layout = TrellisLayout.of(spec)
        blocks_m, blocks_n = -(-m // schedule.block_m), -(-spec.n // COLUMNS)
        codes = blocks_m * blocks_n * COLUMNS * layout.grouped.padded_k
        ops = 2.0 * codes * schedule.block_m
        quantized = spec.activation is not None
        row_bytes = self.row_bytes(spec) or 4 * spec.k
        return KernelFeatures(
            arch="",
            strategy=self.name,
            schedule=schedule.name,
            kind=schedule.kind,
            m=m,
            n=spec.n,
            k=spec.k,
            weight_bits=layout.rate,
            activation_bits=spec.activation.bits if spec.activation else 16,
            block_m=schedule.block_m,
            block_n=COLUMNS,
            block_k=K_UNIT,
            blocks=blocks_m * blocks_n,
            threads=THREADS,
            weight_bytes=layout.nbytes(spec.n),
            activation_bytes=m * row_bytes,
            written_bytes=4 * m * spec.n,
            bytes_in_flight=THREADS * K_UNIT // HALVES,
            f32_ops=0.0 if quantized else ops,
            dp4a_ops=ops if quantized else 0.0,
            alu_ops=float(DECODE_OPS * codes),
            shared_traffic=float(codes * (1 + HALVES)),
            shared_bytes=SHARED_BYTES,
        )


def _emit(name: str, spec: MatmulSpec, schedule: Schedule, module: Any, arch: GpuArch) -> None:
    layout = TrellisLayout.of(spec)
    shape = {"threads": THREADS, "shared": SHARED_BYTES}
    with kernel(module, arch, name, ARGUMENTS, **shape) as (b, block, x, w, bias, y, m, n):
        across = b.ceil_div(n, COLUMNS)
        place, half = b.thread % COLUMNS, b.thread // COLUMNS
        channel = block % across * COLUMNS + place
        count = schedule.block_m // HALVES
        first_row = block // across * schedule.block_m + half * count
        # Threads behind the last channel or row do what that one's do, and store nothing.
        known = Channel.of(b, layout, w, n, b.min(channel, n - 1))
        numbers = [b.wide(b.min(first_row + r, m - 1)) for r in range(count)]
        products = _products(b, spec, x, numbers)
        tile = _Tile(b, layout, known, place, half)
        tile.load_table(w)
        offset = b.load(bias, "f32", b.wide(b.min(channel, n - 1)) * 4, cache="nc")
        for r, value in enumerate(_results(tile, products, count, offset)):
            with b.when((channel < n) & (first_row + r < m)):
                at = b.wide(first_row + r) * b.wide(n) + b.wide(channel)
                b.store(value, y, at * 4)


def _products(b: GpuBuilder, spec: MatmulSpec, x: Value, numbers: Sequence[Value]) -> Products:
    """For the rows of these numbers (i64)."""
    if spec.activation is None:
        rows = [b.at(x, number * (4 * spec.k)) for number in numbers]
        return FloatProducts(b, spec.half, rows)
    layout = Int8Rows.of(spec)
    return Int8Products(b, layout, [b.at(x, number * layout.row_bytes) for number in numbers])


@dataclass(frozen=True)
class _Tile:
    """The block's decoded unit in shared memory: [64 channels][32 codes], behind the table."""

    b: GpuBuilder
    layout: TrellisLayout
    channel: Channel
    place: Value
    half: Value

    def load_table(self, w: Value) -> None:
        b = self.b
        with b.when(b.thread < TABLE_SIZE // 4):
            at = b.thread * 4
            b.store(b.load(w, "i32", at, cache="nc"), b.shared, at)
        b.barrier()

    @property
    def _codes(self) -> Value:
        return self.b.at(self.b.shared, self.place * PITCH + TABLE_SIZE)

    def decode(self, unit: Unit) -> None:
        """The columns of a unit, zeros from its end on: half of them by this thread."""
        b, own = self.b, WORDS // HALVES
        for word in range(own):
            packed = b.const(0, "i32")
            for byte in range(4):
                column = unit.first + (self.half * (K_UNIT // HALVES) + (4 * word + byte))
                index = self.channel.index(b.min(column, unit.end - 1))
                value = b.zext(b.load(b.shared, "i8", index), "i32")
                value = b.select(column < unit.end, value, 0)
                packed = packed | (value << (8 * byte))
            b.store(packed, self._codes, self.half * (4 * own) + 4 * word)

    def words(self) -> list[Value]:
        """The 8 words of this thread's channel, i32 of 4 codes."""
        return [self.b.load(self._codes, "i32", 4 * word) for word in range(WORDS)]


def _results(tile: _Tile, products: Products, rows: int, bias: Value) -> list[Value]:
    """y of the thread's rows."""
    b, grouped = tile.b, tile.layout.grouped

    def group_values(group: Value) -> list[Value]:
        begin = group * grouped.group_size
        end = b.min(begin + grouped.group_size, b.const(grouped.k, "i32"))
        with b.loop(0, end - begin, K_UNIT, products.zeros()) as units:
            unit = Unit(group * grouped.padded_group + units.i, begin + units.i, end)
            tile.decode(unit)
            b.barrier()
            sums = products.add(units.args, tile.words(), unit)
            b.barrier()
            units.carry(*sums)
        return products.values(units.results)

    scales = products.row_scales()
    if grouped.groups == 1:
        group = b.const(0, "i32")
        scale = tile.channel.scale(group)
        factors = [row_scale * scale for row_scale in scales] or [scale] * rows
        values = group_values(group)
        return [b.fma(f, value, bias) for f, value in zip(factors, values, strict=True)]
    with b.loop(0, grouped.groups, 1, [b.const(0.0, "f32")] * rows) as groups:
        scale = tile.channel.scale(groups.i)
        values = group_values(groups.i)
        groups.carry(*(b.fma(scale, v, t) for v, t in zip(values, groups.args, strict=True)))
    if not scales:
        return [total + bias for total in groups.results]
    return [b.fma(s, total, bias) for s, total in zip(scales, groups.results, strict=True)]
