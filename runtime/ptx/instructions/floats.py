"""Arithmetic on floats (PTX ISA, "Floating Point Instructions"); 16-bit ones are in halves.py.

The `.approx` instructions give the correctly rounded result of the double-precision function, which
is within the bounds that the ISA states for hardware.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import arithmetic
from ..arithmetic import ROUNDINGS, canonical, flushed
from ..decode import Decoder, Lanewise, Operation, instruction
from ..types import TYPES, ScalarType
from .mixed import arithmetic_of_mixed, is_mixed
from .pairs import by_halves


def is_float(i: Decoder) -> bool:
    """Whether the instruction's last type is one of floats."""
    types = [modifier for modifier in i.rest() if modifier in TYPES]
    return bool(types) and TYPES[types[-1]].is_float


def is_half(i: Decoder) -> bool:
    return any(m in ("f16", "f16x2", "bf16", "bf16x2") for m in i.rest())


def lanewise(
    i: Decoder, function: Callable, type: ScalarType, count: int, ftz: bool, saturate: bool = False
) -> Operation:
    """`count` sources; subnormals flushed on both sides (.ftz), the result in [0, 1] (.sat)."""
    i.arity(count + 1)
    if ftz and type.element.bits != 32:
        raise i.error("only .f32 has .ftz")

    def flushing(*sources: np.ndarray) -> np.ndarray:
        return flushed(function(*(flushed(source, ftz) for source in sources)), ftz)

    def saturated(*sources: np.ndarray) -> np.ndarray:
        # NaN saturates to 0: the maximum that ignores NaN.
        return np.fmin(np.fmax(flushing(*sources), type.dtype.type(0)), type.dtype.type(1))

    chosen = saturated if saturate else flushing if ftz else function
    if type.lanes == 2:
        chosen = by_halves(chosen, type)
    return Lanewise(chosen, i.result(0, type), *(i.source(k + 1, type) for k in range(count)))


def _options(i: Decoder) -> tuple[str, bool, bool, ScalarType]:
    """Rounding, .ftz, .sat and the type."""
    return i.choose(*ROUNDINGS) or "rn", i.flag("ftz"), i.flag("sat"), i.type()


def _of_type(
    i: Decoder, type: ScalarType, mode: str, single: Callable, double: Callable
) -> Callable:
    if type.element.bits == 32:
        return single(mode)
    if mode != "rn":
        raise i.error(f".{mode}.f64 is not supported")
    return double


def add_sub(i: Decoder) -> Operation:
    if is_mixed(i):
        return arithmetic_of_mixed(i)
    if is_half(i):
        from .halves import arithmetic_of_halves

        return arithmetic_of_halves(i)
    mode, ftz, saturate, type = _options(i)
    add = _of_type(i, type, mode, arithmetic.rounded_sum, np.add)
    function = add if i.opcode == "add" else (lambda a, b: add(a, np.negative(b)))
    return lanewise(i, function, type, 2, ftz, saturate)


def mul(i: Decoder) -> Operation:
    if is_half(i):
        from .halves import arithmetic_of_halves

        return arithmetic_of_halves(i)
    mode, ftz, saturate, type = _options(i)
    function = _of_type(i, type, mode, arithmetic.rounded_product, np.multiply)
    return lanewise(i, function, type, 2, ftz, saturate)


@instruction("fma")
def fma(i: Decoder) -> Operation:
    """`fma`, and `mad` of floats, which is the same."""
    if is_mixed(i):
        return arithmetic_of_mixed(i)
    if is_half(i):
        from .halves import arithmetic_of_halves

        return arithmetic_of_halves(i)
    mode, ftz, saturate, type = _options(i)
    if type.element.bits == 32:
        function = arithmetic.rounded_fma(mode)
    else:
        function = _of_type(i, type, mode, arithmetic.rounded_fma, arithmetic.fma_f64())
    return lanewise(i, function, type, 3, ftz, saturate)


def div(i: Decoder) -> Operation:
    approximate = i.choose("approx", "full")
    mode, ftz, _, type = _options(i)
    function = _of_type(i, type, mode, arithmetic.rounded_quotient, np.divide)
    if approximate == "approx":
        function = _approximate_quotient
    return lanewise(i, function, type, 2, ftz)


def _approximate_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divisors beyond 2^126 make it 0 (NaN for an infinite dividend), as the ISA says."""
    large = (np.abs(b) > np.float32(2.0**126)) & ~np.isinf(b)
    zero = np.copysign(np.float32(0), a) * np.sign(b)
    return canonical(np.where(large, np.where(np.isinf(a), np.float32(np.nan), zero), a / b))


def sign_bits(i: Decoder) -> Operation:
    """`neg` and `abs`, which touch the sign alone."""
    if is_half(i):
        from .halves import signs_of_halves

        return signs_of_halves(i)
    ftz = i.flag("ftz")
    type = i.type()
    return lanewise(i, np.negative if i.opcode == "neg" else np.abs, type, 1, ftz)


def min_max(i: Decoder) -> Operation:
    """NaN is ignored, unless .NaN; -0 is less than +0; .xorsign takes the sign of the product."""
    if is_half(i):
        from .halves import arithmetic_of_halves

        return arithmetic_of_halves(i)
    ftz, nan, xorsign = i.flag("ftz"), i.flag("NaN"), i.flag("xorsign")
    absolute = i.flag("abs")
    type = i.type()
    if xorsign != absolute:
        raise i.error(".xorsign and .abs go together")
    function = extremum(i.opcode, nan)
    count = i.arity(3, 4) - 1
    if xorsign:
        return lanewise(i, _with_sign_of_product(function), type, 2, ftz)
    if count == 3:
        two = function
        function = lambda a, b, c: two(two(a, b), c)  # noqa: E731
    return lanewise(i, function, type, count, ftz)


def extremum(opcode: str, nan: bool) -> Callable:
    """Minimum or maximum, with signed zeros in order."""
    ignoring, propagating = (np.fmin, np.minimum) if opcode == "min" else (np.fmax, np.maximum)
    choose = propagating if nan else ignoring

    def chosen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = choose(a, b)
        zeros = (result == 0) & (a == b)
        if zeros.any():
            negative = (
                np.signbit(a) | np.signbit(b)
                if opcode == "min"
                else (np.signbit(a) & np.signbit(b))
            )
            zero = result.dtype.type(0)
            result = np.where(zeros, np.where(negative, -zero, zero), result)
        return canonical(result) if result.dtype == np.float32 else result

    return chosen


def _with_sign_of_product(function: Callable) -> Callable:
    def signed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        magnitude = function(np.abs(a), np.abs(b))
        negative = np.signbit(a) ^ np.signbit(b)
        return np.where(negative, -magnitude, magnitude)

    return signed


@instruction("copysign")
def copysign(i: Decoder) -> Operation:
    """The magnitude of the second source with the sign of the first."""
    type = i.type()
    return lanewise(i, lambda a, b: np.copysign(b, a), type, 2, False)


def _in_double(function: Callable) -> Callable:
    """A function of f32, computed as doubles and rounded once more."""
    return lambda a: canonical(function(a.astype(np.float64)).astype(np.float32))


@instruction("rcp")
def reciprocal(i: Decoder) -> Operation:
    approximate = i.flag("approx")
    mode, ftz, _, type = _options(i)
    divide = _of_type(
        i, type, "rn" if approximate else mode, arithmetic.rounded_quotient, np.divide
    )
    one = type.dtype.type(1)
    return lanewise(i, lambda a: divide(one, a), type, 1, ftz if type.bits == 32 else False)


@instruction("sqrt")
def square_root(i: Decoder) -> Operation:
    approximate = i.flag("approx")
    mode, ftz, _, type = _options(i)
    root = _of_type(i, type, "rn" if approximate else mode, arithmetic.rounded_root, np.sqrt)
    return lanewise(i, root, type, 1, ftz)


@instruction("rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def approximate_function(i: Decoder) -> Operation:
    if is_half(i):
        from .halves import functions_of_halves

        return functions_of_halves(i)
    i.need("approx")
    ftz = i.flag("ftz")
    type = i.type()
    function = FUNCTIONS[i.opcode]
    if type.bits == 64 and i.opcode != "rsqrt":
        raise i.error("there is no such function of .f64")
    return lanewise(i, _in_double(function) if type.bits == 32 else function, type, 1, ftz)


def _reciprocal_root(a: np.ndarray) -> np.ndarray:
    return 1.0 / np.sqrt(a)


FUNCTIONS: dict[str, Callable] = {
    "rsqrt": _reciprocal_root,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
