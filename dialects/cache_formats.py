"""Formats of key/value caches: rows of codes with their scales, one row for each head and token.

    kv8, kv4:g32     integers without sign, x ~ scale * q + low      a row has one scale, or groups
    kv-bfp6:g32      block floating point, x ~ 2^e * q               blocks of 16 unless it says so
    kv-bfp6:sort     not rotated, but with the channels in the order of their size
    kv4:plain        neither

A row (the last axis, `columns` elements) lies in memory as

    codes     `bits` bits each, the first code in the lowest bits, filled up to a multiple of 16
    scales    integers: f16 scale, f16 low, for each group; blocks: the byte e + 127 (E8M0)
    padding   to a multiple of 4 bytes

so that appending a row moves bytes, and 16 codes begin at a byte. Needs numpy alone; the operations
`abq.quantize_cache` and `abq.dequantize_cache` are `encode` and `decode`, to the bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
from abqc.dialects import hadamard
from abqc.dialects.number_formats import F32, FORMATS, NumberFormat
from abqc.dialects.scale_types import E8M0_BIAS, E8M0_NAN
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BITS = range(2, 9)
UNIT = 16  # codes are filled up to a multiple of so many, which are whole bytes in any width
ALIGNMENT = 4  # bytes of a row are a multiple of it
BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_BLOCK = 16
F32_BIAS = 127

Channels = Literal["rotate", "sort", "plain"]

_TEXT = re.compile(r"kv(?P<bfp>-bfp)?(?P<bits>[0-9]+)(?P<options>(:[a-z0-9]+)*)")


@dataclass(frozen=True)
class CacheFormat:
    """How the rows of a cache are stored.

    `group` elements share a scale; None: a row has one. `channels`:

    rotate  each row is first multiplied by the Hadamard matrix of the largest power of two that
            divides its length, in blocks where that is shorter; a cache of keys is then read with
            rotated queries, one of values gives rotated results (QuaRot, Ashkboos et al. 2024)
    sort    the channels of each head are in the order of their size, so that a block's are alike
            (Trukhanov and Soloveychik 2024); queries and results follow. The order belongs to a
            cache, not to its format
    plain   as the model has them
    """

    format: NumberFormat
    group: int | None
    channels: Channels = "rotate"

    @property
    def text(self) -> str:
        """As recipes spell it; `parse_cache_format` reads it."""
        name = f"kv-bfp{self.bits}" if self.is_blocks else f"kv{self.bits}"
        default = DEFAULT_BLOCK if self.is_blocks else None
        group = f":g{self.group}" if self.group != default else ""
        channels = f":{self.channels}" if self.channels != "rotate" else ""
        return name + group + channels

    def __str__(self) -> str:
        return self.text

    def label(self, columns: int) -> str:
        """Part of the names of kernels that read rows of `columns` elements as they are stored."""
        return f"{'bfp' if self.is_blocks else 'int'}{self.bits}_g{self.group_size(columns)}"

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def is_blocks(self) -> bool:
        """Whether groups share powers of two, and codes have a sign."""
        return self.format.symmetric

    def group_size(self, columns: int) -> int:
        """Elements that share a scale, in rows of `columns` elements."""
        return columns if self.group is None or self.group > columns else self.group

    def n_groups(self, columns: int) -> int:
        return columns // self.group_size(columns)

    def unsupported(self, columns: int) -> str | None:
        """Why rows of so many elements cannot be stored, as a sentence; None where they can."""
        if columns % self.group_size(columns):
            return f"groups of {self.group} do not divide rows of {columns} elements"
        return None

    def code_bytes(self, columns: int) -> int:
        return -(-columns // UNIT) * UNIT * self.bits // 8

    def scale_bytes(self) -> int:
        """Of one group."""
        return 1 if self.is_blocks else 4

    def row_bytes(self, columns: int) -> int:
        used = self.code_bytes(columns) + self.n_groups(columns) * self.scale_bytes()
        return -(-used // ALIGNMENT) * ALIGNMENT

    def rotation(self, columns: int) -> int:
        """The block of the Hadamard transform of rows; 0 where there is none."""
        block = columns & -columns
        return block if self.channels == "rotate" and block > 1 else 0

    def encode(self, x: np.ndarray) -> Bytes:
        """Rows [..., columns] as bytes [..., row_bytes]; channels that are sorted are so already.

        A group with NaN, infinity or a scale beyond f16 decodes to NaN.
        """
        columns = x.shape[-1]
        rows = np.ascontiguousarray(x, np.float32).reshape(prod(x.shape[:-1]), columns)
        block = self.rotation(columns)
        if block:
            rows = hadamard.transform(rows, block)
        groups = rows.reshape(len(rows), self.n_groups(columns), self.group_size(columns))
        with np.errstate(over="ignore", invalid="ignore"):
            codes, scales = self._blocks(groups) if self.is_blocks else self._integers(groups)
        result = np.zeros((len(rows), self.row_bytes(columns)), np.uint8)
        stored = np.zeros((len(rows), -(-columns // UNIT) * UNIT), np.uint8)
        stored[:, :columns] = self.format.to_bits(codes.reshape(len(rows), columns))
        used = self.code_bytes(columns)
        result[:, :used] = _packed(stored, self.bits)
        result[:, used : used + scales.shape[1]] = scales
        return result.reshape(*x.shape[:-1], self.row_bytes(columns))

    def decode(self, rows: Bytes, columns: int) -> F32:
        """Bytes [..., row_bytes] as f32 [..., columns], turned back where they were rotated.

        Sorted channels stay so: who has their order puts them back (`runtime/caches.py`).
        """
        values = self.decode_stored(rows, columns)
        block = self.rotation(columns)
        return hadamard.transform(values, block) if block else values

    def decode_stored(self, rows: Bytes, columns: int) -> F32:
        """The values as they are stored: rotated where the format is."""
        flat = rows.reshape(prod(rows.shape[:-1]), rows.shape[-1])
        used = self.code_bytes(columns)
        codes = self.format.from_bits(_unpacked(flat[:, :used], self.bits)[:, :columns])
        sizes = len(flat), self.n_groups(columns), self.group_size(columns)
        steps = codes.astype(np.float32).reshape(sizes)
        scales = flat[:, used : used + self.n_groups(columns) * self.scale_bytes()]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.is_blocks:
                values = steps * _powers(scales)[:, :, None]
            else:
                pairs = np.ascontiguousarray(scales).view(np.float16).astype(np.float32)
                values = steps * pairs[:, ::2, None] + pairs[:, 1::2, None]
        return values.reshape(*rows.shape[:-1], columns)

    def _integers(self, groups: F32) -> tuple[NDArray[np.uint8], Bytes]:
        """Codes, and an f16 scale and an f16 low for each group [rows, G, size]."""
        low = groups.min(axis=2).astype(np.float16)
        low32 = low.astype(np.float32)
        scale = ((groups.max(axis=2) - low32) / np.float32(self.format.qmax)).astype(np.float16)
        scale32 = scale.astype(np.float32)
        divisor = np.where(scale32 == 0, np.float32(1), scale32)
        steps = np.rint((groups - low32[:, :, None]) / divisor[:, :, None])
        codes = np.where(steps > 0, np.minimum(steps, self.format.qmax), 0).astype(np.uint8)
        pairs = np.stack([scale, low], axis=2).reshape(len(groups), 2 * groups.shape[1])
        return codes, pairs.view(np.uint8)

    def _blocks(self, groups: F32) -> tuple[NDArray[np.int8], Bytes]:
        """Codes, and the power of two of each block as OCP MX 1.0 chooses it."""
        reach = np.ascontiguousarray(np.abs(groups).max(axis=2))
        exponent = reach.view(np.uint32).astype(np.int32) >> 23
        stored = np.clip(exponent - self.top_exponent, 0, E8M0_NAN - 1)
        stored = np.where(reach == 0, E8M0_BIAS, stored)
        broken = exponent == 255
        stored = np.where(broken, E8M0_NAN, stored).astype(np.uint8)
        steps = np.rint(groups / _powers(stored)[:, :, None])
        codes = np.clip(np.where(broken[:, :, None], 0, steps), self.format.qmin, self.format.qmax)
        return codes.astype(np.int8), stored

    @property
    def top_exponent(self) -> int:
        """Blocks: the exponent of the largest code, of which a scale is short of the block's."""
        return self.format.qmax.bit_length() - 1


def _powers(stored: Bytes) -> F32:
    """2^(byte - 127); NaN for 255."""
    powers = np.ldexp(np.float32(1), stored.astype(np.int32) - E8M0_BIAS)
    return np.where(stored == E8M0_NAN, np.float32(np.nan), powers).astype(np.float32)


def _packed(stored: Bytes, bits: int) -> Bytes:
    """The low `bits` bits of each element [rows, n], one behind the other."""
    every = stored[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    rows, n = stored.shape
    return np.packbits(every.reshape(rows, n * bits), axis=1, bitorder="little")


def _unpacked(packed: Bytes, bits: int) -> Bytes:
    """The inverse of `_packed`."""
    every = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    rows, count = every.shape
    every = every.reshape(rows, count // bits, bits) << np.arange(bits, dtype=np.uint8)
    return every.sum(axis=2, dtype=np.uint8)


def parse_cache_format(text: str) -> CacheFormat:
    """The format that a recipe's word gives caches. Raises ValueError."""
    match = _TEXT.fullmatch(text)
    bits = int(match["bits"]) if match else 0
    if match is None or bits not in BITS:
        raise ValueError(
            f"'{text}': a cache has {BITS[0]} to {BITS[-1]} bits; write kv4, kv8:g32 or kv-bfp6"
        )
    is_blocks = match["bfp"] is not None
    format = FORMATS[f"{'int' if is_blocks else 'uint'}{bits}"]
    given: dict[str, str] = {}
    for option in filter(None, match["options"].split(":")):
        subject = "group" if re.fullmatch(r"g[0-9]+", option) else "order of channels"
        if subject != "group" and option not in get_args(Channels):
            raise ValueError(f"'{text}': options of caches are g16 to g128, rotate, sort and plain")
        if subject in given:
            raise ValueError(f"'{text}': the {subject} is given twice")
        given[subject] = option
    group = DEFAULT_BLOCK if is_blocks else None
    if "group" in given:
        group = int(given["group"][1:])
        if group not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise ValueError(f"'{text}': groups of caches have {sizes} elements")
    channels = given.get("order of channels", "rotate")
    return CacheFormat(format, group, channels)  # type: ignore[arg-type]
