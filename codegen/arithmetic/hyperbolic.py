"""Hyperbolic functions, inverse functions and the tangent as straight-line arithmetic on f32.

The polynomials are those of Cephes (Moshier: asinf, atanf); the others rest on `polynomials.py`.
Errors against the exact result over all of f32: tan as sin and cos, near its poles 4 ulp of its
argument's reduction; the others 4 ulp, sinh and cosh 6 ulp.
"""

from __future__ import annotations

import math as py_math

from abqc.dialects.mlir import math

from .expr import Expr, absolute, copy_sign, select
from .polynomials import exp, expm1, log, log1p, polynomial, sine_and_cosine

ASIN = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)

_LARGE = 2.0**30  # from here on x + 1 is x
_FAR = 80.0  # exp of more may overflow before it is halved


def tan(x: Expr) -> Expr:
    sine, cosine = sine_and_cosine(x)
    return sine / cosine


def _sqrt(x: Expr) -> Expr:
    return Expr(math.sqrt(x.value))


def _asin_of_magnitude(a: Expr) -> Expr:
    """asin of 0 <= a <= 1; NaN beyond. From 1/2 on as pi / 2 - 2 asin(sqrt((1 - a) / 2))."""
    far = a > 0.5
    z = select(far, (1.0 - a) * 0.5, a * a)
    s = select(far, _sqrt(z), a)
    near = polynomial(z, ASIN) * z * s + s
    return select(far, py_math.pi / 2 - near * 2.0, near)


def asin(x: Expr) -> Expr:
    return copy_sign(_asin_of_magnitude(absolute(x)), x)


def acos(x: Expr) -> Expr:
    """Near 1 and -1 as 2 asin(sqrt((1 - |x|) / 2)), which loses nothing there."""
    a = absolute(x)
    z = (1.0 - a) * 0.5
    s = _sqrt(z)
    near_one = (polynomial(z, ASIN) * z * s + s) * 2.0
    far = select(x < 0.0, py_math.pi - near_one, near_one)
    return select(a > 0.5, far, py_math.pi / 2 - asin(x))


def atan(x: Expr) -> Expr:
    """In three ranges, cut at tan(pi / 8) and tan(3 pi / 8)."""
    a = absolute(x)
    large, middle = a > 2.414213562373095, a > 0.4142135623730950
    t = select(large, -1.0 / a, select(middle, (a - 1.0) / (a + 1.0), a))
    zero = t.constant(0.0)
    base = select(large, py_math.pi / 2, select(middle, py_math.pi / 4, zero))
    z = t * t
    return copy_sign(base + (polynomial(z, ATAN) * z * t + t), x)


def _half_exp_of_large(a: Expr) -> Expr:
    """exp(a) / 2 where exp(a) may overflow, but its half need not."""
    root = exp(a * 0.5)
    return root * 0.5 * root


def sinh(x: Expr) -> Expr:
    a = absolute(x)
    e = expm1(a)
    near = (e + e / (e + 1.0)) * 0.5
    result = select(a > _FAR, _half_exp_of_large(a), near)
    return copy_sign(result, x)


def cosh(x: Expr) -> Expr:
    a = absolute(x)
    e = exp(a)
    return select(a > _FAR, _half_exp_of_large(a), e * 0.5 + 0.5 / e)


def asinh(x: Expr) -> Expr:
    a = absolute(x)
    near = log1p(a + a * a / (_sqrt(a * a + 1.0) + 1.0))
    result = select(a > _LARGE, log(a) + py_math.log(2), near)
    return copy_sign(result, x)


def acosh(x: Expr) -> Expr:
    t = x - 1.0
    near = log1p(t + _sqrt(t * 2.0 + t * t))
    result = select(x > _LARGE, log(x) + py_math.log(2), near)
    return select(x < 1.0, py_math.nan, result)


def atanh(x: Expr) -> Expr:
    a = absolute(x)
    return copy_sign(log1p(a * 2.0 / (1.0 - a)) * 0.5, x)
