"""Kernel parameters that are tensor maps (`CUtensorMap`), made of the other arguments of a launch.

A kernel copies boxes of a tensor by them (`cp.async.bulk.tensor`). They follow the 8-byte slots of
its other arguments; whoever launches it has the driver make them (cuTensorMapEncodeTiled).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAP_BYTES = 128
MAP_ALIGNMENT = 64

ELEMENTS = {"u8": 0, "f16": 6, "bf16": 9}  # CUtensorMapDataType
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle, by bytes
PROMOTION = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B: what is read of memory at once


@dataclass(frozen=True)
class Extent:
    """`factor`, times the argument in `slot` where there is one."""

    factor: int
    slot: int | None = None

    def of(self, arguments: Sequence[int]) -> int:
        return self.factor if self.slot is None else self.factor * arguments[self.slot]


class TiledTensor(NamedTuple):
    """The parameters of cuTensorMapEncodeTiled behind the map, but for the number of dimensions,
    with its numbers."""

    data_type: int
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    interleave: int
    swizzle: int
    promotion: int
    fill: int


@dataclass(frozen=True)
class TensorParameter:
    """A tensor at the address in slot `pointer`, dimension 0 contiguous, and the box that a copy
    moves: elements of each dimension. `strides`, in bytes, are those of dimensions 1 and up; with
    them and the address multiples of 16. What a box has beyond `sizes` becomes 0. `swizzle`: of the
    box in shared memory, by rows of so many bytes; 0: none.
    """

    pointer: int
    element: str  # of ELEMENTS
    sizes: tuple[Extent, ...]
    strides: tuple[Extent, ...]
    box: tuple[int, ...]
    swizzle: int = 0

    @property
    def rank(self) -> int:
        return len(self.sizes)

    def tiled(self, arguments: Sequence[int]) -> TiledTensor:
        """What cuTensorMapEncodeTiled is to make for a launch with these arguments."""
        return TiledTensor(
            ELEMENTS[self.element],
            arguments[self.pointer],
            tuple(size.of(arguments) for size in self.sizes),
            tuple(stride.of(arguments) for stride in self.strides),
            self.box,
            (1,) * self.rank,
            interleave=0,
            swizzle=SWIZZLES[self.swizzle],
            promotion=PROMOTION,
            fill=0,
        )

    @property
    def numbers(self) -> list[int]:
        """All of it as integers, as an attribute of IR has it; `of_numbers` is the inverse."""
        extents = [n for e in (*self.sizes, *self.strides) for n in (_slot(e), e.factor)]
        head = [self.pointer, ELEMENTS[self.element], self.swizzle, self.rank]
        return [*head, *extents, *self.box]

    @staticmethod
    def of_numbers(numbers: Sequence[int]) -> TensorParameter:
        pointer, element, swizzle, rank, *rest = numbers
        pairs, box = rest[: 2 * (2 * rank - 1)], rest[2 * (2 * rank - 1) :]
        extents = [
            Extent(factor, None if slot < 0 else slot)
            for slot, factor in zip(pairs[::2], pairs[1::2], strict=True)
        ]
        name = next(name for name, number in ELEMENTS.items() if number == element)
        sizes, strides = tuple(extents[:rank]), tuple(extents[rank:])
        return TensorParameter(pointer, name, sizes, strides, tuple(box), swizzle)


def _slot(extent: Extent) -> int:
    return -1 if extent.slot is None else extent.slot
