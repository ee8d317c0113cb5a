"""exp of numbers that are not positive, as a softmax has them: two thirds of exp's instructions.

Reduction and polynomial are those of exp (arithmetic/polynomials.py). 2^n is one instruction where
there is VSCALEFPS. Elsewhere it comes from the bits of the sum that rounds to n; as n <= 0, a
factor keeps it normal, and taking that off rounds once, where the result is subnormal.
"""

from __future__ import annotations

from ..arithmetic.polynomials import EXP_SUM, F32_MANTISSA_BITS, F32_MAX_EXPONENT, LOG2_E, LOG_2
from ..builder import Builder, Value, vec
from .float_products.tile import multiply_add

FACTOR = 64  # as a power of two
# Of f32 from 2^23 on the last bit counts ones.
ROUND = 1.5 * 2.0**F32_MANTISSA_BITS
LOWEST = -104.0  # whose exp is 0
SCALEF_LANES = 16
CURRENT_ROUNDING = 4


def exp_of_negative(b: Builder, x: Value) -> Value:
    """exp(x) of a vector of f32, none of them positive, within 2 ulp; of NaN NaN."""

    def constant(number: float) -> Value:
        return b.const(number, x.type)

    scales = b.isa.vector_bits == 512 and x.lanes == SCALEF_LANES
    # In a sum with this the low bits are those of n + FACTOR as an exponent.
    round_ = ROUND if scales else ROUND + F32_MAX_EXPONENT + FACTOR
    x = b.max(constant(LOWEST), x)
    rounded = multiply_add(b, x, constant(LOG2_E), constant(round_))
    n = rounded - round_
    for part in LOG_2:
        x = multiply_add(b, n, constant(-part), x)
    power = constant(EXP_SUM[0])
    for coefficient in EXP_SUM[1:]:
        power = multiply_add(b, power, x, constant(coefficient))
    if scales:
        name, all_lanes = "llvm.x86.avx512.mask.scalef.ps.512", b.const(-1, "i16")
        rounding = b.const(CURRENT_ROUNDING, "i32")
        return b.intrinsic(name, x.type, power, n, power, all_lanes, rounding)
    scale = b.bitcast(rounded, vec(x.lanes, "i32")) << F32_MANTISSA_BITS
    return power * b.bitcast(scale, x.type) * 2.0**-FACTOR
