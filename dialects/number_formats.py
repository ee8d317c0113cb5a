"""The table of number formats: what a code means, and how floats become codes (docs/numerics.md).

Needs numpy alone, so that the runtime can use it. A format is one row of `FORMATS`.

    value = scale * (format.value(code) - zero)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from abqc.dialects import minifloats, trellis
from abqc.dialects.minifloats import Minifloat
from numpy.typing import NDArray

Kind = Literal["signed", "binary", "unsigned", "balanced", "ternary", "float", "table", "trellis"]

F32 = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.uint8]

INDEXED: tuple[Kind, ...] = ("float", "table")
WEIGHTS_ONLY: tuple[Kind, ...] = ("balanced", "ternary", "float", "table", "trellis")

# NormalFloat, the published values (Dettmers et al., "QLoRA", 2023; appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class NumberFormat:
    """One row of the table: the codes of a format and their values in units of the scale.

    Codes are integers that stand for themselves, or, in the kinds `float` and `table`, indices of
    `values` (uint8). In the kind `trellis` they are what symbols of `bits` bits decode to
    (`trellis.py`). `bits` are the bits of one code stored in two's complement (unsigned and
    indexed kinds: in binary), which is also its number of bit planes. `qmin` and `qmax` bound the
    integers that kernels multiply. `nearest` maps float32 values, in units of the scale, to the
    nearest value of the format (still float32). `default_scale` says how a weight group gets its
    scale when no search is asked for. `shrink` is the smallest multiple of the largest magnitude
    that a search tries.
    """

    name: str
    width: str  # how recipes spell it: "4", "2*", "t", "fp4"
    kind: Kind
    bits: int
    qmin: int
    qmax: int
    nearest: Callable[[NumberFormat, F32], F32]
    default_scale: Literal["range", "mean", "search"]
    shrink: float
    minifloat: Minifloat | None = None
    clip: float = 1.0  # activations: how much of a row's range gets codes
    in_digits: bool = False  # ternary: integer kernels store five codes in a byte
    table: tuple[float, ...] | None = None  # ascending

    @property
    def stored_bits(self) -> float:
        """Bits of a code in a packed weight."""
        return 8 / 5 if self.in_digits else self.bits

    def clipped(self, percent: int) -> NumberFormat:
        """The format whose scales cover so much of the range of what is quantized at run time."""
        return replace(self, name=f"{self.name}c{percent}", clip=percent / 100)

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is always 0."""
        return self.kind != "unsigned"

    @property
    def indexed(self) -> bool:
        """Whether codes are indices of `values`."""
        return self.kind in INDEXED

    @property
    def dtype(self) -> np.dtype:
        """The numpy type that holds one code per element."""
        return np.dtype(np.uint8 if self.indexed or not self.symmetric else np.int8)

    @cached_property
    def values(self) -> F32:
        """What each code of an indexed format stands for, in units of the scale; NaN for none."""
        if self.minifloat is not None:
            return self.minifloat.values
        assert self.table is not None
        return np.array(self.table, np.float32)

    @property
    def unit(self) -> float:
        """What an integer of `integers` counts, in units of the scale: a power of two."""
        return self.minifloat.unit if self.minifloat is not None and self.has_integers else 1.0

    @property
    def has_integers(self) -> bool:
        """Whether every value is an integer of 8 bits times `unit`, so that integer kernels are
        exact. Others are multiplied as floats."""
        if self.minifloat is not None:
            return self.minifloat.largest <= 127 * self.minifloat.unit
        return self.kind != "table"

    @property
    def largest(self) -> float:
        """The largest value, in units of the scale, that has a negative counterpart."""
        return float(np.nanmax(self.values)) if self.indexed else float(self.qmax)

    @property
    def codes(self) -> NDArray[np.int64]:
        """All legal codes, ascending; a zero with a sign is read, but never written."""
        if self.indexed:
            legal = np.isfinite(self.values) & ~(np.signbit(self.values) & (self.values == 0))
            return np.flatnonzero(legal)
        if self.kind == "trellis":
            return np.unique(trellis.table()).astype(np.int64)
        step = 2 if self.kind == "binary" else 1
        return np.arange(self.qmin, self.qmax + 1, step)

    def encode(self, x: F32, scale: F32, zero: np.ndarray | None = None) -> Codes:
        """The codes of `x`, `clamp(rne(x / scale) + zero)`; `scale` and `zero` broadcast."""
        return self.codes_of(self.encode_steps(x, scale, zero))

    def encode_steps(self, x: F32, scale: F32, zero: np.ndarray | None) -> F32:
        """The values of the codes of `x`, in units of the scale, with the zero point: f32."""
        if self.kind == "binary":  # only signs count, and the scale of zeros is 0
            return self.nearest(self, x)
        steps = np.divide(x, scale, dtype=np.float32)
        if zero is not None:
            np.rint(steps, out=steps)
            steps += zero
        return self.nearest(self, steps)

    def codes_of(self, steps: F32) -> Codes:
        """The codes of values that `encode_steps` gave."""
        if self.minifloat is not None:
            return self.minifloat.codes_of(steps)
        if self.table is not None:
            return np.searchsorted(self.values, steps).astype(np.uint8)
        return steps.astype(self.dtype)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> F32:
        """`scale * (value(code) - zero)` in f32; `scale` and `zero` broadcast over `codes`."""
        steps = self.values[codes] if self.indexed else codes.astype(np.float32)
        if zero is not None:
            steps -= zero.astype(np.float32)
        return steps * scale.astype(np.float32)

    def integers(self, codes: np.ndarray) -> Codes:
        """What integer kernels multiply for each code: its value over `unit`."""
        if not self.indexed:
            return codes
        assert self.has_integers, f"{self.name} has no integers"
        return np.nan_to_num(self.values / np.float32(self.unit)).astype(np.int8)[codes]

    def to_bits(self, codes: np.ndarray) -> NDArray[np.uint8]:
        """The low `bits` bits that store each code; bit i of the result is plane i."""
        assert self.kind != "trellis", "the bits of a trellis code are those of its symbols"
        if self.kind == "binary":
            return (codes > 0).astype(np.uint8)
        if self.in_digits:
            return (codes - self.qmin).astype(np.uint8)
        return codes.astype(np.int16).astype(np.uint8) & np.uint8((1 << self.bits) - 1)

    def from_bits(self, stored: NDArray[np.uint8]) -> Codes:
        """The inverse of `to_bits`."""
        q = stored.astype(np.int16)
        if self.kind == "binary":
            q = 2 * q - 1
        elif self.in_digits:
            q += self.qmin
        elif self.symmetric and not self.indexed:
            q -= (q >> (self.bits - 1)) << self.bits
        return q.astype(self.dtype)


def _nearest_integer(format: NumberFormat, steps: F32) -> F32:
    np.rint(steps, out=steps)
    return np.clip(steps, format.qmin, format.qmax, out=steps)


def _sign(format: NumberFormat, steps: F32) -> F32:
    """-1 below zero, +1 at zero (of either sign) and above."""
    return np.where(steps < 0, np.float32(-1), np.float32(1))


def _nearest_float(format: NumberFormat, steps: F32) -> F32:
    assert format.minifloat is not None
    return format.minifloat.nearest(steps)


def _nearest_trellis_value(format: NumberFormat, steps: F32) -> F32:
    """The nearest of all values; which of them a weight may take depends on its neighbours."""
    values = trellis.table().astype(np.float32)
    return values[np.searchsorted((values[1:] + values[:-1]) / 2, steps)]


def _nearest_entry(format: NumberFormat, steps: F32) -> F32:
    """The nearest entry of a table; the lower one of two that are equally near."""
    middles = (format.values[1:] + format.values[:-1]) / 2
    return format.values[np.searchsorted(middles, steps)]


def _integer_rows() -> Iterator[NumberFormat]:
    for bits in range(1, 9):
        shrink = 0.1 if bits <= 3 else 0.4
        top = (1 << bits) - 1
        yield NumberFormat(
            f"uint{bits}", str(bits), "unsigned", bits, 0, top, _nearest_integer, "range", shrink
        )
        if bits > 1:
            half = 1 << (bits - 1)
            yield NumberFormat(
                f"int{bits}", str(bits), "signed", bits, -half, half - 1, _nearest_integer, "range",
                shrink,
            )  # fmt: skip


def _float_row(width: str, type_: Minifloat) -> NumberFormat:
    name = f"e{type_.exponent_bits}m{type_.mantissa_bits}"
    reach = int(type_.largest / type_.unit)  # of the integers, where they are small enough
    return NumberFormat(
        name, width, "float", type_.bits, -reach, reach, _nearest_float, "range", 0.4,
        minifloat=type_,
    )  # fmt: skip


def _trellis_rows() -> Iterator[NumberFormat]:
    highest = int(trellis.table().max())
    for bits in trellis.RATES:
        yield NumberFormat(
            f"trellis{bits}", f"{bits}v", "trellis", bits, -highest, highest,
            _nearest_trellis_value, "search", 0.1,
        )  # fmt: skip


_ROWS = (
    *_integer_rows(),
    NumberFormat("binary", "1", "binary", 1, -1, 1, _sign, "mean", 1.0),
    NumberFormat("balanced2", "2*", "balanced", 3, -2, 2, _nearest_integer, "search", 0.1),
    NumberFormat("ternary", "t", "ternary", 2, -1, 1, _nearest_integer, "search", 0.1),
    NumberFormat(
        "ternary5", "t5", "ternary", 2, -1, 1, _nearest_integer, "search", 0.1, in_digits=True
    ),
    _float_row("fp4", minifloats.E2M1),
    _float_row("fp6", minifloats.E2M3),
    _float_row("fp6e3m2", minifloats.E3M2),
    _float_row("fp8", minifloats.E4M3),
    _float_row("fp8e5m2", minifloats.E5M2),
    NumberFormat("nf4", "nf4", "table", 4, 0, 15, _nearest_entry, "range", 0.4, table=NF4),
    *_trellis_rows(),
)

FORMATS: dict[str, NumberFormat] = {row.name: row for row in _ROWS}
