"""Writes numerics.json, the golden vectors of docs/numerics.md, from the text of that page alone.

Everything is computed in exact fractions and rounded where the page says so: no numpy, and nothing
of abqc. `python tests/golden/make_numerics.py` writes the file again.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("numerics.json")
INTEGER_WIDTHS = range(1, 9)
GROUP_SIZE = 4


def nearest_binary(x: Fraction, precision: int, least: int, largest: int) -> float:
    """The nearest binary float, ties to even: `precision` bits, subnormals down to 2^least,
    infinity from 2^largest on."""
    if x == 0:
        return 0.0
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** max(exponent - precision + 1, least)
    rounded = round(x / ulp) * ulp
    return math.copysign(math.inf, x) if abs(rounded) >= 2**largest else float(rounded)


def f32(x: Fraction) -> float:
    return nearest_binary(x, 24, -149, 128)


def f16(x: Fraction) -> float:
    return nearest_binary(x, 11, -24, 16)


def divide(a: float, b: float) -> float:
    return f32(Fraction(a) / Fraction(b))


def round_even(x: float) -> int:
    return round(Fraction(x))


def clamp(q: int, low: int, high: int) -> int:
    return max(low, min(high, q))


def codes_of(width: str, symmetric: bool) -> list[int]:
    """The legal codes, ascending."""
    if width in ("2*", "t"):
        largest = {"2*": 2, "t": 1}[width]
        return list(range(-largest, largest + 1))
    bits = int(width)
    if not symmetric:
        return list(range(1 << bits))
    return [-1, 1] if bits == 1 else list(range(-(1 << bits - 1), 1 << bits - 1))


def stored_bits(width: str, symmetric: bool) -> list[int]:
    """Each legal code as it is stored, before packing."""
    bits = {"2*": 3, "t": 2}.get(width) or int(width)
    if symmetric and bits == 1:
        return [0, 1]
    return [q % (1 << bits) for q in codes_of(width, symmetric)]


def encode(x: float, scale: float, zero: int, codes: list[int]) -> int:
    if codes == [-1, 1]:
        return -1 if x < 0 else 1
    return clamp(round_even(divide(x, scale)) + zero, codes[0], codes[-1])


def weight_scale(exact: float, zero_becomes: float = 1.0) -> float:
    """f16, to nearest, and upwards below the normal range."""
    scale = f16(Fraction(exact))
    if exact < 2.0**-14 and scale < exact:
        scale += 2.0**-24
    return scale if exact else zero_becomes


def quantize_weight_group(x: list[float], width: str, symmetric: bool) -> dict[str, Any]:
    codes = codes_of(width, symmetric)
    zero = 0
    if codes == [-1, 1]:
        scale = weight_scale(divide(sum(abs(v) for v in x), len(x)), zero_becomes=0.0)
    elif symmetric:
        scale = weight_scale(divide(max(abs(v) for v in x), codes[-1]))
    else:
        low, high = min(0.0, *x), max(0.0, *x)
        scale = weight_scale(divide(f32(Fraction(high) - Fraction(low)), codes[-1]))
        zero = clamp(round_even(divide(-low, scale)), 0, codes[-1])
    return {"scale": scale, "zero": zero, "codes": [encode(v, scale, zero, codes) for v in x]}


def quantize_row(x: list[float], bits: int, symmetric: bool) -> dict[str, Any]:
    """A row of activations, at run time."""
    codes = codes_of(str(bits), symmetric)
    broken = {"scale": math.nan, "zero": 0, "codes": [0] * len(x)}
    if not all(map(math.isfinite, x)):
        return broken
    low, high = min(0.0, *x), max(0.0, *x)
    if codes == [-1, 1]:
        scale = divide(sum(abs(v) for v in x), len(x))
    elif symmetric:
        scale = divide(max(high, -low), codes[-1])
    else:
        span = f32(Fraction(high) - Fraction(low))
        if math.isinf(span):
            return broken
        scale = divide(span, codes[-1])
    if scale == 0 and codes != [-1, 1]:
        scale = 1.0
    zero = 0 if symmetric else clamp(round_even(divide(-low, scale)), 0, codes[-1])
    return {"scale": scale, "zero": zero, "codes": [encode(v, scale, zero, codes) for v in x]}


def format_cases() -> list[dict[str, Any]]:
    rows = [(str(n), symmetric) for n in INTEGER_WIDTHS for symmetric in (True, False)]
    return [
        {"width": width, "symmetric": symmetric, "codes": codes_of(width, symmetric),
         "stored": stored_bits(width, symmetric)}
        for width, symmetric in [*rows, ("2*", True), ("t", True)]
    ]  # fmt: skip


def weight_cases(draw: random.Random) -> list[dict[str, Any]]:
    """Two rows of 10 weights in groups of 4, 4 and 2; multiples of 1/64, so that sums are exact."""
    rows = [[draw.randint(-200, 200) / 64 for _ in range(10)] for _ in range(2)]
    rows[0][4:8] = [0.0] * 4
    rows[1][:4] = [2.0**-24, -(2.0**-23), 0.0, 2.0**-22]  # scales below f16's normal range
    cases = []
    for n in INTEGER_WIDTHS:
        for symmetric in (True, False):
            text = f"w{n}:g{GROUP_SIZE}:{'sym' if symmetric else 'asym'}"
            quantize = partial(quantize_weight_group, width=str(n), symmetric=symmetric)
            cases.append(weight_case(text, rows, quantize))
    for width, largest in (("2*", 2), ("t", 1)):
        codes = [[draw.randint(-largest, largest) for _ in range(10)] for _ in range(2)]
        for row in codes:
            row[0] = row[5] = row[9] = largest
        rows = [[0.25 * q for q in row] for row in codes]
        cases.append(
            weight_case(f"w{width}:g{GROUP_SIZE}:sym", rows, partial(exact_group, scale=0.25))
        )
    return cases


def exact_group(x: list[float], scale: float) -> dict[str, Any]:
    """Weights that lie on the codes of a format keep them, whatever looks for the scale."""
    return {"scale": scale, "zero": 0, "codes": [round(v / scale) for v in x]}


def weight_case(
    scheme: str, rows: list[list[float]], quantize: Callable[[list[float]], dict[str, Any]]
) -> dict[str, Any]:
    groups = [[quantize(row[i : i + GROUP_SIZE]) for i in range(0, 10, GROUP_SIZE)] for row in rows]
    return {
        "scheme": scheme,
        "w": rows,
        "codes": [[q for group in row for q in group["codes"]] for row in groups],
        "scale": [[group["scale"] for group in row] for row in groups],
        "zero": [[group["zero"] for group in row] for row in groups],
    }


def activation_cases(draw: random.Random) -> list[dict[str, Any]]:
    """Rows of 9: ordinary, one-sided, ties, zeros, subnormal, not finite, overflowing."""
    rows = [
        [draw.randint(-300, 300) / 64 for _ in range(9)],
        [draw.randint(0, 300) / 64 for _ in range(9)],
        [-127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -0.0, 127.0],
        [0.0] * 9,
        [2.0**-149, -(2.0**-149), 0.0, 2.0**-140, 0.0, 0.0, -(2.0**-141), 0.0, 0.0],
        [1.0, math.nan, *[0.5] * 7],
        [1.0, -math.inf, *[0.5] * 7],
        [3.0 * 2.0**126, -3.0 * 2.0**126, *[0.0] * 7],  # max - min overflows
    ]
    cases = []
    for n in INTEGER_WIDTHS:
        for symmetric in (True, False):
            done = [quantize_row(row, n, symmetric) for row in rows]
            if n == 1 and symmetric:
                done[-1] = done[-2]  # the sum overflows too
            cases.append(
                {
                    "scheme": f"a{n}:token:{'sym' if symmetric else 'asym'}",
                    "x": rows,
                    "codes": [row["codes"] for row in done],
                    "scale": [row["scale"] for row in done],
                    "zero": [row["zero"] for row in done],
                }
            )
    return cases


def matmul_cases(draw: random.Random) -> list[dict[str, Any]]:
    """Accumulators of every pair of widths and symmetries at M = 2, K = 10, N = 3, and outputs."""
    cases = []
    for w_bits in INTEGER_WIDTHS:
        for a_bits in INTEGER_WIDTHS:
            w_symmetric, a_symmetric = draw.random() < 0.5, draw.random() < 0.5
            grouped = draw.random() < 0.5
            cases.append(matmul_case(draw, w_bits, w_symmetric, a_bits, a_symmetric, grouped))
    return cases


def matmul_case(
    draw: random.Random, w_bits: int, w_symmetric: bool, a_bits: int, a_symmetric: bool,
    grouped: bool,
) -> dict[str, Any]:  # fmt: skip
    m, k, n = 2, 10, 3
    bounds = [(0, 4), (4, 8), (8, 10)] if grouped else [(0, k)]
    w_codes, a_codes = codes_of(str(w_bits), w_symmetric), codes_of(str(a_bits), a_symmetric)
    qw = [[draw.choice(w_codes) for _ in range(k)] for _ in range(n)]
    qa = [[draw.choice(a_codes) for _ in range(k)] for _ in range(m)]
    zw = [[0 if w_symmetric else draw.choice(w_codes) for _ in bounds] for _ in range(n)]
    za = [0 if a_symmetric else draw.choice(a_codes) for _ in range(m)]
    sw = [[f16(Fraction(draw.uniform(0.001, 0.1))) for _ in bounds] for _ in range(n)]
    sa = [f32(Fraction(draw.uniform(0.01, 1.0))) for _ in range(m)]
    bias = [f32(Fraction(draw.uniform(-5.0, 5.0))) for _ in range(n)]
    acc = [
        [
            [sum((qa[i][p] - za[i]) * (qw[j][p] - zw[j][g]) for p in range(*bound))
             for g, bound in enumerate(bounds)]
            for j in range(n)
        ]
        for i in range(m)
    ]  # fmt: skip
    if grouped:
        y = [
            [
                float(
                    Fraction(bias[j])
                    + sum(
                        Fraction(sa[i]) * Fraction(s) * a
                        for s, a in zip(sw[j], acc[i][j], strict=True)
                    )
                )
                for j in range(n)
            ]
            for i in range(m)
        ]
    else:
        y = [[fma(sa[i], sw[j][0], acc[i][j][0], bias[j]) for j in range(n)] for i in range(m)]
    sharing = f"g{GROUP_SIZE}" if grouped else "channel"
    return {
        "weight": f"w{w_bits}:{sharing}:{'sym' if w_symmetric else 'asym'}",
        "activation": f"a{a_bits}:token:{'sym' if a_symmetric else 'asym'}",
        "codes_w": qw, "scale_w": sw, "zero_w": zw,
        "codes_a": qa, "scale_a": sa, "zero_a": za,
        "bias": bias, "acc": acc, "y": y,
    }  # fmt: skip


# The values of trellis codes from 0 on; the lower half of the table is their negative.
TRELLIS_VALUES = (
    0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 26, 27, 28, 29, 31, 32, 33, 34, 35, 36, 37, 38, 40, 41, 42, 44, 45, 47,
    48, 50, 52, 54, 56, 58, 60, 63, 65, 69, 72, 77, 83, 91, 106,
)  # fmt: skip
TRELLIS_TABLE = (*(-value for value in reversed(TRELLIS_VALUES)), *TRELLIS_VALUES)


def trellis_panels(n: int) -> list[int]:
    """The channels of each panel, padding included."""
    count = math.ceil(n / 256)
    rows = math.ceil(math.ceil(n / count) / 16) * 16
    last = math.ceil((n - (count - 1) * rows) / 16) * 16
    return [rows] * (count - 1) + [last]


def trellis_cases(draw: random.Random) -> list[dict[str, Any]]:
    """Symbols of a column, and what they decode to."""
    cases = []
    for rate, n in ((1, 16), (2, 20), (3, 270), (4, 33), (5, 40), (6, 17)):
        symbols: list[int] = []
        q: list[int] = []
        for rows in trellis_panels(n):
            own = [draw.randrange(1 << rate) for _ in range(rows)]
            bits = [symbol >> i & 1 for symbol in own for i in range(rate)]
            for row in range(rows):
                state = sum(bits[(row * rate + i) % len(bits)] << i for i in range(12))
                q.append(TRELLIS_TABLE[(state * 1135 >> 5) % 128])
            symbols += own
        cases.append({"bits": rate, "n": n, "symbols": symbols, "q": q[:n]})
    return cases


def fma(scale_a: float, scale_w: float, acc: int, bias: float) -> float:
    scale = f32(Fraction(scale_a) * Fraction(scale_w))
    return f32(Fraction(scale) * Fraction(f32(Fraction(acc))) + Fraction(bias))


def numerics() -> dict[str, Any]:
    draw = random.Random(20261123)
    return {
        "formats": format_cases(),
        "weights": weight_cases(draw),
        "activations": activation_cases(draw),
        "matmuls": matmul_cases(draw),
        "trellis": trellis_cases(draw),
    }


def text() -> str:
    """JSON with a case a line; NaN is spelled NaN."""
    sections = [
        f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
        for name, cases in numerics().items()
    ]
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
