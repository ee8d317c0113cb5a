"""Rounding of weights and activations to codes, as their schemes say (docs/numerics.md).

Needs numpy alone, so that the runtime can use it. What codes mean is in `number_formats.py`, how
tensors use them in `schemes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from abqc.dialects.group_scales import WeightGroups
from abqc.dialects.number_formats import F32, FORMATS, Codes, Kind, NumberFormat
from abqc.dialects.scale_types import SCALE_TYPES, tensor_scale_of
from abqc.dialects.schemes import BLOCK_FORMATS, Role, Scheme, parse_scheme, widths
from numpy.typing import NDArray

__all__ = [
    "BLOCK_FORMATS",
    "F32",
    "FORMATS",
    "Codes",
    "Kind",
    "NumberFormat",
    "Role",
    "Scheme",
    "parse_scheme",
    "widths",
]

Half = Literal["f16", "bf16"]  # what a GPU rounds activations to that stay float
Float = Literal["f32", "f16", "bf16"]  # how a weight that stays float is stored
FLOAT_BYTES: dict[Float, int] = {"f32": 4, "f16": 2, "bf16": 2}

CHUNK_ELEMENTS = 1 << 18  # quantize this many weights at a time: they stay in the cache


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
    if format.clip != 1:
        low, high = low * np.float32(format.clip), high * np.float32(format.clip)
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
