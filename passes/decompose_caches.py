"""`abq.quantize_cache` and `abq.dequantize_cache` as loops, for any target.

Few rows are quantized in a run, and what reads a cache dequantizes it on its way where it can
(`fuse-caches`).
"""

from __future__ import annotations

import math as numbers
from collections.abc import Callable, Sequence

from abqc.dialects import abq
from abqc.dialects.abq_caches import cache_format
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.mlir import arith, ir, linalg, math, tensor

from .infrastructure import Unit, is_used, node_name, register, walk
from .loops.axis_blocks import parallel_loop, with_blocks
from .loops.row_loops import constant, reduce_rows
from .loops.scalars import Int
from .resolve_dims import mixed_sizes

ZERO_POWER = 1 << 22  # the bits of 2^-127
NAN = 0x7FC00000
E8M0_NAN, E8M0_ONE = 255, 127


@register
def decompose_caches(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.quantize_cache and abq.dequantize_cache as linalg.generic."""
    for op in walk(module):
        rewrite = _RULES.get(op.name)
        if rewrite is not None:
            if op.name == "abq.dequantize_cache" and is_used(op.results[0]):
                note = f"decodes all rows of a cache in {cache_format(op)} in every run"
                unit.notes.append({"node": node_name(op) or "", "note": note})
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(rewrite(op))
            op.erase()


def _quantize(op: ir.Operation) -> ir.Value:
    format, x = cache_format(op), op.operands[0]
    columns = abq.shape(x)[-1]
    size, used = format.group_size(columns), format.code_bytes(columns)
    words = _words(with_blocks(x, len(abq.shape(x)) - 1, size), format)

    def body(_: list[ir.Value]) -> ir.Value:
        *lead, last = _places(x)
        at = Int.of_index(last)
        codes = _codes_of_byte(at, format, x, words, lead, columns)
        scales = _byte_of_scales(at - used, format, words, lead, columns)
        return (at < used).select(codes, scales).as_byte()

    sizes = [*mixed_sizes(x)[:-1], format.row_bytes(columns)]
    byte = ir.IntegerType.get_signless(8)
    return parallel_loop([], [], tensor.EmptyOp(sizes, byte).result, body)


def _words(groups: ir.Value, format: CacheFormat) -> ir.Value:
    """What is stored of the scale of each group [..., G, size]: i32 [..., G]."""
    if format.is_blocks:
        operands = [reduce_rows(groups, 0.0, _larger_magnitude)]
        body = _power_word(format)
    else:
        least = reduce_rows(groups, numbers.inf, lambda e, a: arith.MinimumFOp(e, a).result)
        most = reduce_rows(groups, -numbers.inf, lambda e, a: arith.MaximumFOp(e, a).result)
        operands, body = [least, most], _scale_word(format)
    identity = ir.AffineMap.get_identity(len(abq.shape(operands[0])))
    i32 = ir.IntegerType.get_signless(32)
    empty = tensor.EmptyOp(mixed_sizes(operands[0]), i32).result
    return parallel_loop(operands, [identity] * len(operands), empty, body)


def _larger_magnitude(element: ir.Value, largest: ir.Value) -> ir.Value:
    return arith.MaximumFOp(math.AbsFOp(element).result, largest).result


def _scale_word(format: CacheFormat) -> Callable[[list[ir.Value]], ir.Value]:
    """The bits of the f16 scale, above them those of low."""

    def body(elements: list[ir.Value]) -> ir.Value:
        least, most = elements
        low = _half_bits(least)
        range_ = arith.SubFOp(most, _from_half_bits(low)).result
        scale = _half_bits(arith.DivFOp(range_, constant(format.format.qmax)).result)
        return (scale | low << 16).value

    return body


def _power_word(format: CacheFormat) -> Callable[[list[ir.Value]], ir.Value]:
    """The byte e + 127, 255 where the largest magnitude is not finite."""

    def body(elements: list[ir.Value]) -> ir.Value:
        (reach,) = elements
        exponent = Int.of_bits(reach) >> 23
        stored = (exponent - format.top_exponent).at_least(0)
        stored = (exponent == 255).select(Int.of(E8M0_NAN), stored)
        return (Int.of_bits(reach) == 0).select(Int.of(E8M0_ONE), stored).value

    return body


def _codes_of_byte(
    at: Int,
    format: CacheFormat,
    x: ir.Value,
    words: ir.Value,
    lead: list[ir.Value],
    columns: int,
) -> Int:
    """The bits of the codes that lie in byte `at` of a row."""
    bits, size = format.bits, format.group_size(columns)
    first_bit = at * 8
    first = first_bit // bits
    byte = Int.of(0)
    for i in range(1 - -7 // bits):
        number = first + i
        column = number.at_most(columns - 1)
        word = Int(_extract(words, [*lead, (column // size).as_index()]))
        element = _extract(x, [*lead, column.as_index()])
        code = (
            _power_code(element, word, format)
            if format.is_blocks
            else _integer_code(element, word, format)
        )
        code = (number < columns).select(code & ((1 << bits) - 1), Int.of(0))
        # A code may begin in the byte before: one byte is added to the distance, and taken off.
        byte = byte | (code << number * bits - first_bit + 8) >> 8
    return byte & 255


def _integer_code(x: ir.Value, word: Int, format: CacheFormat) -> Int:
    scale, low = _scale_and_low(word)
    zero, one = constant(0.0), constant(1.0)
    is_zero = arith.CmpFOp(arith.CmpFPredicate.OEQ, scale, zero).result
    divisor = arith.SelectOp(is_zero, one, scale).result
    steps = math.RoundEvenOp(arith.DivFOp(arith.SubFOp(x, low).result, divisor).result).result
    # NaN compares as false: its code is 0, and its scale or low is NaN.
    steps = _selected(arith.CmpFPredicate.OLT, steps, constant(format.format.qmax))
    return Int.rounded(_selected(arith.CmpFPredicate.OGT, steps, zero))


def _power_code(x: ir.Value, word: Int, format: CacheFormat) -> Int:
    steps = math.RoundEvenOp(arith.DivFOp(x, _power(word)).result).result
    steps = _selected(arith.CmpFPredicate.OLT, steps, constant(format.format.qmax))
    steps = _selected(arith.CmpFPredicate.OGT, steps, constant(format.format.qmin))
    return (word == E8M0_NAN).select(Int.of(0), Int.rounded(steps))


def _selected(predicate: arith.CmpFPredicate, x: ir.Value, bound: ir.Value) -> ir.Value:
    """`x` where it compares so to `bound`, else `bound`."""
    return arith.SelectOp(arith.CmpFOp(predicate, x, bound).result, x, bound).result


def _byte_of_scales(
    at: Int, format: CacheFormat, words: ir.Value, lead: list[ir.Value], columns: int
) -> Int:
    """Byte `at` of what stands behind the codes; 0 in the padding."""
    each, groups = format.scale_bytes(), format.n_groups(columns)
    at = at.at_least(0)
    group = at // each
    word = Int(_extract(words, [*lead, group.at_most(groups - 1).as_index()]))
    byte = word >> at % each * 8 & 255
    return (group < groups).select(byte, Int.of(0))


def _dequantize(op: ir.Operation) -> ir.Value:
    format, rows = cache_format(op), op.operands[0]
    type_ = ir.RankedTensorType(op.results[0].type)
    columns = type_.shape[-1]
    size, used = format.group_size(columns), format.code_bytes(columns)

    def body(_: list[ir.Value]) -> ir.Value:
        *lead, last = _places(rows)

        def byte(at: Int) -> Int:
            return Int.of_byte(_extract(rows, [*lead, at.as_index()]))

        column = Int.of_index(last)
        bit = column * format.bits
        first = bit // 8
        pair = byte(first) | byte((first + 1).at_most(used - 1)) << 8
        code = pair >> bit % 8 & ((1 << format.bits) - 1)
        place = column // size * format.scale_bytes() + used
        if format.is_blocks:
            sign = 1 << (format.bits - 1)
            return arith.MulFOp(((code ^ sign) - sign).as_float(), _power(byte(place))).result
        word = byte(place)
        for i in range(1, 4):
            word = word | byte(place + i) << 8 * i
        scale, low = _scale_and_low(word)
        return arith.AddFOp(arith.MulFOp(code.as_float(), scale).result, low).result

    sizes = [*mixed_sizes(rows)[:-1], columns]
    return parallel_loop([], [], tensor.EmptyOp(sizes, type_.element_type).result, body)


def _places(like: ir.Value) -> list[ir.Value]:
    return [linalg.IndexOp(i).result for i in range(len(abq.shape(like)))]


def _extract(source: ir.Value, at: Sequence[ir.Value]) -> ir.Value:
    return tensor.ExtractOp(source, list(at)).result


def _half_bits(x: ir.Value) -> Int:
    """The bits of an f32 rounded to f16."""
    half = arith.TruncFOp(ir.F16Type.get(), x).result
    bits = arith.BitcastOp(ir.IntegerType.get_signless(16), half).result
    return Int(arith.ExtUIOp(ir.IntegerType.get_signless(32), bits).result)


def _from_half_bits(bits: Int) -> ir.Value:
    """The f32 of an f16 in the lower 16 bits."""
    short = arith.TruncIOp(ir.IntegerType.get_signless(16), bits.value).result
    half = arith.BitcastOp(ir.F16Type.get(), short).result
    return arith.ExtFOp(ir.F32Type.get(), half).result


def _scale_and_low(word: Int) -> tuple[ir.Value, ir.Value]:
    return _from_half_bits(word), _from_half_bits(word >> 16)


def _power(byte: Int) -> ir.Value:
    """2^(byte - 127); NaN for 255."""
    bits = (byte == 0).select(Int.of(ZERO_POWER), byte << 23)
    bits = (byte == E8M0_NAN).select(Int.of(NAN), bits)
    return arith.BitcastOp(ir.F32Type.get(), bits.value).result


_RULES: dict[str, Callable[[ir.Operation], ir.Value]] = {
    "abq.quantize_cache": _quantize,
    "abq.dequantize_cache": _dequantize,
}
