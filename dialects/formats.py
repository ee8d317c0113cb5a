"""Schemes: how a tensor uses a number format, and the rounding of weights and activations to codes
(docs/numerics.md).

Needs numpy alone, so that the runtime can use it. A `Scheme` says, of weights or activations, the
format (a row of `number_formats.FORMATS`), how many elements share a scale, and how scales are
stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from abqc.dialects.group_scales import WeightGroups
from abqc.dialects.number_formats import (
    F32,
    FORMATS,
    WEIGHTS_ONLY,
    Codes,
    Kind,
    NumberFormat,
)
from abqc.dialects.scale_types import SCALE_TYPES, ScaleName, tensor_scale_of
from numpy.typing import NDArray

__all__ = ["F32", "FORMATS", "Codes", "Kind", "NumberFormat"]

Role = Literal["w", "a"]
Granularity = Literal["tensor", "channel", "group", "token", "image"]
Half = Literal["f16", "bf16"]  # what a GPU rounds activations to that stay float
Float = Literal["f32", "f16", "bf16"]  # how a weight that stays float is stored
FLOAT_BYTES: dict[Float, int] = {"f32": 4, "f16": 2, "bf16": 2}

GRANULARITIES: dict[str, tuple[str, ...]] = {
    "w": ("tensor", "channel", "group"),
    "a": ("tensor", "token", "image", "group"),
}

DEFAULT_GROUP_SIZE = 128
TABLE_GROUP_SIZE = 64  # of NF4, as published
GROUPED_UP_TO_BITS = 4
BLOCK_SIZES = (16, 32, 64, 128)  # of activations
CHUNK_ELEMENTS = 1 << 18  # quantize this many weights at a time: they stay in the cache


_BY_WIDTH = {(row.width, row.symmetric): row for row in FORMATS.values()}


@dataclass(frozen=True)
class BlockFormat:
    """A number format with the blocks and scales of its specification."""

    width: str
    block: int
    scale: ScaleName
    any_block: bool = False  # whether recipes may ask for other sizes


# OCP MX 1.0; NVFP4 as NVIDIA documents it; block floating point of any mantissa, sign included.
BLOCK_FORMATS: dict[str, BlockFormat] = {
    "mxfp4": BlockFormat("fp4", 32, "e8m0"),
    "mxfp6": BlockFormat("fp6", 32, "e8m0"),
    "mxfp6e3m2": BlockFormat("fp6e3m2", 32, "e8m0"),
    "mxfp8": BlockFormat("fp8", 32, "e8m0"),
    "mxfp8e5m2": BlockFormat("fp8e5m2", 32, "e8m0"),
    "mxint8": BlockFormat("8", 32, "e8m0"),
    "nvfp4": BlockFormat("fp4", 16, "e4m3"),
    **{f"bfp{bits}": BlockFormat(str(bits), 32, "e8m0", any_block=True) for bits in range(2, 9)},
}


@dataclass(frozen=True)
class Scheme:
    """How a tensor is quantized: its format, and what shares one scale (and zero point).

    Weights: the whole `tensor`, an output `channel`, or `group_size` weights along K.
    Activations: the whole `tensor`, a `token` (one row), an `image` (one sample of a batch), or
    `group_size` elements of a row: a block. `scale` is how scales are stored; those of activations
    are f32, and those of blocks powers of two.
    """

    role: Role
    format: NumberFormat
    granularity: Granularity
    group_size: int | None = None
    scale: ScaleName = "f16"

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
        if self.role == "a":
            self._check_activation()
        if self.scale != "f16" and self.format.kind in ("unsigned", "binary", "trellis"):
            raise ValueError(
                f"scales of type {self.scale} belong to symmetric scalar formats of 2 bits and more"
            )

    def _check_activation(self) -> None:
        blocks = self.granularity == "group"
        if self.format.kind in WEIGHTS_ONLY and not (blocks and self.format.kind == "float"):
            raise ValueError(f"'{self.format.width}' is a format of weights, not of activations")
        if not blocks and self.scale != "f16":
            raise ValueError("scales of activations are f32: they have no type; blocks have e8m0")
        if blocks and self.scale != "e8m0":
            raise ValueError(
                "blocks of activations share powers of two; write abfp8, amxfp8 or a8:g32:e8m0"
            )
        if blocks and self.group_size not in BLOCK_SIZES:
            raise ValueError(f"blocks of activations have {_listed(BLOCK_SIZES)} elements")

    @property
    def bits(self) -> int:
        """Bits of a stored code (planes); 3 for `2*`, 2 for `t`."""
        return self.format.bits

    @property
    def scale_dtype(self) -> np.dtype:
        """The numpy type of scales, as numbers."""
        return SCALE_TYPES[self.scale].dtype

    @property
    def symmetric(self) -> bool:
        return self.format.symmetric

    @property
    def text(self) -> str:
        """The canonical spelling, for example `w4:g128:sym`; `parse_scheme` reads it back."""
        sharing = f"g{self.group_size}" if self.granularity == "group" else self.granularity
        symmetry = "sym" if self.symmetric else "asym"
        scale = "" if self.scale == "f16" else f":{self.scale}"
        return f"{self.role}{self.format.width}:{sharing}:{symmetry}{scale}"

    def __str__(self) -> str:
        return self.text

    def n_groups(self, k: int) -> int:
        """Number of scales along a K of `k`."""
        return math.ceil(k / self.group_size) if self.group_size else 1

    def group_bounds(self, k: int) -> list[tuple[int, int]]:
        """Begin and end of each group along a K of `k`; the last one may be short."""
        size = self.group_size or k
        return [(begin, min(begin + size, k)) for begin in range(0, k, size)]


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"


_ROLE_NAMES = {"w": "weights", "a": "activations"}


def _granularity_texts(role: str) -> list[str]:
    return ["gN (as in g128)" if name == "group" else name for name in GRANULARITIES[role]]


def widths(role: Role) -> list[str]:
    """The spellings of all widths that `role` may have."""
    usable = {row.width for row in FORMATS.values() if role == "w" or row.kind not in WEIGHTS_ONLY}
    blocks = {name for name, row in BLOCK_FORMATS.items() if role == "w" or row.scale == "e8m0"}
    return sorted(usable | blocks)


def parse_scheme(text: str) -> Scheme:
    """Read `w4`, `w4:g64:asym`, `wmxfp4`, `w4:g32:e8m0`, `a8:token:sym`, ...; defaults are those of
    docs/numerics.md.

    Raises ValueError that says what is wrong and what would be right.
    """
    head, *options = text.split(":")
    if head[:1] not in get_args(Role):
        raise ValueError(f"'{text}' must begin with 'w' (weights) or 'a' (activations)")
    role: Role = "w" if head[0] == "w" else "a"
    width = head[1:]
    floats = {row.width for row in FORMATS.values() if row.kind == "float"}
    if width not in widths(role) and not (width in floats and options):
        raise ValueError(
            f"'{text}': no {_ROLE_NAMES[role]} of width '{width}'; use one of "
            + ", ".join(role + w for w in widths(role))
        )
    given: dict[str, str] = {}
    for option in options:
        subject = _subject(option)
        if subject in given:
            raise ValueError(f"'{text}': {subject} is given twice")
        given[subject] = option
    if width in BLOCK_FORMATS:
        width, given = _expand(text, width, given)
    return _scheme(text, role, width, given)


_SHARING, _SYMMETRY, _SCALE = "what shares a scale", "symmetry", "the type of scales"


def _subject(option: str) -> str:
    """What an option of a scheme says."""
    if option in ("sym", "asym"):
        return _SYMMETRY
    return _SCALE if option in SCALE_TYPES else _SHARING


def _expand(text: str, name: str, given: dict[str, str]) -> tuple[str, dict[str, str]]:
    """A block format as the width and the options that it stands for."""
    block = BLOCK_FORMATS[name]
    own = f"{text[0]}{block.width}:g{block.block}:{block.scale}"
    refused = [option for subject, option in given.items() if subject != _SYMMETRY]
    if block.any_block:
        refused = [given[_SCALE]] if _SCALE in given else []
    if refused:
        raise ValueError(
            f"'{text}': {name} has blocks and scales of its own; write {own} to change one of them"
        )
    return block.width, {_SHARING: f"g{block.block}", _SCALE: block.scale, **given}


def _scheme(text: str, role: Role, width: str, given: dict[str, str]) -> Scheme:
    symmetry = given.get(_SYMMETRY)
    symmetric = role == "w" or _SCALE in given if symmetry is None else symmetry == "sym"
    row = _BY_WIDTH.get((width, symmetric))
    if row is None:
        raise ValueError(f"'{text}': width '{width}' is always symmetric")
    sharing = given.get(_SHARING) or _default_sharing(role, row)
    if sharing[:1] == "g" and sharing[1:].isdecimal():
        granularity, group_size = "group", int(sharing[1:])
    else:
        granularity, group_size = sharing, None
    try:
        return Scheme(role, row, granularity, group_size, given.get(_SCALE, "f16"))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from None


def _default_sharing(role: Role, row: NumberFormat) -> str:
    if role == "a":
        return "token"
    if row.in_digits:
        return "channel"
    if row.kind == "table":
        return f"g{TABLE_GROUP_SIZE}"
    if row.kind == "trellis":
        return "channel"
    return f"g{DEFAULT_GROUP_SIZE}" if row.bits <= GROUPED_UP_TO_BITS else "channel"


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as codes: N rows (output channels) of K codes, G scales a row.

    `codes` [N, K] hold q itself (indexed formats: the index of the value), int8 for symmetric
    formats of integers and uint8 for asymmetric and indexed ones. `scale` [N, G] is float16, or
    float32 where it was imported so or is stored as e8m0 or e4m3; per-tensor scales are repeated
    for each row. `zero` [N, G] is uint8, None for symmetric formats. Scales of e4m3 are E4M3
    numbers times `tensor_scale`. `symbols` [padded N, K] are what a trellis code stores, of which
    `codes` are the decoded values (`trellis.py`).
    """

    codes: Codes
    scale: np.ndarray
    zero: NDArray[np.uint8] | None
    scheme: Scheme
    tensor_scale: float = 1.0
    symbols: NDArray[np.uint8] | None = None

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
        if (self.symbols is None) != (self.scheme.format.kind != "trellis"):
            raise ValueError("trellis codes, and only they, have symbols")

    def dequantize(self) -> F32:
        """The values, f32 [N, K]."""
        k = self.codes.shape[1]
        scale = spread_groups(self.scale, self.scheme, k)
        zero = None if self.zero is None else spread_groups(self.zero, self.scheme, k)
        return self.scheme.format.decode(self.codes, scale, zero)

    @property
    def integer_scale(self) -> F32:
        """The scales of `format.integers(codes)`, f32 [N, G]: exact multiples of `scale`."""
        return self.scale.astype(np.float32) * np.float32(self.scheme.format.unit)

    def bits_per_weight(self) -> float:
        """Bits of codes, scales and zero points per weight, without a layout's padding.

        A code takes `scheme.bits`, a zero point as many, a scale its type's bits (e4m3: and 32 for
        the tensor).
        """
        scale_bits = 8 * self.scale.itemsize if self.scheme.scale == "f16" else 8
        stored = self.codes if self.symbols is None else self.symbols
        bits = stored.size * self.scheme.format.stored_bits + self.scale.size * scale_bits
        bits += 32 if self.scheme.scale == "e4m3" else 0
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

    `w` has output channels first; further axes are flattened to K. Scales are rounded to their type
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
    if scheme.format.kind == "trellis":
        from abqc.dialects import trellis_weight  # which makes tensors of this module

        w32 = rows.astype(np.float32, copy=False)
        return trellis_weight.quantize(w32, scheme, search=search, importance=importance)
    if scheme.granularity != "tensor":
        return _quantize_rows(rows, scheme, search, importance)
    tiled = None if importance is None else np.tile(importance, n)
    whole = _quantize_rows(rows.reshape(1, n * k), scheme, search, tiled)
    zero = None if whole.zero is None else np.repeat(whole.zero, n, axis=0)
    return QuantizedTensor(
        whole.codes.reshape(n, k),
        np.repeat(whole.scale, n, axis=0),
        zero,
        scheme,
        whole.tensor_scale,
    )


def _quantize_rows(
    rows: np.ndarray, scheme: Scheme, search: bool, importance: np.ndarray | None
) -> QuantizedTensor:
    n, k = rows.shape
    groups = scheme.n_groups(k)
    codes = np.empty((n, k), scheme.format.dtype)
    scale = np.empty((n, groups), scheme.scale_dtype)
    zero = None if scheme.symmetric else np.empty((n, groups), np.uint8)
    tensor_scale = tensor_scale_of(scheme.scale, np.abs(rows).max(), scheme.format.largest)
    step = max(1, CHUNK_ELEMENTS // k)
    for begin in range(0, n, step):
        part = slice(begin, begin + step)
        chunk = WeightGroups.split(
            rows[part].astype(np.float32, copy=False), scheme, importance, tensor_scale
        )
        choice = chunk.choose(search)
        codes[part] = chunk.encode(choice).reshape(len(chunk.x), -1)[:, :k]
        scale[part] = choice.scale
        if zero is not None and choice.zero is not None:
            zero[part] = choice.zero
    return QuantizedTensor(codes, scale, zero, scheme, tensor_scale)


def quantize_activation(
    x: F32, scheme: Scheme, *, image_rows: int = 1
) -> tuple[Codes, F32, NDArray[np.int32]]:
    """What every kernel does at run time: codes [M, K], scale f32 [M], zero int32 [M].

    `token`: every row has its scale; `image`: every `image_rows` rows share one (and M is a
    multiple of them); `tensor`: all share one. Scales are repeated for each row. A row whose
    values or scale are not finite has scale NaN, codes and zero point 0.
    """
    if scheme.role != "a" or scheme.granularity == "group":
        raise ValueError(f"{scheme} is no scheme for activations with one scale a row")
    m, k = x.shape
    shared = {"token": 1, "image": image_rows, "tensor": m}[scheme.granularity]
    if shared == 0 or m % shared:
        raise ValueError(f"{m} rows are no multiple of the {shared} rows of an image")
    blocks = np.ascontiguousarray(x, np.float32).reshape(m // shared, shared * k)
    codes, scale, zero = _quantize_blocks(blocks, scheme.format)
    return codes.reshape(m, k), np.repeat(scale, shared), np.repeat(zero, shared)


def round_activation(x: F32, scheme: Scheme) -> F32:
    """Rows [M, K] rounded to blocks along K that share powers of two, as kernels do at run time.

    What is not finite makes its block NaN. The last block of a row may be short.
    """
    if scheme.role != "a" or scheme.group_size is None:
        raise ValueError(f"{scheme} is no scheme for blocks of activations")
    m, k = x.shape
    missing = -k % scheme.group_size
    blocks = np.pad(x, ((0, 0), (0, missing))).reshape(m, -1, scheme.group_size)
    reach = np.abs(blocks).max(axis=2, keepdims=True)
    finite = np.isfinite(reach)
    scale = SCALE_TYPES[scheme.scale].by_reach(
        np.where(finite, reach, 1), scheme.format.largest, 1.0
    )
    steps = scheme.format.encode_steps(np.where(finite, blocks, 0), scale, None)
    values = np.where(finite, steps * scale, np.float32(np.nan))
    return values.reshape(m, -1)[:, :k].astype(np.float32)


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
