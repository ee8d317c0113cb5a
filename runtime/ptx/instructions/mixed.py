"""Arithmetic of f32 whose other operands are f16 or bf16 (PTX ISA 8.6, "Mixed Precision Floating
Point Instructions"; sm_100 and later)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import arithmetic
from ..arithmetic import ROUNDINGS, as_float
from ..decode import Decoder, Lanewise, Operation
from ..types import TYPES


def is_mixed(i: Decoder) -> bool:
    """Whether the types are f32 and one of 16 bits, as in `fma.rn.f32.f16`."""
    types = [modifier for modifier in i.rest() if modifier in TYPES]
    return len(types) == 2 and types[0] == "f32" and types[1] in ("f16", "bf16")


def arithmetic_of_mixed(i: Decoder) -> Operation:
    """add and sub, whose first operand has 16 bits, and fma, whose factors have; rounded once."""
    mode, saturate = i.choose(*ROUNDINGS) or "rn", i.flag("sat")
    single, half = i.type(), i.type()
    add = arithmetic.rounded_sum(mode)
    functions: dict[str, tuple[Callable, int]] = {
        "add": (add, 1),
        "sub": (lambda a, c: add(a, np.negative(c)), 1),
        "fma": (arithmetic.rounded_fma(mode), 2),
    }
    function, narrow = functions[i.opcode]
    i.arity(narrow + 2)

    def mixed(*sources: np.ndarray) -> np.ndarray:
        halves = [bits if half.kind == "bf" else bits.view(np.float16) for bits in sources[:narrow]]
        result = function(*(as_float(value, half) for value in halves), sources[narrow])
        # NaN saturates to 0.
        return np.fmin(np.fmax(result, np.float32(0)), np.float32(1)) if saturate else result

    bits = [i.source(k + 1, TYPES["u16"]) for k in range(narrow)]
    return Lanewise(mixed, i.result(0, single), *bits, i.source(narrow + 1, single))
