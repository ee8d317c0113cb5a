"""Schemes: how a tensor uses a number format (docs/numerics.md).

Needs numpy alone, so that the runtime can use it. A `Scheme` says, of weights or activations, the
format (a row of `number_formats.FORMATS`), how many elements share a scale, and how scales are
stored.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
from abqc.dialects.number_formats import FORMATS, WEIGHTS_ONLY, NumberFormat
from abqc.dialects.scale_types import SCALE_TYPES, ScaleName

Role = Literal["w", "a"]
Granularity = Literal["tensor", "channel", "group", "token", "image"]
GRANULARITIES: dict[str, tuple[str, ...]] = {
    "w": ("tensor", "channel", "group"),
    "a": ("tensor", "token", "image", "group"),
}

DEFAULT_GROUP_SIZE = 128
TABLE_GROUP_SIZE = 64  # of NF4, as published
GROUPED_UP_TO_BITS = 4
BLOCK_SIZES = (16, 32, 64, 128)  # of activations

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
        clip = "" if self.format.clip == 1 else f":c{round(100 * self.format.clip)}"
        return f"{self.role}{self.format.width}:{sharing}:{symmetry}{scale}{clip}"

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
    if _CLIP in given and role != "a":
        raise ValueError(f"'{text}': {given[_CLIP]} clips activations; weights have search")
    if width in BLOCK_FORMATS:
        width, given = _expand(text, width, given)
    return _scheme(text, role, width, given)


# Steps of the uniform quantizer that loses least of a Gaussian, in standard deviations, by bits (J.
# Max, "Quantizing for minimum distortion", 1960).
GAUSSIAN_STEPS = {2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041}


def clipped_for_gaussian(scheme: Scheme, k: int) -> Scheme:
    """Activations whose rows of `k` are Gaussian, nearly, as rotated ones are: clipped to the part
    of their range that loses least. As they are where nothing is gained or they say it themselves.
    """
    step = GAUSSIAN_STEPS.get(scheme.bits)
    if step is None or scheme.format.clip != 1 or scheme.granularity == "group":
        return scheme
    if scheme.format.kind not in ("signed", "unsigned"):
        return scheme
    reach = 2 * NormalDist().inv_cdf(0.5 ** (1 / k))  # of most rows
    percent = round(100 * step * (2**scheme.bits - 1) / reach)
    return replace(scheme, format=scheme.format.clipped(percent)) if percent < 100 else scheme


_SHARING, _SYMMETRY, _SCALE = "what shares a scale", "symmetry", "the type of scales"
_CLIP = "the part of the range that has codes"


def _subject(option: str) -> str:
    """What an option of a scheme says."""
    if option in ("sym", "asym"):
        return _SYMMETRY
    if re.fullmatch(r"c[1-9][0-9]", option):
        return _CLIP
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
    if _CLIP in given:
        if row.kind not in ("signed", "unsigned") or granularity == "group":
            raise ValueError(f"'{text}': {given[_CLIP]} belongs to integers with a scale for a row")
        row = row.clipped(int(given[_CLIP][1:]))
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
