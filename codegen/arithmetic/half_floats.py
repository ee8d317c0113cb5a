"""16-bit floats on CPUs: computed with in f32, converted without calls of a C library's helpers.

LLVM turns conversions that a CPU lacks into calls (`__truncsfbf2`, `__truncdfhf2`, `__extendhfsf2`)
that not every compiler's library has. `lower_half_floats` leaves none of them: conversions become
integer arithmetic, which LLVM vectorizes, and arithmetic on f16 and bf16 is done in f32. All
conversions round to nearest, ties to even, once: f64 goes through f32 by rounding to odd (Boldo and
Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
2008). NaN stays a quiet NaN of its sign.
"""

from __future__ import annotations

from collections.abc import Callable

from abqc.dialects.mlir import arith, ir, run_upstream

from ..isa import Isa
from .expr import Expr, absolute, scalar_type, select

_PROMOTION = (
    "func.func("
    "arith-emulate-unsupported-floats{source-types=f16,bf16 target-type=f32},"
    "math-extend-to-supported-types{extra-types=f64 target-type=f32})"
)

_CONVERSIONS = ("arith.extf", "arith.truncf")
_HALVES = (ir.F16Type, ir.BF16Type)

I16, I32 = (lambda: ir.IntegerType.get_signless(16)), (lambda: ir.IntegerType.get_signless(32))


def lower_half_floats(module: ir.Module, isa: Isa) -> None:
    """Replace arithmetic on f16 and bf16 and the conversions that `isa` lacks, in place."""
    promote_half_floats(module)
    for op in _operations(module, *_CONVERSIONS):
        convert = _conversion(
            scalar_type(op.operands[0].type), scalar_type(op.results[0].type), isa
        )
        if convert is not None:
            with ir.InsertionPoint(op), op.location:
                result = convert(Expr(op.operands[0]))
            _replace(op, result)


def promote_half_floats(module: ir.Module) -> None:
    """Arithmetic on f16 and bf16 is done in f32 and rounded, in place."""
    run_upstream(_PROMOTION, module.operation)
    for op in _operations(module, "math.fma", "math.fpowi"):  # which that leaves as they are
        if isinstance(scalar_type(op.results[0].type), _HALVES):
            _replace(op, _in_f32(op))


def _operations(module: ir.Module, *names: str) -> list[ir.Operation]:
    found: list[ir.Operation] = []

    def collect(op: ir.Operation) -> ir.WalkResult:
        if op.operation.name in names:
            found.append(op.operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(collect)
    return found


def _replace(op: ir.Operation, result: Expr) -> None:
    op.results[0].replace_all_uses_with(result.value)
    op.erase()


def _in_f32(op: ir.Operation) -> Expr:
    half = scalar_type(op.results[0].type)
    with ir.InsertionPoint(op), op.location:
        wide = [
            Expr(operand).cast(ir.F32Type.get(), arith.extf).value
            if scalar_type(operand.type) == half
            else operand
            for operand in op.operands
        ]
        result = ir.Operation.create(op.name, results=[wide[0].type], operands=wide).results[0]
        return Expr(result).cast(half, arith.truncf)


def _conversion(source: ir.Type, target: ir.Type, isa: Isa) -> Callable[[Expr], Expr] | None:
    """How to convert; None where LLVM does well."""
    if isinstance(target, ir.BF16Type):
        return f64_to_bf16 if isinstance(source, ir.F64Type) else f32_to_bf16
    if isinstance(target, ir.F16Type):
        to_f16 = _native_f16 if isa.f16c else f32_to_f16
        if isinstance(source, ir.F64Type):
            return lambda x: to_f16(round_to_odd(x))
        return None if isa.f16c else to_f16
    if isinstance(source, ir.BF16Type):
        widen = bf16_to_f32
    elif isinstance(source, ir.F16Type) and not isa.f16c:
        widen = f16_to_f32
    else:
        return None
    return widen if isinstance(target, ir.F32Type) else lambda x: widen(x).to_f64()


def _native_f16(x: Expr) -> Expr:
    return x.cast(ir.F16Type.get(), arith.truncf)


def bf16_to_f32(x: Expr) -> Expr:
    """As integers: LLVM would turn `fabs` of the result, say, into arithmetic on bf16."""
    bits = x.cast(I16(), arith.bitcast).cast(I32(), arith.extui)
    return (bits << 16).as_f32()


def f64_to_bf16(x: Expr) -> Expr:
    return f32_to_bf16(round_to_odd(x))


def f32_to_bf16(x: Expr) -> Expr:
    """The upper half of the bits, after half of their last place (less one, if that is even)."""
    bits = x.bits()
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    quiet = bits | 0x400000
    upper = select(_is_nan(x), quiet, rounded) >> 16
    return upper.cast(I16(), arith.trunci).cast(ir.BF16Type.get(), arith.bitcast)


def round_to_odd(x: Expr) -> Expr:
    """f64 to f32: truncated, its last bit set where that lost something. A conversion to 22 bits or
    fewer after it rounds as if it were the only one."""
    nearest = x.to_f32()
    back = nearest.to_f64()
    bits = nearest.bits()
    away = Expr(arith.cmpf(arith.CmpFPredicate.OGT, absolute(back).value, absolute(x).value))
    inexact = Expr(arith.cmpf(arith.CmpFPredicate.ONE, back.value, x.value))
    truncated = bits - select(away, 1, bits.constant(0))
    return (truncated | select(inexact, 1, bits.constant(0))).as_f32()


def f32_to_f16(x: Expr) -> Expr:
    """By ranges of the magnitude: infinities and NaN, subnormal results, all others."""
    bits = x.bits()
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    # Adding 0.5 moves the last place of a subnormal f16 to that of the sum.
    half = x.constant(0.5)
    subnormal = Expr(arith.addf(magnitude.as_f32().value, half.value)).bits() - half.bits()
    infinite = magnitude.constant(0x7C00)
    nan = (magnitude >> 13) & 0x3FF | 0x7E00
    result = select(magnitude < 0x38800000, subnormal, normal)
    result = select(magnitude > 0x477FFFFF, infinite, result)
    result = select(magnitude > 0x7F800000, nan, result)
    sign = (bits >> 16) & 0x8000
    return (result | sign).cast(I16(), arith.trunci).cast(ir.F16Type.get(), arith.bitcast)


def f16_to_f32(x: Expr) -> Expr:
    """Magnitude bits moved to f32's place are too small by 2^112, subnormals included."""
    bits = x.cast(I16(), arith.bitcast).cast(I32(), arith.extui)
    shifted = (bits & 0x7FFF) << 13
    scaled = shifted.as_f32()
    finite = Expr(arith.mulf(scaled.value, scaled.constant(2.0**112).value)).bits()
    beyond = select(shifted > 0x0F800000, 0x7FC00000, shifted.constant(0x7F800000))
    magnitude = select(shifted > 0x0F7FFFFF, finite | beyond, finite)
    return (magnitude | ((bits & 0x8000) << 16)).as_f32()


def _is_nan(x: Expr) -> Expr:
    return Expr(arith.cmpf(arith.CmpFPredicate.UNO, x.value, x.value))
