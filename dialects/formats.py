"""Number formats: what a code means, and how floats become codes (docs/numerics.md).

Needs numpy alone, so that the runtime can use it. A format is one row of `FORMATS`; a `Scheme`
says how a tensor uses it: for weights or activations, and how many elements share a scale.

    value = scale * (format.value(code) - zero)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from abqc.dialects.group_scales import WeightGroups
from numpy.typing import NDArray

Kind = Literal["signed", "binary", "unsigned", "balanced", "ternary"]
Role = Literal["w", "a"]
Granularity = Literal["tensor", "channel", "group", "token", "image"]
Half = Literal["f16", "bf16"]  # what a GPU rounds activations to that stay float
Float = Literal["f32", "f16", "bf16"]  # how a weight that stays float is stored
FLOAT_BYTES: dict[Float, int] = {"f32": 4, "f16": 2, "bf16": 2}

F32 = NDArray[np.float32]
Codes = NDArray[np.int8] | NDArray[np.uint8]

GRANULARITIES: dict[str, tuple[str, ...]] = {
    "w": ("tensor", "channel", "group"),
    "a": ("tensor", "token", "image"),
}

DEFAULT_GROUP_SIZE = 128
GROUPED_UP_TO_BITS = 4
CHUNK_ELEMENTS = 1 << 18  # quantize this many weights at a time: they stay in the cache


@dataclass(frozen=True)
class NumberFormat:
    """One row of the table: the codes of a format and their values in units of the scale.

    `bits` are the bits of one code stored in two's complement (unsigned kinds: in binary), which
    is also its number of bit planes. `nearest` maps float32 values, in units of the scale, to the
    nearest value of the format (still float32). `default_scale` says how a weight group gets its
    scale when no search is asked for. `shrink` is the smallest multiple of the largest magnitude
    that a search tries.
    """

    name: str
    width: str  # how recipes spell it: "4", "2*", "t"
    kind: Kind
    bits: int
    qmin: int
    qmax: int
    nearest: Callable[[NumberFormat, F32], F32]
    default_scale: Literal["range", "mean", "search"]
    shrink: float

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is always 0."""
        return self.kind != "unsigned"

    @property
    def dtype(self) -> np.dtype:
        """The numpy type that holds one code per element."""
        return np.dtype(np.int8 if self.symmetric else np.uint8)

    @property
    def codes(self) -> NDArray[np.int64]:
        """All legal codes, ascending."""
        step = 2 if self.kind == "binary" else 1
        return np.arange(self.qmin, self.qmax + 1, step)

    def encode(self, x: F32, scale: F32, zero: np.ndarray | None = None) -> Codes:
        """The codes of `x`, `clamp(rne(x / scale) + zero)`; `scale` and `zero` broadcast."""
        return self.encode_steps(x, scale, zero).astype(self.dtype)

    def encode_steps(self, x: F32, scale: F32, zero: np.ndarray | None) -> F32:
        """What `encode` gives, before the cast: codes as f32."""
        if self.kind == "binary":  # only signs count, and the scale of zeros is 0
            return self.nearest(self, x)
        steps = np.divide(x, scale, dtype=np.float32)
        if zero is not None:
            np.rint(steps, out=steps)
            steps += zero
        return self.nearest(self, steps)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> F32:
        """`scale * (codes - zero)` in f32; `scale` and `zero` broadcast over `codes`."""
        steps = codes.astype(np.float32)
        if zero is not None:
            steps -= zero.astype(np.float32)
        return steps * scale.astype(np.float32)

    def to_bits(self, codes: np.ndarray) -> NDArray[np.uint8]:
        """The low `bits` bits that store each code; bit i of the result is plane i."""
        if self.kind == "binary":
            return (codes > 0).astype(np.uint8)
        return codes.astype(np.int16).astype(np.uint8) & np.uint8((1 << self.bits) - 1)

    def from_bits(self, stored: NDArray[np.uint8]) -> Codes:
        """The inverse of `to_bits`."""
        q = stored.astype(np.int16)
        if self.kind == "binary":
            q = 2 * q - 1
        elif self.symmetric:
            q -= (q >> (self.bits - 1)) << self.bits
        return q.astype(self.dtype)


def _nearest_integer(format: NumberFormat, steps: F32) -> F32:
    np.rint(steps, out=steps)
    return np.clip(steps, format.qmin, format.qmax, out=steps)


def _sign(format: NumberFormat, steps: F32) -> F32:
    """-1 below zero, +1 at zero (of either sign) and above."""
    return np.where(steps < 0, np.float32(-1), np.float32(1))


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


_ROWS = (
    *_integer_rows(),
    NumberFormat("binary", "1", "binary", 1, -1, 1, _sign, "mean", 1.0),
    NumberFormat("balanced2", "2*", "balanced", 3, -2, 2, _nearest_integer, "search", 0.1),
    NumberFormat("ternary", "t", "ternary", 2, -1, 1, _nearest_integer, "search", 0.1),
)

FORMATS: dict[str, NumberFormat] = {row.name: row for row in _ROWS}
_BY_WIDTH = {(row.width, row.symmetric): row for row in _ROWS}


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized: its format, and what shares one scale (and zero point).

    Weights: the whole `tensor`, an output `channel`, or `group_size` weights along K.
    Activations: the whole `tensor`, a `token` (one row) or an `image` (one sample of a batch).
    """

    role: Role
    format: NumberFormat
    granularity: Granularity
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES[self.role]:
            raise ValueError(
                f"'{self.granularity}' is no granularity of {_ROLE_NAMES[self.role]}; "
                f"use one of {', '.join(_granularity_texts(self.role))}"
            )
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("a group size belongs to granularity 'group'")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError("a group has at least one weight")
        if self.role == "a" and self.format.kind in ("balanced", "ternary"):
            raise ValueError(f"'{self.format.width}' is a format of weights, not of activations")

    @property
    def bits(self) -> int:
        """Bits of a stored code (planes); 3 for `2*`, 2 for `t`."""
        return self.format.bits

    @property
    def symmetric(self) -> bool:
        return self.format.symmetric

    @property
    def text(self) -> str:
        """The canonical spelling, for example `w4:g128:sym`; `parse_scheme` reads it back."""
        sharing = f"g{self.group_size}" if self.granularity == "group" else self.granularity
        return f"{self.role}{self.format.width}:{sharing}:{'sym' if self.symmetric else 'asym'}"

    def __str__(self) -> str:
        return self.text

    def n_groups(self, k: int) -> int:
        """Number of scales along a K of `k`."""
        return math.ceil(k / self.group_size) if self.group_size else 1

    def group_bounds(self, k: int) -> list[tuple[int, int]]:
        """Begin and end of each group along a K of `k`; the last one may be short."""
        size = self.group_size or k
        return [(begin, min(begin + size, k)) for begin in range(0, k, size)]


_ROLE_NAMES = {"w": "weights", "a": "activations"}


def _granularity_texts(role: str) -> list[str]:
    return ["gN (as in g128)" if name == "group" else name for name in GRANULARITIES[role]]


def widths(role: Role) -> list[str]:
    """The spellings of all widths that `role` may have."""
    usable = [row for row in _ROWS if role == "w" or row.kind not in ("balanced", "ternary")]
    return sorted({row.width for row in usable})


def parse_scheme(text: str) -> Scheme:
    """Read `w4`, `w4:g64:asym`, `a8:token:sym`, ...; defaults are those of docs/numerics.md.

    Raises ValueError that says what is wrong and what would be right.
    """
    head, *options = text.split(":")
    if head[:1] not in get_args(Role):
        raise ValueError(f"'{text}' must begin with 'w' (weights) or 'a' (activations)")
    role: Role = "w" if head[0] == "w" else "a"
    width = head[1:]
    if width not in widths(role):
        raise ValueError(
            f"'{text}': no {_ROLE_NAMES[role]} of width '{width}'; use one of "
            + ", ".join(role + w for w in widths(role))
        )
    sharing: str | None = None
    symmetry: str | None = None
    for option in options:
        if option in ("sym", "asym"):
            if symmetry is not None:
                raise ValueError(f"'{text}': symmetry is given twice")
            symmetry = option
        else:
            if sharing is not None:
                raise ValueError(f"'{text}': what shares a scale is given twice")
            sharing = option
    return _scheme(text, role, width, sharing, symmetry)


def _scheme(text: str, role: Role, width: str, sharing: str | None, symmetry: str | None) -> Scheme:
    symmetric = role == "w" if symmetry is None else symmetry == "sym"
    row = _BY_WIDTH.get((width, symmetric))
    if row is None:
        raise ValueError(f"'{text}': width '{width}' is always symmetric")
    if sharing is None:
        sharing = _default_sharing(role, row)
    if sharing[:1] == "g" and sharing[1:].isdecimal():
        granularity, group_size = "group", int(sharing[1:])
    else:
        granularity, group_size = sharing, None
    try:
        return Scheme(role, row, granularity, group_size)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from None


def _default_sharing(role: Role, row: NumberFormat) -> str:
    if role == "a":
        return "token"
    return f"g{DEFAULT_GROUP_SIZE}" if row.bits <= GROUPED_UP_TO_BITS else "channel"


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as codes: N rows (output channels) of K codes, G scales a row.

    `codes` [N, K] hold q itself, int8 for symmetric formats and uint8 for asymmetric ones.
    `scale` [N, G] is float16, or float32 where it was imported so; per-tensor scales are repeated
    for each row. `zero` [N, G] is uint8, None for symmetric formats.
    """

    codes: Codes
    scale: np.ndarray
    zero: NDArray[np.uint8] | None
    scheme: Scheme

    def __post_init__(self) -> None:
        n, k = self.codes.shape
        groups = (n, self.scheme.n_groups(k))
        if self.codes.dtype != self.scheme.format.dtype:
            raise ValueError(f"{self.scheme} has codes of {self.scheme.format.dtype}")
        if self.scale.shape != groups:
            raise ValueError(f"{self.scheme} of {n} x {k} has scales of shape {groups}")
        if (self.zero is None) != self.scheme.symmetric:
            raise ValueError("asymmetric formats, and only they, have zero points")
        if self.zero is not None and self.zero.shape != groups:
            raise ValueError(f"{self.scheme} of {n} x {k} has zero points of shape {groups}")

    def dequantize(self) -> F32:
        """The values, f32 [N, K]."""
        k = self.codes.shape[1]
        scale = spread_groups(self.scale, self.scheme, k)
        zero = None if self.zero is None else spread_groups(self.zero, self.scheme, k)
        return self.scheme.format.decode(self.codes, scale, zero)

    def bits_per_weight(self) -> float:
        """Bits of codes, scales and zero points per weight, without a layout's padding.

        A code takes `scheme.bits`, a zero point as many, a scale its dtype's bits.
        """
        bits = self.codes.size * self.scheme.bits + self.scale.size * self.scale.itemsize * 8
        if self.zero is not None:
            bits += self.zero.size * self.scheme.bits
        return bits / self.codes.size


def spread_groups(per_group: np.ndarray, scheme: Scheme, k: int) -> np.ndarray:
    """Values [N, G] repeated for every weight of their group: [N, K] (or [N, 1] for one group)."""
    if per_group.shape[1] == 1:
        return per_group
    return np.repeat(per_group, scheme.group_size or k, axis=1)[:, :k]


def quantize_weight(
    w: np.ndarray,
    scheme: Scheme,
    *,
    search: bool = False,
    importance: np.ndarray | None = None,
) -> QuantizedTensor:
    """Round `w` to the nearest codes of `scheme`.

    `w` has output channels first; further axes are flattened to K. Scales are rounded to f16
    before the codes are made. `search` takes, for every group, the scale of least squared error
    among the default one, shrunken ones and their least-squares refinements. `importance` [K]
    (such as the second moments of the inputs) weighs these errors: sum of h_k (w_k - q_k)^2.
    Raises ValueError for NaN, infinity, and magnitudes whose scale does not fit f16.
    """
    if scheme.role != "w":
        raise ValueError(f"{scheme} is no scheme for weights")
    if w.ndim < 2 or w.size == 0:
        raise ValueError(f"a weight has at least two axes and one element, not shape {w.shape}")
    rows = w.reshape(w.shape[0], -1)
    n, k = rows.shape
    if scheme.granularity != "tensor":
        return _quantize_rows(rows, scheme, search, importance)
    tiled = None if importance is None else np.tile(importance, n)
    whole = _quantize_rows(rows.reshape(1, n * k), scheme, search, tiled)
    zero = None if whole.zero is None else np.repeat(whole.zero, n, axis=0)
    return QuantizedTensor(
        whole.codes.reshape(n, k), np.repeat(whole.scale, n, axis=0), zero, scheme
    )


def _quantize_rows(
    rows: np.ndarray, scheme: Scheme, search: bool, importance: np.ndarray | None
) -> QuantizedTensor:
    n, k = rows.shape
    groups = scheme.n_groups(k)
    codes = np.empty((n, k), scheme.format.dtype)
    scale = np.empty((n, groups), np.float16)
    zero = None if scheme.symmetric else np.empty((n, groups), np.uint8)
    step = max(1, CHUNK_ELEMENTS // k)
    for begin in range(0, n, step):
        part = slice(begin, begin + step)
        chunk = WeightGroups.split(rows[part].astype(np.float32, copy=False), scheme, importance)
        choice = chunk.choose(search)
        codes[part] = chunk.encode(choice).reshape(len(chunk.x), -1)[:, :k]
        scale[part] = choice.scale
        if zero is not None and choice.zero is not None:
            zero[part] = choice.zero
    return QuantizedTensor(codes, scale, zero, scheme)


def quantize_activation(
    x: F32, scheme: Scheme, *, image_rows: int = 1
) -> tuple[Codes, F32, NDArray[np.int32]]:
    """What every kernel does at run time: codes [M, K], scale f32 [M], zero int32 [M].

    `token`: every row has its scale; `image`: every `image_rows` rows share one (and M is a
    multiple of them); `tensor`: all share one. Scales are repeated for each row. A row whose
    values or scale are not finite has scale NaN, codes and zero point 0.
    """
    if scheme.role != "a":
        raise ValueError(f"{scheme} is no scheme for activations")
    m, k = x.shape
    shared = {"token": 1, "image": image_rows, "tensor": m}[scheme.granularity]
    if shared == 0 or m % shared:
        raise ValueError(f"{m} rows are no multiple of the {shared} rows of an image")
    blocks = np.ascontiguousarray(x, np.float32).reshape(m // shared, shared * k)
    codes, scale, zero = _quantize_blocks(blocks, scheme.format)
    return codes.reshape(m, k), np.repeat(scale, shared), np.repeat(zero, shared)


def _quantize_blocks(blocks: F32, format: NumberFormat) -> tuple[Codes, F32, NDArray[np.int32]]:
    """Codes of each row with one scale and zero point a row, all in IEEE f32."""
    low, high = blocks.min(axis=1, initial=0), blocks.max(axis=1, initial=0)
    with np.errstate(over="ignore", invalid="ignore"):
        if format.kind == "binary":
            scale = np.abs(blocks).sum(axis=1, dtype=np.float32) / np.float32(blocks.shape[1])
        elif format.symmetric:
            scale = np.maximum(high, -low) / np.float32(format.qmax)
        else:
            scale = (high - low) / np.float32(format.qmax)
    broken = ~np.isfinite(scale)
    divisor = np.where(broken | (scale == 0), np.float32(1), scale)
    zero = np.zeros(len(blocks), np.int32)
    if not format.symmetric:
        zero = np.clip(np.rint(np.where(broken, 0, -low) / divisor), 0, format.qmax).astype(
            np.int32
        )
    finite = np.where(broken[:, None], np.float32(0), blocks)
    codes = format.encode(
        finite, divisor[:, None], None if format.symmetric else zero[:, None].astype(np.float32)
    )
    codes[broken] = 0
    stored = scale if format.kind == "binary" else divisor
    return codes, np.where(broken, np.float32(np.nan), stored).astype(np.float32), zero
