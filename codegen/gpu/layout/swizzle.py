"""XOR swizzles of shared memory, which spread the rows of a tile over the banks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Swizzle:
    """x -> x with its bits [base, base + bits) XORed by those `shift` further up.

    It is its own inverse and moves aligned blocks of 2^base as they are (CuTe's Swizzle<B,M,S>).
    """

    bits: int
    base: int
    shift: int

    def __post_init__(self) -> None:
        if self.bits < 0 or self.base < 0 or self.shift < self.bits:
            raise ValueError(f"{self} would mix bits with themselves")

    @property
    def source_mask(self) -> int:
        return ((1 << self.bits) - 1) << (self.base + self.shift)

    @property
    def period(self) -> int:
        """swizzle(x + period) = swizzle(x) + period."""
        return 1 << (self.base + self.shift + self.bits)

    def __call__(self, x: int) -> int:
        return x ^ ((x & self.source_mask) >> self.shift)


def row_swizzle(row_bytes: int) -> Swizzle:
    """The swizzle of byte offsets for rows of 2^i bytes that are read in 16-byte pieces.

    Eight consecutive rows put the same piece into all 32 banks: an `ldmatrix` has no conflicts.
    """
    if row_bytes < 16 or row_bytes & (row_bytes - 1):
        raise ValueError(f"rows of {row_bytes} bytes are no power of two of 16-byte pieces")
    pieces = min(row_bytes, 128) // 16
    bits = pieces.bit_length() - 1
    # Rows shorter than 128 bytes share a line of all banks: the line number is the source.
    line = 7 if row_bytes <= 128 else row_bytes.bit_length() - 1
    return Swizzle(bits, 4, line - 4)
