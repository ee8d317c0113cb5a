"""exp of numbers that are not positive, as a softmax has them: half the instructions of any exp.

Cephes' reduction and polynomial (arithmetic/polynomials.py). 2^n comes from the bits of the sum
that rounds to n; as n <= 0, a factor keeps it normal, and taking that off rounds once, where the
result is subnormal.
"""

from __future__ import annotations

from ..arithmetic.polynomials import EXP, F32_MANTISSA_BITS, F32_MAX_EXPONENT, LOG2_E, LOG_2
from ..builder import Builder, Value, vec
from .float_products.tile import multiply_add

FACTOR = 64  # as a power of two
# Of f32 from 2^23 on the last bit counts ones. In a sum with this the low bits are those of
# n + FACTOR as an exponent.
ROUND = 1.5 * 2.0**F32_MANTISSA_BITS + F32_MAX_EXPONENT + FACTOR
LOWEST = -104.0  # whose exp is 0


def exp_of_negative(b: Builder, x: Value) -> Value:
    """exp(x) of a vector of f32, none of them positive, within 2 ulp; of NaN NaN."""

    def constant(number: float) -> Value:
        return b.const(number, x.type)

    x = b.max(constant(LOWEST), x)
    rounded = multiply_add(b, x, constant(LOG2_E), constant(ROUND))
    n = rounded - ROUND
    for part in LOG_2:
        x = multiply_add(b, n, constant(-part), x)
    power = constant(EXP[0])
    for coefficient in (*EXP[1:], 1.0, 1.0):
        power = multiply_add(b, power, x, constant(coefficient))
    scale = b.bitcast(rounded, vec(x.lanes, "i32")) << F32_MANTISSA_BITS
    return power * b.bitcast(scale, x.type) * 2.0**-FACTOR
