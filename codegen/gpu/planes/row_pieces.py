"""Where a stage holds packed rows: in pieces of 16 bytes, those of eight tokens in all 32 banks.

    [piece of K][token, swizzled]

`ldmatrix` reads a piece of K of eight tokens (or neighbouring pieces of fewer), copies write
neighbouring pieces of one token: both without bank conflicts, as a piece of K exchanges its tokens
by an XOR with its own number.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..rows.threads import power_of_two

BANK_PIECES = 8  # pieces that are all banks of shared memory


@dataclass(frozen=True)
class RowPieces:
    """`tokens` (a power of two) and, of each, `per_token` pieces that follow each other."""

    tokens: int
    per_token: int

    @property
    def _near(self) -> int:
        """Tokens that are exchanged."""
        return min(BANK_PIECES, self.tokens)

    @property
    def _copied_together(self) -> int:
        """Neighbouring pieces of a token among eight that are copied together."""
        return min(BANK_PIECES, power_of_two(self.per_token))

    @property
    def period(self) -> int:
        """Pieces of K after which tokens are exchanged alike."""
        return BANK_PIECES // self._near * max(1, self._near * self._copied_together // BANK_PIECES)

    def place(self, token: Value, piece: Value, after: int = 0) -> Value:
        """The number in the stage of the piece `piece + after` of a token; `after` of whole
        periods costs an addition alone, of what LLVM knows."""
        rest = after % self.period
        number = piece + rest if rest else piece
        line = number // (BANK_PIECES // self._near)  # of all banks
        exchange = line * (BANK_PIECES // self._copied_together) & (self._near - 1)
        return number * self.tokens + (token ^ exchange) + (after - rest) * self.tokens
