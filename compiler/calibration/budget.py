"""Mixed precision: each product's width under a budget of bits, for the least sum of errors.

A product's error in a format is what error feedback is expected to leave, relative to the energy of
its outputs: sum over k of c_k |w_k - q_k|^2 with q the nearest codes and c the inverse squares of
the Cholesky factor's diagonal, which is what GPTQ's losses add up to. Errors of different products
count alike. Choosing one format for each product is a knapsack of many classes; it is solved by
bisecting the price of a bit (Everett 1963) and spending what is left on the best single steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import Scheme, parse_scheme, quantize_weight
from abqc.errors import InputError
from numpy.typing import NDArray

from .error_feedback import Feedback, output_error

F32 = NDArray[np.float32]

# What a product may have.
CANDIDATES = tuple(
    parse_scheme(text) for text in ("w2:g64", "w3", "w4", "w4:g32", "w5:g64", "w6:g64", "w8:g128")
)
BISECTIONS = 60


@dataclass(frozen=True)
class Budget:
    """At most `bits` a weight, over the products that are calibrated."""

    bits: float

    def __str__(self) -> str:
        return f"{self.bits:g}bpw"


def parse_budget(text: str) -> Budget:
    """Read `4bpw`, `3.2bpw`. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)bpw", text.strip())
    if found is None:
        raise InputError(
            f"'{text}' is no budget", hint="say the bits a weight may take, as in 4bpw or 3.2bpw"
        )
    return Budget(float(found[1]))


@dataclass(frozen=True)
class Option:
    """A product in one format: the bits of all its weights, and the error."""

    scheme: Scheme
    bits: float
    error: float


def options_of(weight: F32, feedback: Feedback) -> list[Option]:
    """The candidates for `weight` [N, K], of which none is worse than one of fewer bits."""
    energy = float(np.sum(output_error(weight, np.zeros_like(weight), feedback.moments)))
    found: list[Option] = []
    for scheme in CANDIDATES:
        tensor = quantize_weight(weight, scheme, importance=feedback.importance)
        lost = np.square(weight - tensor.dequantize()).sum(axis=0, dtype=np.float64)
        error = float(lost @ feedback.importance) / energy if energy > 0 else 0.0
        found.append(Option(scheme, tensor.bits_per_weight() * weight.size, error))
    found.sort(key=lambda option: option.bits)
    return [o for i, o in enumerate(found) if all(o.error < p.error for p in found[:i])]


def least_bits(options: Mapping[str, Sequence[Option]]) -> float:
    return sum(min(o.bits for o in choices) for choices in options.values())


def allocate(options: Mapping[str, Sequence[Option]], bits: float) -> dict[str, Option]:
    """An option for each name, within `bits` in all, which `least_bits` of them fit."""
    low, high = 0.0, max(o.error for choices in options.values() for o in choices) + 1.0
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        if _bits(_cheapest(options, price)) > bits:
            low = price
        else:
            high = price
    chosen = _cheapest(options, high)
    while True:
        left = bits - _bits(chosen)
        steps = [
            ((now.error - o.error) / (o.bits - now.bits), name, o)
            for name, now in chosen.items()
            for o in options[name]
            if o.error < now.error and o.bits - now.bits <= left
        ]
        if not steps:
            return chosen
        _, name, best = max(steps, key=lambda step: step[0])
        chosen[name] = best


def _cheapest(options: Mapping[str, Sequence[Option]], price: float) -> dict[str, Option]:
    return {
        name: min(choices, key=lambda o: (o.error + price * o.bits, o.bits))
        for name, choices in options.items()
    }


def _bits(chosen: Mapping[str, Option]) -> float:
    return sum(option.bits for option in chosen.values())
