"""Arithmetic of matmuls on a CPU: one function a strategy counts what it does under its schedule.

The units of a core overlap, so that most of the time is that of the busiest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from .cpu_work import BYTE_UNIT, LOOK_UP_UNIT, PLANE_UNIT, Tiling, padded_k
from .hardware_cpu import IsaRates
from .interface import MatmulFeatures

TRELLIS_DECODE = 16  # of the time that unpacking bits takes
NARROW_BITS = 14  # 2 * 2^p * 2^q fits 16 signed bits
SMALL_BITS = 12  # four of these do
WIDENED = 0.5  # of the instructions that unpack a code, to make words of bytes
SHARED = 0.35  # of the time of unpacking, where products take several instructions of its units
SUMMED_TERMS = 128  # of groups whose sums are stored
ONES = 1.0
QUAD = 4  # products that a lane of bytes adds up at once
ADDRESSED = 8  # rows of a tile whose addresses fit the general registers
ADDRESS_LOADS = 2  # for each of the others, in units of a vector's load
CONTENTION = 0.2  # of what a unit does beyond half of the busiest one's time
STORED = 1.3  # decoding to memory, of the time of decoding to registers
LOOKED_UP = 4  # products that a table has the sums of
ONE_TABLE_BITS = 5  # of activations whose sums are in one table


class Work(NamedTuple):
    """Seconds of one core by what it does. Products, loads and decoding overlap; `stored` (decoding
    before the products, or of tables), scaling and packing do not."""

    products: float = 0.0
    loads: float = 0.0
    decode: float = 0.0
    stored: float = 0.0
    scaling: float = 0.0
    packing: float = 0.0

    @property
    def seconds(self) -> float:
        together = _together(self.products, self.loads, self.decode)
        return together + self.stored + self.scaling + self.packing


def _together(*units: float) -> float:
    """Seconds of units that work at the same time; they hinder each other if both are busy."""
    busiest = max(units)
    beside = sum(max(0.0, unit - busiest / 2) for unit in units) - busiest / 2
    return busiest + CONTENTION * beside


def _scale(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return t.rows * t.columns * f.groups / rates.scalings


def _waits(t: Tiling, chains: int, rates: IsaRates) -> float:
    """How much longer products take that wait for each other: too few accumulators."""
    vectors = t.tile_m * t.panels * max(1, chains) * 512 / rates.vector_bits
    return max(1.0, rates.product_latency / vectors)


def _bf16_products(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    return Work(products=2 * t.rows * t.columns * f.k / rates.bf16_flops)


def _bf16(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    # Floats need no decoding.
    passes = 0 if f.weight_bits == 16 else t.row_blocks
    return _bf16_products(f, t, rates)._replace(
        stored=t.columns * f.k * passes / rates.float_decodes,
        scaling=_scale(f, t, rates),
    )


def unpacking(bits: int) -> int:
    """Instructions that unpack 8 vectors of codes of `bits` bits, which as many vectors store as a
    code has bits. Codes that are whole in a byte take a shift and a mask, the first of a byte no
    shift; what is left of the bytes is cut by further codes into pieces, which take as many, and
    one that joins each to the others of its code."""
    if bits == 8:
        return 0
    shared = 8 % bits  # bits left of each vector, and codes that share them
    pieces = bits + shared - math.gcd(bits, shared) if shared else 0
    return 2 * (8 - shared) - bits + 3 * pieces - shared


def _unpacked(f: MatmulFeatures) -> float:
    """Instructions that unpack a vector of codes, of the two that take out one of several."""
    return unpacking(f.weight_bits) / 16


def _passes(f: MatmulFeatures, t: Tiling) -> float:
    """How often weights are decoded."""
    return STORED * t.row_blocks if f.decode_once else t.row_tiles


def _float(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    return Work(products=2 * t.rows * t.columns * f.k / rates.flops)


def _dequantize(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    decode = t.columns * f.k * t.row_blocks / rates.float_decodes
    return _float(f, t, rates)._replace(stored=decode)


def _pack(f: MatmulFeatures, rates: IsaRates) -> float:
    return f.m * f.k / rates.quantizations


def _int8(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    return _int8_direct(f, t, rates)._replace(packing=_pack(f, rates))


def _int8_direct(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    """Of convolutions, whose images are quantized once for all places of a window."""
    decode = t.columns * _unpacked(f) * _passes(f, t) * padded_k(f, BYTE_UNIT) / rates.decodes
    work = _byte_products(f, t, rates)._replace(scaling=_scale(f, t, rates))
    if f.decode_once:
        return work._replace(stored=decode)
    if rates.wide_macs < rates.small_macs:  # without a dot product of bytes
        return work._replace(products=work.products + SHARED * decode)
    return work._replace(decode=decode)


def _short_groups(f: MatmulFeatures) -> bool:
    """Whether groups, of which the last may lack terms, are shorter than those whose sums are
    stored."""
    return f.k < SUMMED_TERMS or f.k <= SUMMED_TERMS * (f.groups - 1)


def _byte_products(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    """Products of bytes, and what they load."""
    k = padded_k(f, BYTE_UNIT)
    bits = f.weight_bits + f.activation_bits
    rate = rates.small_macs if bits <= SMALL_BITS else rates.narrow_macs
    if bits > NARROW_BITS:
        rate = rates.wide_macs
    # Sums of short groups are not stored: a row of ones beside those of a tile makes them.
    ones = 0.0 if f.decode_once or not _short_groups(f) else ONES * t.row_tiles
    products = (t.rows + ones) * t.columns * k / rate
    if rate < rates.narrow_macs and not f.decode_once:  # words are made for each tile of rows
        products += WIDENED * t.columns * t.row_tiles * k / rates.decodes
    addresses = ADDRESS_LOADS * max(0, t.tile_m - ADDRESSED)
    operands = t.tile_m + addresses + t.panels * 512 / rates.vector_bits
    loads = t.tiles * (k / QUAD) * operands / rates.loads
    return Work(products=products * _waits(t, f.chains, rates), loads=loads)


def _trellis(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    return _byte_products(f, t, rates)._replace(
        stored=t.columns * f.k * _passes(f, t) * TRELLIS_DECODE / rates.decodes,
        scaling=_scale(f, t, rates),
        packing=_pack(f, rates),
    )


def _trellis_float(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    decode = t.columns * f.k * t.row_blocks * TRELLIS_DECODE / rates.decodes
    return _float(f, t, rates)._replace(stored=decode)


def _bitplane(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    pairs = t.rows * t.columns * padded_k(f, PLANE_UNIT)
    planes = f.m * f.k * f.activation_bits / rates.transpositions
    return Work(
        products=pairs * f.weight_bits * f.activation_bits / rates.bit_products,
        loads=pairs * f.weight_bits / t.tile_m / rates.operand_loads,
        scaling=_scale(f, t, rates),
        packing=planes + _pack(f, rates),
    )


def _look_up(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> Work:
    parts = 1 if f.activation_bits <= ONE_TABLE_BITS else 2
    tables = f.m * f.k * parts / rates.quantizations
    if not rates.look_ups:
        work = _int8(f, t, rates)
        return work._replace(packing=work.packing + tables)
    pairs = t.columns * padded_k(f, LOOK_UP_UNIT) / LOOKED_UP
    return Work(
        products=t.rows * pairs * parts / rates.look_ups,
        stored=pairs * t.row_tiles / rates.decodes,
        scaling=_scale(f, t, rates),
        packing=_pack(f, rates) + tables,
    )


COMPUTE: dict[str, Callable[[MatmulFeatures, Tiling, IsaRates], Work]] = {
    "float": _float,
    "direct": _float,
    "bf16-direct": _bf16_products,
    "dequantize": _dequantize,
    "bf16": _bf16,
    "int8": _int8,
    "int8-direct": _int8_direct,
    "bitplane": _bitplane,
    "look-up": _look_up,
    "trellis": _trellis,
    "trellis-float": _trellis_float,
}
