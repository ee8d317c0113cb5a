"""Transcendental functions as straight-line arithmetic that LLVM vectorizes.

`expand_math.py` replaces `math` operations on f32 by these polynomials in `arith` operations: no
calls, no branches, no tables. Methods and most coefficients are those of Cephes (Moshier) and of
Eigen's rational approximations of tanh and erf. Errors against the exact result, over all of f32
unless a range is given:

    exp, exp2, expm1, log, log2, log10, log1p       3 ulp, subnormal results included
    exp of a sum 1 + e^x that only divides          6 + |x| ulp to x = 87, infinity from 89 on
    tanh, erf                                       8 ulp, 4e-7 absolute
    sin, cos    3 ulp or 1e-7 absolute for |x| <= 2^20, 4e-7 absolute up to 2^30, NaN beyond
    rsqrt, powf                                     2 ulp

Infinities, zeros and NaN give what C's libm gives (the sign of a zero result is not kept by erf and
tanh of subnormals). Multiplications and additions carry only the flag `contract`, because the
range reductions are exact only as written: put other fast-math flags on a module before this pass,
never after it.
"""

from __future__ import annotations

import math as py_math
import struct
from collections.abc import Sequence

from abqc.dialects.mlir import arith, ir, math

from .expr import Expr, absolute, clamp, copy_sign, scalar_type, select

LOG2_E = 1 / py_math.log(2)
SQRT_HALF = py_math.sqrt(0.5)
F32_MAX_EXPONENT, F32_MANTISSA_BITS = 127, 23
F64_MAX_EXPONENT, F64_MANTISSA_BITS = 1023, 52
F32_SMALLEST_NORMAL = 2.0**-126
F32_MAX = 2.0**128 - 2.0**104
LOG_2 = (0.693359375, -2.12194440e-4)  # in two parts: a small integer times the first is exact

# Cephes expf, logf, sinf and cosf; the highest power comes first.
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
# e^f for |f| <= log 2 / 2, within 3e-9 (Lawson's iteration).
EXP_SUM = (1.3814540e-3, 8.3687452e-3, 4.1668391e-2, 1.6666520e-1, 4.9999993e-1, 1.0, 1.0)
# 2^f for |f| <= 1/2, relative error 9e-8; the constant is 1 (Lawson's iteration).
EXP2 = (1.3264727e-3, 9.6715130e-3, 5.5507336e-2, 2.4022242e-1, 6.9314700e-1, 1.0)
LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

# Eigen's generic_fast_tanh_float and erf: x * P(x^2) / Q(x^2).
TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule; the highest power comes first."""
    total = x.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def nearest(x: Expr) -> tuple[Expr, Expr]:
    """The nearest integer, as a float and as an integer of the same width; |x| < 2^22 (f64: 2^51).

    Adding 1.5 * 2^mantissa bits leaves the integer in the low bits.
    """
    mantissa = (
        F64_MANTISSA_BITS if isinstance(scalar_type(x.type), ir.F64Type) else F32_MANTISSA_BITS
    )
    magic = x.constant(1.5 * 2.0**mantissa)
    shifted = Expr(arith.addf(x.value, magic.value))
    return Expr(arith.subf(shifted.value, magic.value)), shifted.bits() - magic.bits()


def power_of_two(n: Expr) -> Expr:
    """2^n as f32, for -127 < n < 128; infinity for 128."""
    return ((n + F32_MAX_EXPONENT) << F32_MANTISSA_BITS).as_f32()


def scale_by_power(x: Expr, n: Expr) -> Expr:
    """x * 2^n for -252 < n < 254, rounded once at most where the result is subnormal."""
    half = n >> 1
    return x * power_of_two(half) * power_of_two(n - half)


def _reduce_exp(x: Expr) -> tuple[Expr, Expr]:
    """(f, n) with x = f + n log 2 and |f| <= log 2 / 2."""
    n, integer = nearest(x * LOG2_E)
    high, low = LOG_2
    return x - n * high - n * low, integer


def _expm1_reduced(f: Expr) -> Expr:
    return polynomial(f, EXP) * (f * f) + f


def exp(x: Expr) -> Expr:
    """2^n is a product of two powers, whose exponents are halves of n with the bias: the sum that
    rounds to n has n + 254 in its low bits."""
    x = clamp(x, -104.0, 89.0)
    round_ = 1.5 * 2.0**F32_MANTISSA_BITS + 2 * F32_MAX_EXPONENT
    rounded = x * LOG2_E + round_
    n = Expr(arith.subf(rounded.value, x.constant(round_).value))
    f = x - n * LOG_2[0] - n * LOG_2[1]
    biased = rounded.bits()
    half = biased >> 1
    powers = [(part << F32_MANTISSA_BITS).as_f32() for part in (half, biased - half)]
    return polynomial(f, EXP_SUM) * powers[0] * powers[1]


def exp_of_divisor(x: Expr) -> Expr:
    """e^x where 1 + e^x only divides, as in a logistic function: what is below 2^-125 does not
    count, and what is above 2^127.5 may be infinite, for it leaves next to nothing."""
    x = clamp(x, -87.0, 89.0)
    n, integer = nearest(x * LOG2_E)
    return polynomial(x * LOG2_E - n, EXP2) * power_of_two(integer)


def exp2(x: Expr) -> Expr:
    x = clamp(x, -151.0, 129.0)
    n, integer = nearest(x)
    return scale_by_power(_expm1_reduced((x - n) * py_math.log(2)) + 1.0, integer)


def expm1(x: Expr) -> Expr:
    """2^n (e^f - 1) + (2^n - 1); above 80 the one no longer counts."""
    f, n = _reduce_exp(clamp(x, -104.0, 80.0))
    power = power_of_two(select(n < -126, -126, n))
    small = _expm1_reduced(f) * power + (power - 1.0)
    return select(x > 80.0, exp(x), select(x.equals(0.0), x, small))


def _split_log(x: Expr) -> tuple[Expr, Expr]:
    """(m - 1, e) with x = m * 2^e and sqrt(1/2) <= m < sqrt(2), for x > 0, subnormal ones too."""
    tiny = x < F32_SMALLEST_NORMAL
    bits = select(tiny, x * 2.0**F32_MANTISSA_BITS, x).bits()
    offset = bits - ir_bits(SQRT_HALF)
    exponent = (offset >> F32_MANTISSA_BITS) - select(tiny, F32_MANTISSA_BITS, offset.constant(0))
    mantissa = ((offset & 0x007FFFFF) + ir_bits(SQRT_HALF)).as_f32()
    return mantissa - 1.0, exponent.from_int(scalar_type(x.type))


def ir_bits(number: float) -> int:
    """The bits of an f32."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def _log_edges(x: Expr, result: Expr, at: float) -> Expr:
    """-inf at x = `at`, NaN below it, x itself for +inf and NaN."""
    result = select(x < at, py_math.nan, result)
    result = select(x.equals(at), -py_math.inf, result)
    return select(x < py_math.inf, result, x)


def log(x: Expr) -> Expr:
    f, e = _split_log(x)
    return _log_edges(x, _log_sum(f, e, f.constant(0.0)), 0.0)


def _log_sum(f: Expr, e: Expr, correction: Expr) -> Expr:
    """log((1 + f) 2^e) + correction, Cephes' order of summation; log 2 in two parts."""
    z = f * f
    tail = polynomial(f, LOG) * f * z + e * -2.12194440e-4 + correction - z * 0.5
    return f + tail + e * 0.693359375


def log2(x: Expr) -> Expr:
    """log2(m) = (m - 1) * log2(e) + ..., with e added last so that powers of two are exact."""
    f, e = _split_log(x)
    z = f * f
    tail = polynomial(f, LOG) * f * z - z * 0.5
    high = 1.4423828125  # log2(e) in 11 bits; the rest below
    result = tail * LOG2_E + f * (LOG2_E - high) + f * high + e
    return _log_edges(x, result, 0.0)


def log10(x: Expr) -> Expr:
    """In f64, so that the powers of ten come out."""
    return (log_f64(x.to_f64()) * (1 / py_math.log(10))).to_f32()


def log1p(x: Expr) -> Expr:
    """log(u) + (x - (u - 1)) / u with u = 1 + x rounded (Kahan)."""
    u = x + 1.0
    lost = x - (u - 1.0)
    f, e = _split_log(u)
    small = absolute(x) < 1e-4
    series = x - x * x * (0.5 - x * (1 / 3))
    result = select(small, series, _log_sum(f, e, lost / u))
    return _log_edges(x, result, -1.0)


def _rational(x: Expr, p: Sequence[float], q: Sequence[float]) -> Expr:
    z = x * x
    return x * (polynomial(z, p) / polynomial(z, q))


def tanh(x: Expr) -> Expr:
    result = _rational(clamp(x, -7.90531110763549805, 7.90531110763549805), TANH_P, TANH_Q)
    return select(absolute(x) < 4e-4, x, result)


def erf(x: Expr) -> Expr:
    return clamp(_rational(clamp(x, -4.0, 4.0), ERF_P, ERF_Q), -1.0, 1.0)


def _reduce_quarter_turns(x: Expr) -> tuple[Expr, Expr]:
    """(r, n) with x = r + n pi / 2 and |r| <= pi / 4.

    In f64, with pi / 2 in two parts: n times the first part (33 bits, from fdlibm) is exact for
    n < 2^20. NaN for |x| > 2^30.
    """
    wide = select(absolute(x) > 2.0**30, py_math.nan, x).to_f64()
    n, integer = nearest(wide * (2 / py_math.pi))
    r = wide - n * 1.57079632673412561417e00 - n * 6.07710050650619224932e-11
    return r.to_f32(), integer.cast(ir.IntegerType.get_signless(32), arith.trunci)


def _of_quarter(r: Expr) -> tuple[Expr, Expr]:
    """Sine and cosine of |r| <= pi / 4."""
    z = r * r
    sine = polynomial(z, SIN) * z * r + r
    cosine = polynomial(z, COS) * (z * z) - z * 0.5 + 1.0
    return sine, cosine


def sine_and_cosine(x: Expr) -> tuple[Expr, Expr]:
    """Of r + n pi / 2: each is the other one's for odd n, and changes its sign every half turn."""
    r, n = _reduce_quarter_turns(x)
    sine, cosine = _of_quarter(r)
    swapped = (n & 1).equals(1)

    def signed(value: Expr, quarter: Expr) -> Expr:
        return select((quarter & 2).equals(0), value, -value)

    return (
        signed(select(swapped, cosine, sine), n),
        signed(select(swapped, sine, cosine), n + 1),
    )


def sin(x: Expr) -> Expr:
    return sine_and_cosine(x)[0]


def cos(x: Expr) -> Expr:
    return sine_and_cosine(x)[1]


def rsqrt(x: Expr) -> Expr:
    return 1.0 / Expr(math.sqrt(x.value))


def log_f64(x: Expr) -> Expr:
    """log to 1e-12 of an f32 widened to f64: log m = 2 atanh((m - 1) / (m + 1)) by its series."""
    start = 0x3FE6A09E667F3BCD  # sqrt(1/2)
    offset = x.bits() - start
    exponent = (offset >> F64_MANTISSA_BITS).from_int(scalar_type(x.type))
    m = ((offset & (2**F64_MANTISSA_BITS - 1)) + start).as_f64()
    s = (m - 1.0) / (m + 1.0)
    series = polynomial(s * s, [2 / (2 * i + 1) for i in reversed(range(8))])
    return _log_edges(x, s * series + exponent * py_math.log(2), 0.0)


def _exp_f64(x: Expr) -> Expr:
    """exp to 1e-9 by its Taylor series; the caller rounds to f32, so that +-200 is all it needs."""
    x = clamp(x, -200.0, 200.0)
    n, integer = nearest(x * LOG2_E)
    f = x - n * py_math.log(2)
    series = polynomial(f, [1 / py_math.factorial(i) for i in reversed(range(10))])
    return series * ((integer + F64_MAX_EXPONENT) << F64_MANTISSA_BITS).as_f64()


def _integer_power(x: Expr, exponent: int) -> Expr:
    """Repeated squaring."""
    result, square = None, x
    while exponent:
        if exponent & 1:
            result = square if result is None else result * square
        exponent >>= 1
        square = square * square if exponent else square
    return x.constant(1.0) if result is None else result


def power_by_constant(x: Expr, exponent: float) -> Expr | None:
    """Powers that need no logarithm; None for the others."""
    if exponent == 0.5:
        return Expr(math.sqrt(x.value))
    if exponent == -0.5:
        return rsqrt(x)
    if exponent == int(exponent) and abs(exponent) <= 4:
        power = _integer_power(x, abs(int(exponent)))
        return power if exponent >= 0 else 1.0 / power
    return None


def powf(x: Expr, y: Expr) -> Expr:
    """exp(y log |x|) in f64, with the sign of an odd power; C's rules for the edges."""
    magnitude = absolute(x)
    wide = clamp(y, -F32_MAX, F32_MAX).to_f64()  # 0 times infinity would be NaN
    result = _exp_f64(wide * log_f64(magnitude.to_f64())).to_f32()
    whole = Expr(math.floor(y.value)).equals(y)
    even = Expr(math.floor((y * 0.5).value)).equals(y * 0.5)
    result = select(whole, select(even, result, copy_sign(result, x)), result)
    finite_negative = (x < 0.0) & (x > -py_math.inf)
    undefined = select(finite_negative, x.constant(py_math.nan), result)
    result = select(whole, result, undefined)
    result = select(x.equals(1.0), 1.0, result)
    return select(y.equals(0.0), 1.0, result)
