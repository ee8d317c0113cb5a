"""Where planes kernels hold rows in shared memory: each piece has a place, all banks are used."""

from __future__ import annotations

import pytest
from abqc.codegen.gpu.planes.row_pieces import BANK_PIECES, RowPieces

SHAPES = [(tokens, count) for tokens in (1, 2, 4, 8, 16, 64) for count in (2, 4, 6, 8, 16, 48)]


def places(pieces: RowPieces) -> dict[tuple[int, int], int]:
    """By token and piece of K. (The arithmetic of kernels, with numbers for their values.)"""
    return {
        (token, piece): pieces.place(token, piece)  # type: ignore[arg-type, misc]
        for token in range(pieces.tokens)
        for piece in range(pieces.per_token)
    }


def banks(numbers: list[int]) -> set[int]:
    return {number % BANK_PIECES for number in numbers}


@pytest.mark.parametrize(("tokens", "count"), SHAPES)
def test_each_piece_has_a_place(tokens: int, count: int) -> None:
    pieces = RowPieces(tokens, count)
    at = places(pieces)
    assert sorted(at.values()) == list(range(tokens * count))
    for after in range(count):
        for token in range(tokens):
            assert pieces.place(token, 0, after) == at[token, after]  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "count"), SHAPES)
def test_eight_pieces_are_in_all_banks(tokens: int, count: int) -> None:
    at = places(RowPieces(tokens, count))
    near = min(BANK_PIECES, tokens)
    read_together = BANK_PIECES // near  # pieces of K of an ldmatrix: planes of a token
    for first in range(0, count - read_together + 1):
        for tile in range(0, tokens, near):
            read = [
                at[tile + token, first + piece]
                for token in range(near)
                for piece in range(read_together)
            ]
            assert len(banks(read)) == BANK_PIECES
    copied = [at[number // count, number % count] for number in range(tokens * count)]
    if count & (count - 1) == 0:
        for first in range(0, len(copied), BANK_PIECES):
            together = copied[first : first + BANK_PIECES]
            assert len(banks(together)) == len(together)
