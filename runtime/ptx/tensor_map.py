"""Tensor maps (`CUtensorMap`) of the PTX machine, and the boxes that bulk copies move by them.

The 128 bytes are opaque: these here are the machine's own, made by `encode_tiled` from the
parameters of cuTensorMapEncodeTiled, and checked as its documentation says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAP_BYTES = 128
MAP_ALIGNMENT = 64
BOX_ALIGNMENT = 128  # of a box in shared memory
_MAGIC = 0x4D54_5851_4241
_CHUNK = 16
_MOST_DIMENSIONS = 5
_MOST_BOX, _MOST_STRIDE = 256, 8
# CUtensorMapDataType: bytes of an element; those that change values as they are copied are absent.
_ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2}
_SWIZZLE_BYTES = {0: 0, 1: 32, 2: 64, 3: 128}  # CUtensorMapSwizzle

_LAYOUT = np.dtype(
    [
        ("magic", "<u8"),
        ("address", "<u8"),
        ("sizes", "<u8", _MOST_DIMENSIONS),
        ("strides", "<u8", _MOST_DIMENSIONS - 1),
        ("box", "<u2", _MOST_DIMENSIONS),
        ("steps", "u1", _MOST_DIMENSIONS),
        ("rank", "u1"),
        ("element_bytes", "u1"),
        ("swizzle", "u1"),
    ]
)
assert _LAYOUT.itemsize <= MAP_BYTES


class BadTensorMap(ValueError):
    """The parameters make no tensor map, or the bytes are none."""


@dataclass(frozen=True)
class TensorMap:
    """A tensor in global memory, dimension 0 contiguous, and the box that a copy moves of it.

    `strides` in bytes are those of dimensions 1 and up; `steps` are the elements from one of a box
    to the next; `swizzle` is in bytes.
    """

    address: int
    element_bytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements of a box in shared memory."""
        rest = zip(self.box[1:], self.steps[1:], strict=True)
        return (self.box[0], *(-(-size // step) for size, step in rest))

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.extents)) * self.element_bytes

    @staticmethod
    def decode(data: NDArray[np.uint8]) -> TensorMap:
        fields = data[: _LAYOUT.itemsize].view(_LAYOUT)[0]
        if int(fields["magic"]) != _MAGIC:
            raise BadTensorMap("these bytes are no tensor map")
        rank = int(fields["rank"])
        return TensorMap(
            int(fields["address"]),
            int(fields["element_bytes"]),
            tuple(fields["sizes"][:rank].tolist()),
            tuple(fields["strides"][: rank - 1].tolist()),
            tuple(fields["box"][:rank].tolist()),
            tuple(fields["steps"][:rank].tolist()),
            int(fields["swizzle"]),
        )

    def encode(self) -> bytes:
        fields = np.zeros(1, _LAYOUT)
        rank = len(self.sizes)
        fields["magic"], fields["address"], fields["rank"] = _MAGIC, self.address, rank
        fields["element_bytes"], fields["swizzle"] = self.element_bytes, self.swizzle
        fields["sizes"][0, :rank] = self.sizes
        fields["strides"][0, : rank - 1] = self.strides
        fields["box"][0, :rank] = self.box
        fields["steps"][0, :rank] = self.steps
        return fields.tobytes().ljust(MAP_BYTES, b"\0")


def encode_tiled(
    data_type: int,
    address: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    steps: Sequence[int],
    interleave: int = 0,
    swizzle: int = 0,
    promotion: int = 0,
    fill: int = 0,
) -> bytes:
    """What cuTensorMapEncodeTiled makes; its numbers. BadTensorMap where it would refuse, or for
    what the machine does not do (interleaved layouts, types that change values, fill by NaN)."""
    rank = len(sizes)
    if data_type not in _ELEMENT_BYTES:
        raise BadTensorMap(f"the data type {data_type} is not supported")
    size = _ELEMENT_BYTES[data_type]
    _need(1 <= rank <= _MOST_DIMENSIONS, f"{rank} dimensions")
    _need(not interleave and not fill, "interleaved layouts and fill by NaN are not supported")
    _need(swizzle in _SWIZZLE_BYTES and 0 <= promotion <= 3, "an unknown swizzle or promotion")
    _need(address % 16 == 0, f"the address {address:#x} is no multiple of 16")
    _need(len(strides) == rank - 1 and len(box) == len(steps) == rank, "other numbers of extents")
    _need(all(1 <= n <= 1 << 32 for n in sizes), f"sizes {(*sizes,)}")
    _need(
        all(n % 16 == 0 and 0 < n < 1 << 40 for n in strides),
        f"strides {(*strides,)}, which must be multiples of 16 below 2^40",
    )
    _need(all(1 <= n <= _MOST_BOX for n in box), f"a box {(*box,)}, of at most 256 each")
    _need(all(1 <= n <= _MOST_STRIDE for n in steps), f"element strides {(*steps,)}")
    inner, span = box[0] * size, _SWIZZLE_BYTES[swizzle]
    _need(inner % _CHUNK == 0, f"rows of {inner} bytes in a box, which is no multiple of 16")
    _need(not span or inner <= span, f"rows of {inner} bytes in a swizzle of {span}")
    return TensorMap(
        *(address, size, tuple(sizes), tuple(strides), tuple(box), tuple(steps), span)
    ).encode()


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise BadTensorMap(what)


@dataclass(frozen=True)
class Box:
    """Where the parts of a box lie: `addresses` of units of `unit` bytes in global memory that are
    within the tensor, and `places`, their offsets in the box."""

    unit: int
    addresses: NDArray[np.int64]
    places: NDArray[np.int64]


def box_at(tensor: TensorMap, coordinates: Sequence[int]) -> Box:
    """The box whose first element has these coordinates, dimension 0 first."""
    size = tensor.element_bytes
    begin = max(0, coordinates[0])
    end = max(begin, min(tensor.sizes[0], coordinates[0] + tensor.box[0]))
    rows, places = np.zeros(1, np.int64), np.zeros(1, np.int64)
    inside = np.ones(1, np.bool_)
    pitch = tensor.extents[0] * size
    for k in range(1, len(tensor.sizes)):
        index = np.arange(tensor.extents[k])
        at = coordinates[k] + index * tensor.steps[k]
        within = (at >= 0) & (at < tensor.sizes[k])
        rows = (at[:, None] * tensor.strides[k - 1] + rows).reshape(-1)
        places = (index[:, None] * pitch + places).reshape(-1)
        inside = (within[:, None] & inside).reshape(-1)
        pitch *= tensor.extents[k]
    low, count = begin * size, (end - begin) * size
    shift = (begin - coordinates[0]) * size
    unit = int(np.gcd.reduce([_CHUNK, low, count, shift]))
    steps = np.arange(0, count, unit)
    rows, places = rows[inside], places[inside]
    return Box(
        unit,
        (tensor.address + low + rows[:, None] + steps).reshape(-1),
        (shift + places[:, None] + steps).reshape(-1),
    )
