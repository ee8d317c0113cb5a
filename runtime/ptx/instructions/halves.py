"""Arithmetic on f16, bf16 and packed pairs of them (PTX ISA, "Half Precision Floating Point")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arithmetic import as_float, odd_sum, pair, pair_halves, to_bfloat, to_half
from ..decode import Decoder, Lanewise, Operation
from ..types import TYPES, ScalarType
from .floats import FUNCTIONS, extremum

_TINY_HALF = 2.0**-14


def arithmetic_of_halves(i: Decoder) -> Operation:
    """add, sub, mul, fma, min, max: exact in double precision, rounded once."""
    i.choose("rn")
    ftz, nan, relu = i.flag("ftz"), i.flag("NaN"), i.flag("relu")
    saturate = i.flag("sat")
    type = i.type()
    functions: dict[str, tuple[Callable, int]] = {
        "add": (lambda a, b: odd_sum(a, b), 2),
        "sub": (lambda a, b: odd_sum(a, -b), 2),
        "mul": (np.multiply, 2),
        "fma": (lambda a, b, c: odd_sum(a * b, c), 3),
        "min": (extremum("min", nan), 2),
        "max": (extremum("max", nan), 2),
    }
    if i.opcode not in functions:
        raise i.error(f"no {i.opcode} of .{type.name}")
    function, count = functions[i.opcode]
    return _lanewise(i, _limited(function, relu, saturate), type, count, ftz)


def _limited(function: Callable, relu: bool, saturate: bool) -> Callable:
    """Results clamped from below at 0 (.relu; NaN stays) or to [0, 1] (.sat; NaN is 0)."""
    if relu:
        return lambda *sources: np.maximum(function(*sources), 0.0)
    if saturate:
        return lambda *sources: np.fmin(np.fmax(function(*sources), 0.0), 1.0)
    return function


def signs_of_halves(i: Decoder) -> Operation:
    """neg and abs: bits, without a look at the value."""
    ftz = i.flag("ftz")
    type = i.type()
    i.arity(2)
    if ftz:
        function = np.negative if i.opcode == "neg" else np.abs
        return _lanewise(i, function, type, 1, True)
    bits = TYPES[f"u{type.bits}"]
    sign = bits.dtype.type(0x8000 if type.bits == 16 else 0x8000_8000)
    change = (lambda a: a ^ sign) if i.opcode == "neg" else (lambda a: a & ~sign)
    return Lanewise(change, i.result(0, bits), i.source(1, bits))


def functions_of_halves(i: Decoder) -> Operation:
    """ex2.approx, tanh.approx of halves."""
    if i.opcode not in ("ex2", "tanh"):
        raise i.error("there is no such function of 16-bit floats")
    i.need("approx")
    ftz = i.flag("ftz")
    return _lanewise(i, FUNCTIONS[i.opcode], i.type(), 1, ftz)


def _lanewise(i: Decoder, function: Callable, type: ScalarType, count: int, ftz: bool) -> Operation:
    """`function` works on doubles; a pair is done half by half, on its bits."""
    i.arity(count + 1)
    element = TYPES["bf16" if type.kind == "bf" else "f16"]
    bits = TYPES[f"u{type.bits}"]

    def one(*sources: np.ndarray) -> np.ndarray:
        return encode(function(*(_flushed(decode(a, element), ftz) for a in sources)), element, ftz)

    def two(*sources: np.ndarray) -> np.ndarray:
        halves = [pair_halves(a) for a in sources]
        return pair(one(*(half[0] for half in halves)), one(*(half[1] for half in halves)))

    sources = [i.source(k + 1, bits) for k in range(count)]
    return Lanewise(two if type.lanes == 2 else one, i.result(0, bits), *sources)


def decode(bits: np.ndarray, type: ScalarType) -> np.ndarray:
    """The bits of an f16 or bf16 as a double."""
    value = bits if type.kind == "bf" else bits.view(np.float16)
    return as_float(value, type).astype(np.float64)


def encode(exact: np.ndarray, type: ScalarType, ftz: bool = False, mode: str = "rn") -> np.ndarray:
    """A double, exact or rounded to odd, as the bits of an f16 or bf16."""
    if type.kind == "bf":
        return to_bfloat(exact, mode)
    half = to_half(exact, mode)
    return np.asarray(_flushed(half, ftz), np.float16).view(np.uint16)


def _flushed(a: np.ndarray, ftz: bool) -> np.ndarray:
    return np.where(np.abs(a) < _TINY_HALF, np.copysign(a.dtype.type(0), a), a) if ftz else a
