"""Loops over codes that are stored as bytes: the formulas of `dialects/fixed_point.py`.

Bytes are i8, two's complement where the format is symmetric (`StaticCodes.signed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from abqc.dialects import abq
from abqc.dialects.fixed_point import FixedPoint, StaticCodes
from abqc.dialects.mlir import arith, ir, math, tensor
from abqc.dialects.schemes import parse_scheme

from ..infrastructure import Unit, defining_op
from ..loops.axis_blocks import parallel_loop
from ..loops.row_loops import constant
from ..resolve_dims import mixed_sizes


@dataclass(frozen=True)
class Bytes:
    """A tensor of codes and what they mean. Elements are i8, or i32 of constants, whose codes have
    more bits."""

    value: ir.Value
    codes: StaticCodes


def i8() -> ir.Type:
    return ir.IntegerType.get_signless(8)


def i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def i64() -> ir.Type:
    return ir.IntegerType.get_signless(64)


def integer(number: int, type_: ir.Type) -> ir.Value:
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, number)).result


def byte_constant(code: int) -> ir.Value:
    """The byte of a code, at the insertion point."""
    return integer(code - 256 if code > 127 else code, i8())


def static_codes(quantize: ir.Operation) -> StaticCodes | None:
    """What the codes of an `abq.quantize` mean; None where its scale is no constant of one
    element."""
    numbers = []
    for operand in (quantize.opview.x_scale, quantize.opview.x_zero):
        made = None if operand is None else defining_op(operand)
        if made is None or made.name != "arith.constant" or abq.shape(operand) != [1]:
            return None
        numbers.append(made.attributes["value"])
    scale = float(next(iter(ir.DenseFPElementsAttr(numbers[0]))))
    zero = int(next(iter(ir.DenseIntElementsAttr(numbers[1]))))
    scheme = parse_scheme(abq.code_format(quantize.results[0]) or "")
    return StaticCodes(scheme, scale, zero)


def stored_zero(quantize: ir.Operation) -> ir.Value:
    """The byte of the zero point of an `abq.quantize` of stored codes."""
    codes = static_codes(quantize)
    assert codes is not None, "stored codes have a constant zero point"
    return byte_constant(codes.zero)


def centred(element: ir.Value, codes: StaticCodes) -> ir.Value:
    """code - zero as i32."""
    code = element
    if element.type == i8():
        extend = arith.ExtSIOp if codes.signed else arith.ExtUIOp
        code = extend(i32(), element).result
    return code if codes.zero == 0 else arith.SubIOp(code, integer(codes.zero, i32())).result


def to_codes(x: ir.Value, y: StaticCodes) -> ir.Value:
    """Bytes of clamp(rne(x / scale) + zero) of floats; a NaN becomes the lowest code."""

    def body(elements: list[ir.Value]) -> ir.Value:
        steps = math.RoundEvenOp(arith.DivFOp(elements[0], constant(y.scale)).result).result
        above = arith.MaxNumFOp(steps, constant(float(y.low - y.zero))).result
        clamped = arith.MinNumFOp(above, constant(float(y.high - y.zero))).result
        code = arith.FPToSIOp(i32(), arith.AddFOp(clamped, constant(float(y.zero))).result)
        return arith.TruncIOp(i8(), code.result).result

    return elementwise(x, body)


def to_floats(x: Bytes) -> ir.Value:
    """float(code - zero) * scale."""

    def body(elements: list[ir.Value]) -> ir.Value:
        steps = arith.SIToFPOp(ir.F32Type.get(), centred(elements[0], x.codes)).result
        return arith.MulFOp(steps, constant(x.codes.scale)).result

    return elementwise(x.value, body, ir.F32Type.get())


def elementwise(
    x: ir.Value, body: Callable[[list[ir.Value]], ir.Value], element: ir.Type | None = None
) -> ir.Value:
    identity = ir.AffineMap.get_identity(len(abq.shape(x)))
    empty = tensor.EmptyOp(mixed_sizes(x), element or i8()).result
    return parallel_loop([x], [identity], empty, body)


def requantized(
    acc: ir.Value,
    channels: int | None,
    added: tuple[np.ndarray, np.ndarray] | None,
    factor: FixedPoint,
    y: StaticCodes,
    bounds: tuple[int, int],
    unit: Unit,
) -> ir.Value:
    """`fixed_point.requantize` of a tensor of i32, whose channels are along axis `channels`; None:
    one factor for all. `added` are the bias and the offset of each channel (`bias_codes`)."""
    rank = len(abq.shape(acc))
    operands, reads = [acc], [ir.AffineMap.get_identity(rank)]

    def each_channel(values: np.ndarray) -> int:
        """The number of a new operand."""
        operands.append(integers(values.astype(np.int32), unit))
        reads.append(ir.AffineMap.get(rank, 0, [ir.AffineDimExpr.get(channels)]))
        return len(operands) - 1

    numbers: dict[str, int] = {}
    if channels is not None:
        rows = dict(zip(("multiplier", "shift"), (factor.multiplier, factor.shift), strict=True))
        if added is not None:
            rows |= {"bias": added[0]} | ({"offset": added[1]} if added[1].any() else {})
        numbers = {name: each_channel(values) for name, values in rows.items()}
    empty = tensor.EmptyOp(mixed_sizes(acc), i8()).result

    def body(elements: list[ir.Value]) -> ir.Value:
        given = {name: wide(elements[number]) for name, number in numbers.items()}
        total = wide(elements[0])
        if "bias" in given:
            total = arith.AddIOp(total, given["bias"]).result
        multiplier = given.get("multiplier") or integer(int(factor.multiplier[0]), i64())
        shift = given.get("shift") or integer(int(factor.shift[0]), i64())
        scaled = rounded_shift(arith.MulIOp(total, multiplier).result, shift)
        if "offset" in given:
            scaled = arith.AddIOp(scaled, given["offset"]).result
        return clamped(scaled, y.zero, bounds)

    return parallel_loop(operands, reads, empty, body)


def wide(element: ir.Value) -> ir.Value:
    return arith.ExtSIOp(i64(), element).result


def rounded_shift(product: ir.Value, shift: ir.Value) -> ir.Value:
    """floor(product / 2^shift + 1/2) of i64."""
    one = integer(1, i64())
    half = arith.ShLIOp(one, arith.SubIOp(shift, one).result).result
    return arith.ShRSIOp(arith.AddIOp(product, half).result, shift).result


def clamped(scaled: ir.Value, zero: int, bounds: tuple[int, int]) -> ir.Value:
    """The byte of clamp(scaled + zero), an i64, between codes."""
    low, high = bounds
    code = arith.AddIOp(scaled, integer(zero, i64())).result
    code = arith.MaxSIOp(code, integer(low, i64())).result
    code = arith.MinSIOp(code, integer(high, i64())).result
    return arith.TruncIOp(i8(), code).result


def combined(
    operands: Sequence[Bytes],
    reads: Sequence[ir.AffineMap],
    like: ir.Value,
    body: Callable[[list[ir.Value]], ir.Value],
) -> ir.Value:
    """Bytes of the shape of `like` from `body`, which gets code - zero of the operands as i64."""
    empty = tensor.EmptyOp(mixed_sizes(like), i8()).result

    def widened(elements: list[ir.Value]) -> ir.Value:
        return body([wide(centred(e, x.codes)) for e, x in zip(elements, operands, strict=True)])

    return parallel_loop([x.value for x in operands], list(reads), empty, widened)


def added(
    terms: list[ir.Value], factor: FixedPoint, y: StaticCodes, bounds: tuple[int, int]
) -> ir.Value:
    """`fixed_point.add` of two numbers in i64."""
    products = [
        arith.MulIOp(term, integer(int(multiplier), i64())).result
        for term, multiplier in zip(terms, factor.multiplier, strict=True)
    ]
    shift = integer(int(factor.shift[0]), i64())
    total = arith.AddIOp(*products).result
    return clamped(rounded_shift(total, shift), y.zero, bounds)


def multiplied(
    terms: list[ir.Value], factor: FixedPoint, y: StaticCodes, bounds: tuple[int, int]
) -> ir.Value:
    """`fixed_point.multiply` of two numbers in i64."""
    product = arith.MulIOp(*terms).result
    scaled = arith.MulIOp(product, integer(int(factor.multiplier[0]), i64())).result
    shift = integer(int(factor.shift[0]), i64())
    return clamped(rounded_shift(scaled, shift), y.zero, bounds)


def looked_up(x: ir.Value, table: np.ndarray, unit: Unit) -> ir.Value:
    """Bytes table[byte] of a tensor of bytes; `table` is int8 [256]."""
    values = integers(table, unit)

    def body(elements: list[ir.Value]) -> ir.Value:
        at = arith.IndexCastOp(ir.IndexType.get(), arith.ExtUIOp(i32(), elements[0]).result).result
        return tensor.ExtractOp(values, [at]).result

    return elementwise(x, body)


def integers(array: np.ndarray, unit: Unit) -> ir.Value:
    """A constant tensor of integers, in the weight store by its content."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:32]
    symbol = f"integers {array.dtype} {digest}"
    if symbol not in unit.store:
        unit.store.add(symbol, array)
    element = ir.IntegerType.get_signless(8 * array.dtype.itemsize)
    type_ = ir.RankedTensorType.get(list(array.shape), element)
    return abq.WeightOp(ir.StringAttr.get(symbol), type_).result
