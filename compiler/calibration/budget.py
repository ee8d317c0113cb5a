"""Budgets of mixed precision, and how one is spent: each product's width, for the least error.

A product's error in a format is what error feedback is expected to leave, relative to the energy of
its outputs: sum over k of c_k |w_k - q_k|^2 with q the nearest codes and c the inverse squares of
the Cholesky factor's diagonal, which is what GPTQ's losses add up to; times what that does to the
outputs of the model (`sensitivity.py`).

Choosing one format for each product is a knapsack of many classes; it is solved by bisecting the
price of what the budget is of (Everett 1963) and spending what is left on the best single steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from abqc.dialects.formats import Scheme, parse_scheme, quantize_weight
from abqc.errors import InputError
from numpy.typing import NDArray

from .error_feedback import Feedback, output_error

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# What a product may have.
TRELLIS_CODES = "w2v", "w3v", "w4v", "w5v", "w6v"
SCALARS = "w2:g64", "w3", "w4", "w4:g32", "w5:g64", "w6:g64", "w8:g128"
CANDIDATES = tuple(map(parse_scheme, (*TRELLIS_CODES, *SCALARS)))
SAMPLED_COLUMNS = 64  # of a weight, which show what a trellis code leaves of it
BISECTIONS = 60

Kind = Literal["bpw", "size", "latency"]
Shape = tuple[int, ...]
BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Budget:
    """At most `amount`: bits a weight over the products that are calibrated (`bpw`), bytes of the
    library (`size`), or seconds of all products (`latency`) of a run whose inputs have `shapes`."""

    kind: Kind
    amount: float
    text: str
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def parse_budget(text: str) -> Budget:
    """Read `3.2bpw`, `size=60MB` (or MiB) or `latency=12ms@input_ids=1x128,...`. Raises InputError.

    After the @ stand shapes of inputs.
    """
    text = text.strip()
    number = r"(\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"{number}bpw", text):
        return Budget("bpw", float(found[1]), text)
    if found := re.fullmatch(rf"size={number}({'|'.join(BYTES)})", text):
        return Budget("size", float(found[1]) * BYTES[found[2]], text)
    if found := re.fullmatch(rf"latency={number}({'|'.join(SECONDS)})(?:@(.+))?", text):
        amount = float(found[1]) * SECONDS[found[2]]
        return Budget("latency", amount, text, _shapes(text, found[3]))
    raise InputError(
        f"'{text}' is no budget",
        hint="say the bits a weight may take, as in 4bpw or 3.2bpw, the bytes of the library, as "
        "in size=60MB, or the time of a run, as in latency=12ms@input_ids=1x128",
    )


def _shapes(text: str, listed: str | None) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for part in listed.split(",") if listed else ():
        found = re.fullmatch(r"(.+)=(\d+(?:x\d+)*)?", part)
        if found is None:
            raise InputError(f"'{text}' is no budget: '{part}' is not NAME=SIZExSIZE...")
        shapes[found[1]] = tuple(int(size) for size in (found[2] or "").split("x") if size)
    return shapes


@dataclass(frozen=True)
class Weighed:
    """A product in one format: its weights, the bits of all of them, and the error."""

    scheme: Scheme
    weights: int
    bits: float
    error: float


@dataclass(frozen=True)
class Option:
    """The same with what it takes of the budget: bits, bytes or seconds."""

    scheme: Scheme
    cost: float
    error: float


def weigh(weight: F32, feedback: Feedback, *, trellis: bool = True) -> list[Weighed]:
    """The candidates for `weight` [N, K]; `trellis` codes among them."""
    energy = float(np.sum(output_error(weight, np.zeros_like(weight), feedback.moments)))
    found: list[Weighed] = []
    for scheme in CANDIDATES:
        if scheme.format.kind == "trellis" and not trellis:
            continue
        bits, lost = _rounded(weight, scheme, feedback.importance)
        error = lost / energy if energy > 0 else 0.0
        found.append(Weighed(scheme, weight.size, bits, error))
    return found


def _rounded(weight: F32, scheme: Scheme, importance: F32) -> tuple[float, float]:
    """The bits of all codes and scales, and the squared error of the nearest codes, with columns
    weighed by `importance`. Of trellis codes, which take long to find, by some columns."""
    k = weight.shape[1]
    every = max(1, k // SAMPLED_COLUMNS) if scheme.format.kind == "trellis" else 1
    part, counts = np.ascontiguousarray(weight[:, ::every]), importance[::every]
    tensor = quantize_weight(part, scheme, importance=counts)
    share = float(_energy(part) @ counts) / (float(_energy(weight) @ importance) or 1.0)
    stored = tensor.scale.size * 8 * tensor.scale.itemsize  # a scale for each channel
    bits = tensor.bits_per_weight() * part.size
    if every > 1:
        bits = (bits - stored) * weight.size / part.size + stored
    return bits, float(_energy(part - tensor.dequantize()) @ counts) / (share or 1.0)


def _energy(columns: F32) -> F64:
    return np.square(columns).sum(axis=0, dtype=np.float64)


def options_of(priced: Sequence[tuple[float | None, Weighed]]) -> list[Option]:
    """The formats of which none is worse than one that costs as little; those of no price (None)
    cannot be had."""
    found = [Option(w.scheme, price, w.error) for price, w in priced if price is not None]
    found.sort(key=lambda option: (option.cost, option.error))
    return [o for i, o in enumerate(found) if all(o.error < p.error for p in found[:i])]


def cheapest(options: Mapping[str, Sequence[Option]]) -> dict[str, Option]:
    """The option of least cost for each name."""
    return {name: min(choices, key=lambda o: o.cost) for name, choices in options.items()}


def total(chosen: Mapping[str, Option]) -> float:
    """What the options cost together."""
    return sum(option.cost for option in chosen.values())


def errors(chosen: Mapping[str, Option]) -> float:
    """The sum that a choice makes least."""
    return sum(option.error for option in chosen.values())


def allocate(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, Option]:
    """An option for each name, within `limit` in all, which the `cheapest` ones are."""
    low, high = 0.0, _highest_price(options)
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        if total(_best(options, price)) > limit:
            low = price
        else:
            high = price
    chosen = _best(options, high)
    while True:
        left = limit - total(chosen)
        steps = [
            ((now.error - o.error) / (o.cost - now.cost), name, o)
            for name, now in chosen.items()
            for o in options[name]
            if o.error < now.error and o.cost - now.cost <= left
        ]
        if not steps:
            return chosen
        _, name, best = max(steps, key=lambda step: step[0])
        chosen[name] = best


def _highest_price(options: Mapping[str, Sequence[Option]]) -> float:
    """A price at which every name takes its cheapest option."""
    steps = [
        (a.error - b.error) / (b.cost - a.cost)
        for choices in options.values()
        for a, b in pairwise(choices)
    ]
    return 2 * max(steps, default=0.0) + 1.0


def _best(options: Mapping[str, Sequence[Option]], price: float) -> dict[str, Option]:
    return {
        name: min(choices, key=lambda o: (o.error + price * o.cost, o.cost))
        for name, choices in options.items()
    }
